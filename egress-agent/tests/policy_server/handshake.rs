//! Who gets in.

use std::sync::Arc;
use std::time::Duration;

use egress_agent::tls::{MinVersion, server_config};
use rustls::crypto::CryptoProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::grpc::{connect_from, shake};
use crate::pki::{Authority, Leaf};
use crate::policy_server::SERVER_ID;
use crate::world::{
    DENIED, ELSEWHERE, GATEWAY, GATEWAY_ID, STRANGER_ID, World, client, question, until,
};

/// A client that proves itself with anything, or nothing.
fn config(
    root: &Authority,
    leaf: Option<&Leaf>,
    version: &'static SupportedProtocolVersion,
) -> ClientConfig {
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(root.der()).expect("an authority");
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("ring has it")
        .with_root_certificates(roots);
    let mut config = match leaf {
        Some(leaf) => builder
            .with_client_auth_cert(vec![leaf.der.clone()], leaf.key())
            .expect("a pair"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Tries to get in; the server must close the connection without a byte of HTTP/2 and count it.
async fn is_refused(world: &World, config: ClientConfig, reason: &str) {
    let before = world.refused(reason);
    let stream = connect_from(ELSEWHERE, world.server.address)
        .await
        .expect("a connection");
    if let Ok(mut stream) = shake(stream, config).await {
        // In TLS 1.3 a client has done its part before its certificate is looked at.
        let mut byte = [0];
        let read = timeout(Duration::from_secs(3), stream.read(&mut byte)).await;
        match read.expect("the server closes it") {
            Ok(0) | Err(_) => {}
            Ok(_) => panic!("{reason}: the server speaks to it"),
        }
    }
    until(reason, || world.refused(reason) == before + 1).await;
}

#[tokio::test]
async fn a_gateway_is_answered_and_others_are_told() {
    let world = World::new();
    let gateway = world.gateway().await;
    let answer = gateway.check(&question()).await.expect("an answer");
    assert_eq!(answer.verdict(), DENIED, "it listens nowhere");
    let stranger = world.authority.sign(&[STRANGER_ID]);
    let stranger = client(
        &stranger.identity(&[&world.authority]),
        ELSEWHERE,
        world.server.address,
    )
    .await
    .expect("it gets in to be told");
    let answer = stranger.check(&question()).await.expect("an answer");
    assert_eq!(answer.status, DENIED, "of the call, not of the client");
    let name = "sallyport_policy_callers_refused_total{reason=\"no-gateway\"}";
    assert_eq!(world.metric(name), 1);
}

#[tokio::test]
async fn certificates_that_prove_nothing_are_refused() {
    let world = World::new();
    let config = |leaf: Option<&Leaf>| config(&world.authority, leaf, &TLS13);
    is_refused(&world, config(None), "handshake").await;
    let foreign = Authority::new("mesh").sign(&[GATEWAY_ID]);
    is_refused(&world, config(Some(&foreign)), "handshake").await;
    let expired = world.authority.sign_for(&[GATEWAY_ID], -7200, -3600);
    is_refused(&world, config(Some(&expired)), "handshake").await;
    let early = world.authority.sign_for(&[GATEWAY_ID], 3600, 7200);
    is_refused(&world, config(Some(&early)), "handshake").await;
    assert_eq!(world.metric("sallyport_policy_connections"), 0);
}

#[tokio::test]
async fn names_that_are_no_service_account_are_refused() {
    let world = World::new();
    let try_names = async |names: &[&str], reason: &str| {
        let leaf = world.authority.sign(names);
        is_refused(
            &world,
            config(&world.authority, Some(&leaf), &TLS13),
            reason,
        )
        .await;
    };
    try_names(&[], "no-spiffe-id").await;
    try_names(&[GATEWAY_ID, STRANGER_ID], "several-spiffe-ids").await;
    try_names(&[GATEWAY_ID, GATEWAY_ID], "several-spiffe-ids").await;
    try_names(&[GATEWAY_ID, "https://a.example/"], "several-spiffe-ids").await;
    for name in [
        "spiffe://cluster.local/ns/istio-egress/sa/gateway/",
        "spiffe://cluster.local/ns/istio-egress/sa/gateway/more",
        "spiffe://cluster.local/x/ns/istio-egress/sa/gateway",
        "spiffe://cluster.local//ns/istio-egress/sa/gateway",
        "spiffe://cluster.local/ns/istio-egress/sa/gate%77ay",
        "spiffe://cluster.local/ns/istio-egress/sa/gateway?x=y",
        "spiffe://cluster.local/ns/istio-egress/sa/gateway#x",
        "spiffe://cluster.local:443/ns/istio-egress/sa/gateway",
        "spiffe://x@cluster.local/ns/istio-egress/sa/gateway",
        "spiffe://CLUSTER.LOCAL/ns/istio-egress/sa/gateway",
        "SPIFFE://cluster.local/ns/istio-egress/sa/gateway",
        "https://cluster.local/ns/istio-egress/sa/gateway",
        "spiffe:///ns/istio-egress/sa/gateway",
        "spiffe://cluster.local/ns/../sa/gateway",
        "spiffe://cluster.local",
    ] {
        try_names(&[name], "bad-spiffe-id").await;
    }
    for name in [
        "spiffe://other.local/ns/istio-egress/sa/gateway",
        "spiffe://cluster.local.evil.example/ns/istio-egress/sa/gateway",
        "spiffe://evilcluster.local/ns/istio-egress/sa/gateway",
        "spiffe://cluster.local./ns/istio-egress/sa/gateway",
    ] {
        try_names(&[name], "trust-domain").await;
    }
}

#[tokio::test]
async fn tls_1_2_is_refused_unless_it_is_asked_for() {
    let world = World::new();
    let leaf = world.authority.sign(&[GATEWAY_ID]);
    let old = || config(&world.authority, Some(&leaf), &TLS12);
    is_refused(&world, old(), "handshake").await;

    let own = world.authority.sign(&[SERVER_ID]);
    let own = own.identity(&[&world.authority]);
    let listener = TcpListener::bind((GATEWAY, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let accept = async |oldest| {
        let config = server_config(&own, oldest).expect("a configuration");
        let (stream, _) = listener.accept().await.expect("a connection");
        TlsAcceptor::from(Arc::new(config)).accept(stream).await
    };
    for (oldest, taken) in [(MinVersion::Tls12, true), (MinVersion::Tls13, false)] {
        let ask = async {
            let stream = connect_from(GATEWAY, address).await.expect("a connection");
            shake(stream, old()).await
        };
        let (accepted, asked) = tokio::join!(accept(oldest), ask);
        assert_eq!(accepted.is_ok(), taken, "{oldest:?}");
        assert_eq!(asked.is_ok(), taken, "{oldest:?}");
    }
}

#[tokio::test]
async fn a_session_is_never_resumed() {
    let world = World::new();
    let leaf = world.authority.sign(&[GATEWAY_ID]);
    let config = Arc::new(config(&world.authority, Some(&leaf), &TLS13));
    for _ in 0..3 {
        let stream = connect_from(GATEWAY, world.server.address)
            .await
            .expect("a connection");
        let mut stream = shake(stream, config.as_ref().clone())
            .await
            .expect("a handshake");
        // The server's settings: tickets would have come before.
        let mut byte = [0];
        stream.read_exact(&mut byte).await.expect("HTTP/2");
        let (_, session) = stream.get_ref();
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let world = World::new();
    let short = world.authority.sign_for(&[GATEWAY_ID], -60, 3);
    let gateway = client(
        &short.identity(&[&world.authority]),
        GATEWAY,
        world.server.address,
    )
    .await
    .expect("it is good still");
    gateway.check(&question()).await.expect("an answer");
    assert_eq!(world.metric("sallyport_policy_connections"), 1);
    until("it is closed", || {
        world.metric("sallyport_policy_connections") == 0
    })
    .await;
    assert!(gateway.check(&question()).await.is_err());
}
