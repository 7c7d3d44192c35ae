//! A world to ask about, and questions as Envoy words them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, HeaderMap, HeaderValue, SocketAddress};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{
    HttpRequest, Peer, Request, TlsSession,
};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use serde::de::DeserializeOwned;

use crate::gateway::host::HostPattern;
use crate::gateway::policy::{Clients, Entry, Passthrough, PassthroughRoute, Rules};
use crate::gateway::{ObjectName, OutboundPolicy, SpiffeId};
use crate::index::{Index, Object};
use crate::policy_server::{Caller, Served};

pub(super) const PORT: u16 = 15443;
pub(super) const GATEWAY: &str = "10.0.9.1";
pub(super) const PRODUCTPAGE: &str = "10.0.1.1";
pub(super) const REVIEWS: &str = "10.0.1.2";
pub(super) const NOBODY: &str = "10.0.1.99";

const OBJECTS: &str = r#"
{ kind: VirtualGateway, metadata: { name: egress-vg, namespace: istio-egress }, spec: {
    workloads: [{ selector: { labels: { istio: egress } } }],
    listeners: [{ port: { number: 15443 }, tls: { mode: ISTIO_MUTUAL },
                  exposedExternalServices: [{ host: "*.example" }] }] } }
---
{ kind: VirtualGateway, metadata: { name: z-second, namespace: istio-egress }, spec: {
    workloads: [{ selector: { labels: { istio: egress } } }],
    listeners: [{ port: { number: 15443 }, tls: { mode: ISTIO_MUTUAL },
                  exposedExternalServices: [{ host: "*.test" }] },
                { port: { number: 15444 }, tls: { mode: ISTIO_MUTUAL },
                  exposedExternalServices: [{ host: "*" }] }] } }
---
{ kind: ExternalService, metadata: { name: api, namespace: global }, spec: {
    hosts: [api.example, api.test], ports: [{ number: 443, protocol: HTTPS, clientsideTls: {},
                                    egressGatewayRoutes: { portMatch: 80 } }] } }
---
{ kind: ExternalService, metadata: { name: open, namespace: global }, spec: {
    hosts: [open.example], ports: [{ number: 80, protocol: HTTP, egressGatewayRoutes: {} }] } }
---
{ kind: AccessPolicy, metadata: { name: api, namespace: istio-egress }, spec: {
    applyToDestinations: [{ kind: EXTERNAL_SERVICE, selector: { name: api, namespace: global } }],
    config: { authzList: [
      { allowedClients: [{ serviceAccountSelector: { name: productpage, namespace: bookinfo } }],
        allowedPaths: ["/b"] },
      { allowedClients: [{ serviceAccountSelector: { name: productpage, namespace: bookinfo } }],
        match: { request: { headers: { x-team: { values: ["re*"], notValues: ["green"] } } } } },
      { allowedClients: [{ serviceAccountSelector: { name: reviews, namespace: bookinfo } }],
        dryRun: true }] } } }
---
{ kind: ServiceAccount, metadata: { name: productpage, namespace: bookinfo } }
---
{ kind: ServiceAccount, metadata: { name: reviews, namespace: bookinfo } }
"#;

fn read<T: DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn mk_pod(namespace: &str, account: &str, ip: &str, gateway: bool) -> Object {
    let labels = if gateway { "egress" } else { "none" };
    Object::Pod(Box::new(read(serde_json::json!({
        "metadata": { "name": format!("{account}-1"), "namespace": namespace, "uid": account,
                      "labels": { "istio": labels } },
        "spec": { "nodeName": "n", "containers": [], "serviceAccountName": account },
        "status": { "podIPs": [{ "ip": ip }], "phase": "Running" },
    }))))
}

