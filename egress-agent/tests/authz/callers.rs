//! Who may ask the policy server: its answers would tell anybody what is allowed to whom.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::Bytes;

use crate::http2::AnyName;
use crate::mesh::{Authority, Leaf, client_config};
use crate::objects::{GATEWAY_ID, PRODUCTPAGE};
use crate::world::World;

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// What a call came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// No session.
    Refused,
    /// `grpc-status`.
    Status(u8),
}

/// Sends one message, whatever it is, and waits for the end of the call.
async fn call(
    address: SocketAddr,
    authority: &Authority,
    leaf: Option<&Leaf>,
    path: &str,
    message: &[u8],
) -> Outcome {
    let mut config = client_config(authority, leaf);
    let own = Arc::get_mut(&mut config).expect("nobody else has it");
    own.alpn_protocols = vec![b"h2".to_vec()];
    // Who the server is, is not what is asked here.
    own.dangerous()
        .set_certificate_verifier(Arc::new(AnyName::of_agent(authority)));
    let called = async {
        let stream = TcpStream::connect(address).await.ok()?;
        let name = "agent.test".try_into().expect("a name");
        let stream = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .ok()?;
        let (sender, connection) = h2::client::handshake(stream).await.ok()?;
        let connection = tokio::spawn(connection);
        let mut sender = sender.ready().await.ok()?;
        let request = http::Request::post(format!("https://agent.test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        let (response, mut body) = sender.send_request(request, false).ok()?;
        let length = u32::try_from(message.len()).expect("short enough");
        let frame = [&[0], &length.to_be_bytes()[..], message].concat();
        // A server that has answered already may want no more of it.
        let _ = body.send_data(Bytes::from(frame), true);
        let (head, mut body) = response.await.ok()?.into_parts();
        let mut status = head.headers.get("grpc-status").cloned();
        while let Some(chunk) = body.data().await {
            let length = chunk.ok()?.len();
            let _ = body.flow_control().release_capacity(length);
        }
        if let Some(trailers) = body.trailers().await.ok()? {
            status = status.or(trailers.get("grpc-status").cloned());
        }
        connection.abort();
        status?.to_str().ok()?.parse().ok()
    };
    let limit = Duration::from_secs(20);
    let called = tokio::time::timeout(limit, called).await;
    called
        .expect("it ends")
        .map_or(Outcome::Refused, Outcome::Status)
}

const OK: Outcome = Outcome::Status(0);
const INVALID_ARGUMENT: Outcome = Outcome::Status(3);
const PERMISSION_DENIED: Outcome = Outcome::Status(7);
const OUT_OF_RANGE: Outcome = Outcome::Status(11);
const UNIMPLEMENTED: Outcome = Outcome::Status(12);
const INTERNAL: Outcome = Outcome::Status(13);

#[tokio::test(flavor = "multi_thread")]
async fn only_gateways_are_answered() {
    let world = tokio::task::block_in_place(World::start);
    let address = world.server().address;
    let mesh = &world.mesh;
    let stranger = Authority::new("stranger");
    let id = |uri: &str| mesh.sign(&[], &[uri]);
    let question = question(&world);
    let check = async |leaf: Option<&Leaf>| call(address, mesh, leaf, CHECK, &question).await;

    assert_eq!(check(Some(&id(GATEWAY_ID))).await, OK);
    let productpage = world.identity("productpage");
    assert_eq!(check(Some(&productpage)).await, PERMISSION_DENIED);
    let namesake = id("spiffe://cluster.local/ns/bookinfo/sa/istio-egressgateway");
    assert_eq!(check(Some(&namesake)).await, PERMISSION_DENIED);
    assert_eq!(
        world.metric("sallyport_policy_callers_refused_total{reason=\"no-gateway\"}"),
        2
    );
    assert_eq!(check(None).await, Outcome::Refused);
    let foreign = stranger.sign(&[], &[GATEWAY_ID]);
    assert_eq!(check(Some(&foreign)).await, Outcome::Refused);
    for uri in [
        "spiffe://other.domain/ns/istio-egress/sa/istio-egressgateway",
        "spiffe://cluster.local/ns/istio-egress/sa/istio-egressgateway/x",
    ] {
        assert_eq!(check(Some(&id(uri))).await, Outcome::Refused, "{uri}");
    }
    let two = mesh.sign(&[], &[GATEWAY_ID, GATEWAY_ID]);
    assert_eq!(check(Some(&two)).await, Outcome::Refused);
    // It is counted after the client has seen it.
    let counted = || world.metric("sallyport_policy_connections_refused_total") >= 5;
    tokio::task::block_in_place(|| world.until("refused connections are counted", counted));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_question_gets_no_answer_and_does_no_harm() {
    let world = tokio::task::block_in_place(World::start);
    let address = world.server().address;
    let gateway = world.mesh.sign(&[], &[GATEWAY_ID]);
    let call = async |path: &str, message: &[u8]| {
        call(address, &world.mesh, Some(&gateway), path, message).await
    };
    assert_eq!(call(CHECK, &[]).await, INVALID_ARGUMENT);
    assert_eq!(call(CHECK, &[0xff; 64]).await, INTERNAL);
    let good = question(&world);
    for cut in 1..good.len() {
        let outcome = call(CHECK, &good[..cut]).await;
        let expected = [INVALID_ARGUMENT, INTERNAL];
        assert!(expected.contains(&outcome), "{cut}: {outcome:?}");
    }
    assert_eq!(call(CHECK, &vec![0; 1 << 20]).await, OUT_OF_RANGE);
    assert_eq!(call("/x.Y/Z", &good).await, UNIMPLEMENTED);
    assert_eq!(call(CHECK, &good).await, OK);
    let answer = tokio::task::block_in_place(|| {
        world.get("productpage", PRODUCTPAGE, "api.localhost", "/get")
    });
    assert_eq!(answer.status, 200);
}

/// As the gateway would ask about a request of productpage, with nothing that could be left out:
/// every prefix of it is incomplete.
fn question(world: &World) -> Vec<u8> {
    use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
    use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
    use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress};
    use envoy_types::pb::envoy::service::auth::v3::attribute_context::{
        HttpRequest, Peer, Request,
    };
    use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
    use prost::Message as _;

    let peer = |ip: &str, port: u16, principal: &str| Peer {
        address: Some(Address {
            address: Some(Kind::SocketAddress(SocketAddress {
                address: ip.to_owned(),
                port_specifier: Some(PortSpecifier::PortValue(port.into())),
                ..SocketAddress::default()
            })),
        }),
        principal: principal.to_owned(),
        ..Peer::default()
    };
    let client = "spiffe://cluster.local/ns/bookinfo/sa/productpage";
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer(PRODUCTPAGE, 40000, client)),
            destination: Some(peer(crate::objects::GATEWAY, world.ports.http, "")),
            request: Some(Request {
                http: Some(HttpRequest {
                    method: "GET".to_owned(),
                    host: "api.localhost".to_owned(),
                    path: "/get".to_owned(),
                    ..HttpRequest::default()
                }),
                ..Request::default()
            }),
            ..AttributeContext::default()
        }),
    }
    .encode_to_vec()
}
