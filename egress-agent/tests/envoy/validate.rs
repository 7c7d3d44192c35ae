//! Envoy's own judgement of what is rendered.

use std::fs;

use egress_agent::gateway::OutboundPolicy;
use egress_agent::gateway::envoy::Authorization;
use serde_json::{Value, json};

use crate::gateway::{Gateway, Objects, free_port};
use crate::mesh::Authority;
use crate::world::{BOTH, guide, start};

fn check(what: &str, objects: &Objects) {
    for authorization in BOTH {
        let port = objects.gateways[0].spec.listeners[0].port.number;
        let mut gateway = Gateway::prepare(port, &Authority::new("outside"), authorization);
        gateway.apply(objects);
        if let Err(complaint) = gateway.validate() {
            panic!("{what}: {complaint}");
        }
    }
}

fn exposing_all(services: &[(&str, Value)]) -> Objects {
    let mut objects = guide(free_port(), 443, 444, 8080);
    objects.gateways[0].spec.listeners[0].exposed_external_services =
        serde_json::from_value(json!([{ "host": "*" }])).expect("exposures");
    objects.services = services
        .iter()
        .map(|(name, spec)| {
            let object =
                json!({ "metadata": { "name": name, "namespace": "global" }, "spec": spec });
            let mut with_kind = object;
            with_kind["apiVersion"] = json!("sallyport.dev/v1alpha1");
            with_kind["kind"] = json!("ExternalService");
            serde_json::from_value(with_kind).expect("an external service")
        })
        .collect();
    objects.policies.clear();
    objects
}

#[test]
fn the_guide_is_valid() {
    check("the guide", &guide(free_port(), 443, 444, 8080));
}

#[test]
fn no_services_and_any_host_are_valid() {
    let mut objects = exposing_all(&[]);
    check("nothing", &objects);
    objects.outbound = OutboundPolicy::AllowAny;
    check("any host", &objects);
}

#[test]
fn every_protocol_is_valid() {
    let port = |number: u16, protocol: &str, tls: Value| {
        json!({ "number": number, "protocol": protocol, "clientsideTls": tls,
                "egressGatewayRoutes": { "portMatch": number } })
    };
    let long = format!(
        "{}.example",
        [["a"; 60].concat(), ["b"; 60].concat(), ["c"; 60].concat()].join(".")
    );
    let spec = json!({ "hosts": ["api.example", long], "ports": [
        port(80, "HTTP", Value::Null),
        port(81, "HTTP", json!({})),
        port(82, "HTTP2", Value::Null),
        port(83, "GRPC", json!({ "sni": "other.example" })),
        port(84, "HTTPS", json!({ "subjectAltNames": ["a.example", "spiffe://a/b"] })),
    ] });
    check("protocols", &exposing_all(&[("api", spec)]));
}

#[test]
fn long_policies_are_valid() {
    let mut objects = guide(free_port(), 443, 444, 8080);
    let long = format!("/{}*", "segment/".repeat(60));
    let entry = json!({
        "allowedClients": [{ "serviceAccountSelector": { "namespace": "bookinfo" } }],
        "allowedMethods": ["GET", "POST"],
        "allowedPaths": [long, "*.json", "*"],
        "allowedIpBlocks": ["10.0.0.0/8", "fd00::/8"],
        "match": { "request": { "headers": {
            "x-a": { "values": ["*", "a*", "*b", "c"], "notValues": ["d"] },
            "x-b": { "notValues": ["*"] },
        } } },
    });
    let mut dry = entry.clone();
    dry["dryRun"] = json!(true);
    objects.policies[0].spec.config = serde_json::from_value(
        json!({ "authzList": [entry, dry, {}, { "allowedClients": [{}] }] }),
    )
    .expect("entries");
    check("conditions", &objects);
}

#[test]
fn a_complaint_is_heard_and_what_was_good_stands() {
    let (mut gateway, mut objects, _) = start(Authorization::Rbac);
    assert_eq!(gateway.validate(), Ok(()));
    fs::remove_file(gateway.certs().join("outside.crt")).expect("it is there");
    let port = free_port();
    objects.services[1].spec.ports[0].number = port;
    gateway.apply(&objects);
    gateway.until("a complaint", || {
        gateway
            .server
            .nodes()
            .iter()
            .any(|it| !it.rejected.is_empty())
    });
    let complaint = gateway.validate().expect_err("its authority is gone");
    assert!(complaint.contains("outside.crt"), "{complaint}");
    assert!(
        gateway.server.metrics().contains(
            "sallyport_xds_rejected_total{gateway=\"istio-egress/egress-vg\",kind=\"Cluster\"} 1"
        ),
        "{}",
        gateway.server.metrics()
    );
    let answer = gateway.get("productpage", "api.localhost", "/");
    assert_eq!(answer.status, 200, "{answer:?}");
}
