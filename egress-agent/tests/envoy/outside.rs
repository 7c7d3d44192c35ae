//! Servers outside have to prove who they are before anything is sent to them.

use std::time::{Duration, SystemTime};

use egress_agent::gateway::envoy::Authorization;
use serde_json::{Value, json};

use crate::gateway::{Gateway, Objects, free_port};
use crate::mesh::Authority;
use crate::upstream;
use crate::world::guide;

/// A host that the gateway asks by TLS.
fn service(name: &str, host: &str, port: u16, tls: &Value) -> Value {
    json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": "ExternalService",
        "metadata": { "name": name, "namespace": "global" },
        "spec": { "hosts": [host], "ports": [{
            "number": port, "protocol": "HTTPS", "clientsideTls": tls,
            "egressGatewayRoutes": { "portMatch": 80 },
        }] },
    })
}

fn objects(listener: u16, services: Vec<Value>) -> Objects {
    let mut objects = guide(listener, 443, 444, 8080);
    objects.policies.clear();
    let services = services.into_iter().map(serde_json::from_value);
    objects.services = services.collect::<Result<_, _>>().expect("services");
    objects
}

#[test]
fn who_proves_to_be_another_is_sent_nothing() {
    let (outside, stranger) = (Authority::new("outside"), Authority::new("stranger"));
    let past = SystemTime::now() - Duration::from_mins(1);
    let (own, own_names) = upstream::serve_tls_named(&outside.sign(&["own.localhost"], &[]));
    let (other, other_names) = upstream::serve_tls_named(&outside.sign(&["other.example"], &[]));
    let foreign = upstream::serve_tls(&stranger.sign(&["foreign.localhost"], &[]));
    let expired = upstream::serve_tls(&outside.sign_until(&["expired.localhost"], &[], Some(past)));
    let misnamed = upstream::serve_tls(&outside.sign(&["misnamed.localhost"], &[]));
    let plain = upstream::serve_plain();
    let idna = upstream::serve_tls(&outside.sign(&["xn--bcher-kva.localhost"], &[]));
    let names = json!({ "sni": "sni.example", "subjectAltNames": ["other.example"] });
    let wrong = json!({ "subjectAltNames": ["own.localhost"] });
    let own_name = json!({});
    let port = free_port();
    let services = [
        ("own", "own.localhost", own, &own_name),
        ("other", "other.localhost", other, &names),
        ("foreign", "foreign.localhost", foreign, &own_name),
        ("expired", "expired.localhost", expired, &own_name),
        ("misnamed", "misnamed.localhost", misnamed, &wrong),
        ("plain", "plain.localhost", plain, &own_name),
        ("idna", "bücher.localhost", idna, &own_name),
    ];
    let services = services.map(|(name, host, port, tls)| service(name, host, port, tls));
    let objects = objects(port, services.into());
    let gateway = Gateway::start(port, &objects, &outside, Authorization::Rbac);
    for (host, status) in [
        ("own.localhost", 200),
        ("other.localhost", 200),
        ("xn--bcher-kva.localhost", 200),
        ("XN--BCHER-KVA.localhost.:80", 200),
        ("foreign.localhost", 503),
        ("expired.localhost", 503),
        ("misnamed.localhost", 503),
        ("plain.localhost", 503),
    ] {
        let answer = gateway.get("reviews", host, "/");
        assert_eq!(answer.status, status, "{host}: {answer:?}");
    }
    // A name outside ASCII is none in a request.
    let answer = gateway.ask("reviews", "GET", "bücher.localhost", "/", "");
    assert!(answer.is_ok_and(|answer| [400, 403].contains(&answer.status)));
    for (names, expected) in [(own_names, "own.localhost"), (other_names, "sni.example")] {
        assert_eq!(*names.lock().expect("no panic"), [expected]);
    }
    // Why not is in the log.
    for host in [
        "foreign.localhost",
        "expired.localhost",
        "misnamed.localhost",
    ] {
        let line = |line: &Value| line["authority"] == host && line["response_code"] == 503;
        gateway.until("the access log has it", || {
            gateway.access_log().iter().any(line)
        });
        let log = gateway.access_log();
        let line = log.iter().find(|it| line(it)).expect("it is there");
        let reason = line["upstream_transport_failure_reason"].to_string();
        assert!(reason.contains("CERTIFICATE_VERIFY_FAILED"), "{line}");
    }
}
