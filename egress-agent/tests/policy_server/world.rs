//! A server with one gateway, and clients of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use egress_agent::gateway::envoy::Authorization;
use egress_agent::gateway::host::{HostName, HostPattern};
use egress_agent::gateway::policy::{
    Gateway, Listener, Route, Rules, Upstream, UpstreamHttp, UpstreamTls,
};
use egress_agent::gateway::{GatewayPolicy, ObjectName, Settings, SpiffeId, render};
use egress_agent::policy_server::authz::Binding;
use egress_agent::policy_server::{GatewayPod, Served};
use egress_agent::tls::{Identity, MinVersion, client_config};
use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{Peer, TlsSession};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use tokio::time::sleep;

use crate::grpc::{Client, connect_from, shake};
use crate::pki::Authority;
use crate::policy_server::{SERVER_ID, Server, server_id};

pub const GATEWAY_ID: &str = "spiffe://cluster.local/ns/istio-egress/sa/gateway";
pub const STRANGER_ID: &str = "spiffe://cluster.local/ns/bookinfo/sa/reviews";
/// Where the gateway connects from.
pub const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Others do from here.
pub const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
pub const DENIED: i32 = 7;
/// Hosts of the gateway, each with a cluster.
pub const HOSTS: usize = 500;

/// A policy server, and the directory of its certificate.
pub struct World {
    pub authority: Authority,
    pub certs: tempfile::TempDir,
    pub server: Server,
}

impl World {
    pub fn new() -> Self {
        let authority = Authority::new("mesh");
        let certs = tempfile::tempdir().expect("a directory");
        authority
            .sign(&[SERVER_ID])
            .write(certs.path(), &[&authority]);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        // It has a runtime of its own, which can't be begun within the test's.
        let path = certs.path().to_owned();
        let server = std::thread::spawn(move || Server::start(any, &path, Binding::Require))
            .join()
            .expect("it starts");
        server.serve(served());
        Self {
            authority,
            certs,
            server,
        }
    }

    /// A connection of the gateway.
    pub async fn gateway(&self) -> Client {
        let leaf = self.authority.sign(&[GATEWAY_ID]);
        let identity = leaf.identity(&[&self.authority]);
        client(&identity, GATEWAY, self.server.address)
            .await
            .expect("the gateway gets in")
    }

    /// A counter or gauge of the server; absent ones are 0.
    pub fn metric(&self, name: &str) -> u64 {
        self.server
            .metrics()
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Connections that were refused for this reason.
    pub fn refused(&self, reason: &str) -> u64 {
        self.metric(&format!(
            "sallyport_policy_connections_refused_total{{reason=\"{reason}\"}}"
        ))
    }
}

/// One gateway, which is configured for many hosts and asked about none of them: what it asks is
/// answered with a refusal.
pub fn served() -> Served {
    let gateway = ObjectName::new("istio-egress", "vg");
    let pod = GatewayPod {
        identity: SpiffeId::parse(GATEWAY_ID).expect("an identity"),
        gateways: BTreeSet::from([gateway.clone()]),
    };
    let mut listener = Listener::default();
    for at in 0..HOSTS {
        let host = HostName::parse(&format!("host-{at}.example")).expect("a name");
        let upstream = Upstream {
            host: Some(host.clone()),
            port: 443,
            http: UpstreamHttp::Negotiated,
            tls: Some(UpstreamTls::default()),
        };
        let route = Route {
            service: None,
            upstream,
            rules: Rules::nobody(),
        };
        listener
            .hosts
            .insert(HostPattern::Exact(host), [(80, route)].into());
    }
    let listeners = [(8443, listener)].into();
    let policy = GatewayPolicy {
        trust_domain: "cluster.local".to_owned(),
        gateways: [(gateway, Gateway { listeners })].into(),
    };
    let settings = Settings {
        cert_dir: "/certs".into(),
        upstream_ca: "/ca.crt".into(),
        authorization: Authorization::Rbac,
        binding: Binding::Off,
    };
    Served {
        gateway_pods: [(GATEWAY, pod)].into(),
        resources: render(&policy, &settings, &BTreeMap::new()),
        policy,
        ..Served::default()
    }
}

pub async fn client(
    identity: &Identity,
    from: IpAddr,
    to: SocketAddr,
) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
    let config = client_config(identity, server_id(), MinVersion::Tls13)?;
    let stream = shake(connect_from(from, to).await?, config).await?;
    Ok(Client::new(stream).await?)
}

/// May a pod connect to `api.example`?
pub fn question() -> CheckRequest {
    let peer = |ip: IpAddr, port: u32, principal: &str| Peer {
        address: Some(Address {
            address: Some(Kind::SocketAddress(SocketAddress {
                address: ip.to_string(),
                port_specifier: Some(PortSpecifier::PortValue(port)),
                ..SocketAddress::default()
            })),
        }),
        principal: principal.to_owned(),
        ..Peer::default()
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer(ELSEWHERE, 40000, STRANGER_ID)),
            destination: Some(peer(GATEWAY, 15443, "")),
            tls_session: Some(TlsSession {
                sni: "api.example".to_owned(),
            }),
            ..AttributeContext::default()
        }),
    }
}

/// Waits until it is so, for at most 15 seconds.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !so() {
        assert!(Instant::now() < deadline, "not so: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
