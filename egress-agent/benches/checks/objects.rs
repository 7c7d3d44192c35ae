//! A cluster's worth of policy, and questions about it.

use std::collections::HashMap;

use egress_agent::gateway::OutboundPolicy;
use egress_agent::index::{Index, Object};
use egress_agent::policy_server::Served;
use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub const POLICIES: usize = 1000;
/// Each with a pod; in 100 namespaces.
pub const ACCOUNTS: usize = 10_000;
const NAMESPACES: usize = 100;
/// Of each ten accounts one has the label that a policy asks for.
const ADMITTED: usize = 3;
pub const GATEWAY_ID: &str = "spiffe://cluster.local/ns/istio-egress/sa/egress";
pub const TRUST_DOMAIN: &str = "cluster.local";
const GATEWAY: &str = "10.200.0.1";
pub const PORT: u16 = 15443;

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of its kind")
}

fn ours(kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": kind,
        "metadata": { "namespace": namespace, "name": name }, "spec": spec,
    })
}

fn pod(namespace: &str, account: &str, ip: &str, role: &str) -> Object {
    Object::Pod(read(json!({
        "metadata": { "namespace": namespace, "name": account, "uid": format!("{namespace}-{account}"),
                      "labels": { "istio": role } },
        "spec": { "nodeName": "n", "containers": [], "serviceAccountName": account },
        "status": { "podIPs": [{ "ip": ip }], "phase": "Running" },
    })))
}

fn namespace(index: usize) -> String {
    format!("team-{index}")
}

fn address(team: usize, account: usize) -> String {
    format!("10.1.{team}.{account}")
}

/// 1,000 external services, each with a policy that admits ten accounts by label. The gateway
/// listens on `port`.
pub fn index(port: u16) -> Index {
    let mut index = Index::default();
    index.apply(Object::VirtualGateway(read(ours(
        "VirtualGateway",
        "istio-egress",
        "egress-vg",
        &json!({
            "workloads": [{ "selector": { "labels": { "istio": "egress" } } }],
            "listeners": [{ "port": { "number": port }, "tls": { "mode": "ISTIO_MUTUAL" },
                            "exposedExternalServices": [{ "host": "*.example" }] }],
        }),
    ))));
    index.apply(pod("istio-egress", "egress", GATEWAY, "egress"));
    for account in 0..ACCOUNTS {
        let (team, number) = (account % NAMESPACES, account / NAMESPACES);
        let name = format!("sa-{number}");
        index.apply(Object::ServiceAccount(read(json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "namespace": namespace(team), "name": name,
                          "labels": { "role": format!("r-{}", number % 10) } },
        }))));
        index.apply(pod(&namespace(team), &name, &address(team, number), "none"));
    }
    for policy in 0..POLICIES {
        let name = format!("svc-{policy}");
        index.apply(Object::ExternalService(read(ours(
            "ExternalService",
            "global",
            &name,
            &json!({
                "hosts": [format!("{name}.example")],
                "ports": [{ "number": 443, "protocol": "HTTPS", "clientsideTls": {},
                            "egressGatewayRoutes": { "portMatch": 80 } }],
            }),
        ))));
        index.apply(Object::AccessPolicy(read(ours(
            "AccessPolicy",
            "istio-egress",
            &name,
            &json!({
                "applyToDestinations": [{ "kind": "EXTERNAL_SERVICE",
                                          "selector": { "name": name, "namespace": "global" } }],
                "config": { "authz": {
                    "allowedClients": [{ "serviceAccountSelector": {
                        "namespace": namespace(policy % NAMESPACES),
                        "labels": { "role": format!("r-{ADMITTED}") } } }],
                    "allowedMethods": ["GET", "POST"],
                    "allowedPaths": ["/v1/*", "/healthz"],
                } },
            }),
        ))));
    }
    index
}

/// What a policy server serves of them.
pub fn served(port: u16) -> Served {
    let (served, problems) = Served::from_index(
        &index(port),
        TRUST_DOMAIN,
        None,
        OutboundPolicy::RegistryOnly,
        None,
    );
    assert_eq!(problems, [], "the objects are sound");
    served
}

/// One question for each policy, and whether it is admitted: every second is.
pub fn questions() -> Vec<(CheckRequest, bool)> {
    (0..POLICIES)
        .map(|policy| {
            let admitted = policy % 2 == 0;
            let number = 10 * (policy / NAMESPACES) + if admitted { ADMITTED } else { 4 };
            (question(policy, policy % NAMESPACES, number), admitted)
        })
        .collect()
}

/// Host and path that a policy is about.
pub fn target(policy: usize) -> (String, String) {
    let host = format!("svc-{policy}.example");
    (host, format!("/v1/items/{policy}?page=1"))
}

/// A client, and the policies that admit it.
pub fn client(number: usize) -> (String, impl Iterator<Item = usize>) {
    let team = number % NAMESPACES;
    let admitting = (0..POLICIES).filter(move |policy| policy % NAMESPACES == team);
    (identity(team, ADMITTED), admitting)
}

fn identity(team: usize, account: usize) -> String {
    format!(
        "spiffe://{TRUST_DOMAIN}/ns/{}/sa/sa-{account}",
        namespace(team)
    )
}

fn peer(ip: &str, port: u16, principal: String) -> Peer {
    Peer {
        address: Some(Address {
            address: Some(Kind::SocketAddress(SocketAddress {
                address: ip.to_owned(),
                port_specifier: Some(PortSpecifier::PortValue(port.into())),
                ..SocketAddress::default()
            })),
        }),
        principal,
        ..Peer::default()
    }
}

/// As Envoy words it, with the headers that a sidecar adds.
fn question(policy: usize, team: usize, number: usize) -> CheckRequest {
    let (host, path) = target(policy);
    let headers: HashMap<String, String> = [
        (":authority", host.as_str()),
        (":method", "GET"),
        (":path", &path),
        (":scheme", "http"),
        ("accept", "*/*"),
        ("user-agent", "python-requests/2.32.3"),
        ("x-envoy-attempt-count", "1"),
        ("x-forwarded-proto", "http"),
        ("x-request-id", "6f1a2b1c-8a2e-4c53-9d0f-2f6f0d6b7c11"),
        ("x-b3-traceid", "80f198ee56343ba864fe8b2a57d3eff7"),
        ("x-b3-spanid", "e457b5a2e4d86bd1"),
        ("x-b3-sampled", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let principal = identity(team, number);
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer(&address(team, number), 40_000, principal)),
            destination: Some(peer(GATEWAY, PORT, GATEWAY_ID.to_owned())),
            request: Some(Request {
                http: Some(HttpRequest {
                    id: "1234567890123456789".to_owned(),
                    method: "GET".to_owned(),
                    headers,
                    path,
                    host,
                    scheme: "http".to_owned(),
                    protocol: "HTTP/1.1".to_owned(),
                    ..HttpRequest::default()
                }),
                ..Request::default()
            }),
            ..AttributeContext::default()
        }),
    }
}