/// Two gateways that select one pod, and two clients.
pub(super) fn mk_served() -> Served {
    let mut index = Index::default();
    for document in OBJECTS.split("\n---\n") {
        let mut value: serde_json::Value = serde_yaml_ng::from_str(document).unwrap();
        let kind = value["kind"].as_str().unwrap().to_owned();
        value["apiVersion"] = "sallyport.dev/v1alpha1".into();
        if kind == "ServiceAccount" {
            value["apiVersion"] = "v1".into();
        }
        index.apply(match kind.as_str() {
            "VirtualGateway" => Object::VirtualGateway(read(value)),
            "ExternalService" => Object::ExternalService(read(value)),
            "AccessPolicy" => Object::AccessPolicy(read(value)),
            "ServiceAccount" => Object::ServiceAccount(read(value)),
            other => panic!("{other}"),
        });
    }
    index.apply(mk_pod("istio-egress", "egress", GATEWAY, true));
    index.apply(mk_pod("bookinfo", "productpage", PRODUCTPAGE, false));
    index.apply(mk_pod("bookinfo", "reviews", REVIEWS, false));
    let outbound = OutboundPolicy::RegistryOnly;
    let (mut served, problems) = Served::from_index(&index, "cluster.local", None, outbound, None);
    assert_eq!(problems, []);
    add_passthrough(&mut served);
    served
}

/// `tls.example` by server name, for productpage alone; the second entry asks for what nobody can see.
fn add_passthrough(served: &mut Served) {
    let mk_entry = |index, account: &str, method: Option<&str>| Entry {
        policy: ObjectName::new("istio-egress", "tls"),
        index,
        clients: Clients::These([id(account)].into()),
        methods: method.map(str::to_owned).into_iter().collect(),
        paths: [].into(),
        ip_blocks: [].into(),
        headers: Vec::new(),
        dry_run: false,
    };
    let route = PassthroughRoute {
        service: ObjectName::new("global", "tls"),
        host: None,
        port: 443,
        rules: Rules::new(
            true,
            [
                mk_entry(0, "productpage", None),
                mk_entry(1, "reviews", Some("GET")),
            ]
            .map(Arc::new)
            .into(),
        ),
    };
    let gateway = ObjectName::new("istio-egress", "egress-vg");
    let gateway = served.policy.gateways.get_mut(&gateway).unwrap();
    let listener = gateway.listeners.get_mut(&PORT).unwrap();
    listener.passthrough.insert(
        HostPattern::parse("tls.example").unwrap(),
        Passthrough {
            served: Some(route),
        },
    );
}

pub(super) fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "bookinfo", account).unwrap()
}

pub(super) fn caller(account: &str) -> Caller {
    Caller {
        identity: SpiffeId::new("cluster.local", "istio-egress", account).unwrap(),
        address: SocketAddr::from(([10, 0, 9, 1], 40000)),
    }
}

pub(super) fn peer(ip: &str, port: u16, principal: &str) -> Peer {
    Peer {
        address: Some(Address {
            address: Some(Kind::SocketAddress(SocketAddress {
                address: ip.to_owned(),
                port_specifier: Some(PortSpecifier::PortValue(port.into())),
                ..SocketAddress::default()
            })),
        }),
        principal: principal.to_owned(),
        ..Peer::default()
    }
}

/// A question from the gateway's pod about a client of bookinfo at an address.
pub(super) fn connection(account: &str, ip: &str, sni: &str) -> CheckRequest {
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer(ip, 40001, &id(account).to_string())),
            destination: Some(peer(GATEWAY, PORT, "")),
            tls_session: Some(TlsSession {
                sni: sni.to_owned(),
            }),
            ..AttributeContext::default()
        }),
    }
}

pub(super) fn request(account: &str, ip: &str, host: &str, path: &str) -> CheckRequest {
    let mut request = connection(account, ip, "");
    let pseudo = [(":method", "GET"), (":authority", host), (":path", path)];
    let headers: HashMap<String, String> = pseudo
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    attributes(&mut request).request = Some(Request {
        http: Some(HttpRequest {
            method: "GET".to_owned(),
            host: host.to_owned(),
            path: path.to_owned(),
            headers,
            ..HttpRequest::default()
        }),
        ..Request::default()
    });
    request
}

pub(super) fn attributes(request: &mut CheckRequest) -> &mut AttributeContext {
    request.attributes.as_mut().unwrap()
}

pub(super) fn http(request: &mut CheckRequest) -> &mut HttpRequest {
    let request = attributes(request).request.as_mut().unwrap();
    request.http.as_mut().unwrap()
}

/// As Envoy has it with `encode_raw_headers`.
pub(super) fn raw(lines: &[(&str, &[u8])]) -> HeaderMap {
    HeaderMap {
        headers: lines
            .iter()
            .map(|(key, value)| HeaderValue {
                key: (*key).to_owned(),
                value: String::new(),
                raw_value: value.to_vec(),
            })
            .collect(),
    }
}
