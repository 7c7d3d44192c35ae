//! Envoy's own judgement of what is rendered.

use serde_json::{Value, json};

use egress_agent::gateway::OutboundPolicy;

use crate::gateway::{Gateway, Objects, free_port};
use crate::mesh::Authority;
use crate::world::guide;

fn check(what: &str, objects: &Objects) {
    let mut gateway = Gateway::prepare(free_port(), &Authority::new("outside"));
    gateway.apply(objects);
    if let Err(complaint) = gateway.validate() {
        panic!("{what}: {complaint}");
    }
}

fn exposing_all(services: &[(&str, Value)]) -> Objects {
    let mut objects = guide(15443, 443, 444, 8080);
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
    check("the guide", &guide(15443, 443, 444, 8080));
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
    let mut objects = guide(15443, 443, 444, 8080);
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
fn a_complaint_is_heard() {
    let mut gateway = Gateway::prepare(free_port(), &Authority::new("outside"));
    gateway.apply(&guide(15443, 443, 444, 8080));
    assert_eq!(gateway.validate(), Ok(()));
    std::fs::remove_file(gateway.certs().join("outside.crt")).expect("it is there");
    let complaint = gateway.validate().expect_err("its authority is gone");
    assert!(complaint.contains("outside.crt"), "{complaint}");
}
