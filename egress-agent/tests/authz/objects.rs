//! What is declared, and what the policy server is given of it.

use egress_agent::gateway::host::HostPattern;
use egress_agent::gateway::policy::{Clients, Entry, Passthrough, PassthroughRoute, Rules};
use egress_agent::gateway::{ObjectName, OutboundPolicy, SpiffeId};
use egress_agent::index::{Index, Object};
use egress_agent::policy_server::Served;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Addresses of the pods, and one of no pod.
pub const GATEWAY: &str = "127.0.0.50";
pub const PRODUCTPAGE: &str = "127.0.1.1";
pub const REVIEWS: &str = "127.0.1.2";
pub const NOBODY: &str = "127.0.1.99";

pub const GATEWAY_ID: &str = "spiffe://cluster.local/ns/istio-egress/sa/istio-egressgateway";

/// Ports that the gateway listens on.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// As Istio has it.
    pub http: u16,
    /// Paths as they come, each header line for itself.
    pub raw: u16,
    /// TLS without client certificates.
    pub simple: u16,
    /// Connections by server name.
    pub tls: u16,
    /// The same as Istio has it: the server name is not told.
    pub blind: u16,
}

/// A service `<name>.localhost` that clients name with port 80.
pub fn service(name: &str) -> Value {
    json!({
        "kind": "ExternalService", "metadata": { "name": name, "namespace": "global" },
        "spec": { "hosts": [format!("{name}.localhost")],
                  "ports": [{ "number": 80, "protocol": "HTTP", "egressGatewayRoutes": {} }] },
    })
}

/// A policy for one service.
pub fn policy(service: &str, entries: &Value) -> Value {
    json!({
        "kind": "AccessPolicy", "metadata": { "name": service, "namespace": "istio-egress" },
        "spec": {
            "applyToDestinations": [{ "kind": "EXTERNAL_SERVICE",
                                      "selector": { "name": service, "namespace": "global" } }],
            "config": { "authzList": entries },
        },
    })
}

/// `allowedClients` of one service account of bookinfo.
pub fn clients(account: &str) -> Value {
    json!([{ "serviceAccountSelector": { "name": account, "namespace": "bookinfo" } }])
}

pub fn pod(namespace: &str, account: &str, ip: &str) -> Value {
    json!({
        "kind": "Pod",
        "metadata": { "name": format!("{account}-{ip}"), "namespace": namespace, "uid": ip,
                      "labels": { "app": account } },
        "spec": { "nodeName": "n", "containers": [], "serviceAccountName": account },
        "status": { "podIPs": [{ "ip": ip }], "phase": "Running" },
    })
}

/// A gateway, its pod, and two pods of bookinfo.
pub fn base(ports: &Ports) -> Vec<Value> {
    let listener = |port: u16| {
        json!({ "port": { "number": port }, "tls": { "mode": "ISTIO_MUTUAL" },
                "exposedExternalServices": [{ "host": "*.localhost" }] })
    };
    let Ports {
        http,
        raw,
        simple,
        tls,
        blind,
    } = *ports;
    let listeners = [http, raw, simple, tls, blind].map(listener);
    vec![
        json!({
            "kind": "VirtualGateway",
            "metadata": { "name": "egress-vg", "namespace": "istio-egress" },
            "spec": { "workloads": [{ "selector": { "labels": { "app": "istio-egressgateway" } } }],
                      "listeners": listeners },
        }),
        json!({ "kind": "ServiceAccount",
                "metadata": { "name": "productpage", "namespace": "bookinfo" } }),
        json!({ "kind": "ServiceAccount",
                "metadata": { "name": "reviews", "namespace": "bookinfo" } }),
        pod("istio-egress", "istio-egressgateway", GATEWAY),
        pod("bookinfo", "productpage", PRODUCTPAGE),
        pod("bookinfo", "reviews", REVIEWS),
    ]
}

/// `api.localhost` for productpage alone, `open.localhost` for everybody of the mesh, `teams.localhost`
/// by header, `trial.localhost` with a dry-run entry for reviews.
pub fn standard(ports: &Ports) -> Vec<Value> {
    let mut objects = base(ports);
    objects.extend(["api", "open", "teams", "trial"].map(service));
    objects.push(policy(
        "api",
        &json!([{ "allowedClients": clients("productpage"),
                                         "allowedPaths": ["/", "/get", "/status/*"] }]),
    ));
    objects.push(policy(
        "teams",
        &json!([{ "match": { "request": { "headers": {
        "x-team": { "values": ["re*"], "notValues": ["green"] } } } } }]),
    ));
    objects.push(policy(
        "trial",
        &json!([{ "allowedClients": clients("productpage") },
                                         { "allowedClients": clients("reviews"), "dryRun": true }]),
    ));
    objects
}

/// What the agent makes of these objects. `tls.localhost` is for productpage alone, by server name
/// on one port.
pub fn served(objects: &[Value], ports: &Ports) -> Served {
    let mut index = Index::default();
    for object in objects {
        index.apply(read(object.clone()));
    }
    let outbound = OutboundPolicy::RegistryOnly;
    let (mut served, problems) = Served::from_index(&index, "cluster.local", None, outbound, None);
    assert_eq!(problems, [], "the test's objects are sound");
    let route =
        PassthroughRoute {
            service: ObjectName::new("global", "tls"),
            host: None,
            port: 443,
            rules: Rules::new(
                true,
                vec![
                    Entry {
                        policy: ObjectName::new("istio-egress", "tls"),
                        index: 0,
                        clients: Clients::These(
                            [SpiffeId::new("cluster.local", "bookinfo", "productpage")
                                .expect("an id")]
                            .into(),
                        ),
                        methods: [].into(),
                        paths: [].into(),
                        ip_blocks: [].into(),
                        headers: Vec::new(),
                        dry_run: false,
                    }
                    .into(),
                ],
            ),
        };
    let gateway = ObjectName::new("istio-egress", "egress-vg");
    let gateway = served
        .policy
        .gateways
        .get_mut(&gateway)
        .expect("it is declared");
    for port in [ports.tls, ports.blind] {
        let listener = gateway.listeners.get_mut(&port).expect("it is declared");
        let host = HostPattern::parse("tls.localhost").expect("a host");
        let passthrough = Passthrough {
            served: Some(route.clone()),
        };
        listener.passthrough.insert(host, passthrough);
    }
    served
}

fn read(mut value: Value) -> Object {
    let kind = value["kind"].as_str().expect("a kind").to_owned();
    let version = if matches!(kind.as_str(), "Pod" | "ServiceAccount") {
        "v1"
    } else {
        "sallyport.dev/v1alpha1"
    };
    value["apiVersion"] = version.into();
    match kind.as_str() {
        "VirtualGateway" => Object::VirtualGateway(of(value)),
        "ExternalService" => Object::ExternalService(of(value)),
        "AccessPolicy" => Object::AccessPolicy(of(value)),
        "ServiceAccount" => Object::ServiceAccount(of(value)),
        "Pod" => Object::Pod(Box::new(of(value))),
        other => panic!("unexpected kind {other}"),
    }
}

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of its kind")
}
