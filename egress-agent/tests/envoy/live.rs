//! What changes while Envoy runs.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use egress_agent::gateway::envoy::Authorization;

use crate::gateway::{GATEWAY_ID, Gateway, Objects, free_port};
use crate::mesh::Leaf;
use crate::world::{BOTH, guide, outside, start};

#[test]
fn a_new_policy_holds_for_the_next_request_of_a_standing_connection() {
    for authorization in BOTH {
        a_new_policy_holds_for_the_next_request_of_a_standing_connection_by(authorization);
    }
}

fn a_new_policy_holds_for_the_next_request_of_a_standing_connection_by(
    authorization: Authorization,
) {
    let (mut gateway, mut objects, _) = start(authorization);
    let leaf = gateway.identity("reviews");
    let mut standing = gateway.connect(Some(&leaf));
    assert!(
        standing
            .ask("GET", "api.localhost", "/", "")
            .expect("an answer")
            .is_denied()
    );
    let closed = objects.clone();
    let entry = objects.policies[0]
        .spec
        .config
        .authz
        .as_mut()
        .expect("it has one");
    entry.allowed_clients[0]
        .service_account_selector
        .labels
        .clear();
    gateway.apply(&objects);
    gateway.until("reviews gets through", || {
        gateway.get("reviews", "api.localhost", "/").status == 200
    });
    assert_eq!(
        standing
            .ask("GET", "api.localhost", "/", "")
            .expect("an answer")
            .status,
        200
    );
    gateway.apply(&closed);
    gateway.until("reviews is cut", || {
        gateway.get("reviews", "api.localhost", "/").is_denied()
    });
    assert!(
        standing
            .ask("GET", "api.localhost", "/", "")
            .expect("an answer")
            .is_denied()
    );
}

#[test]
fn a_gateway_that_is_gone_listens_no_more() {
    for authorization in BOTH {
        a_gateway_that_is_gone_listens_no_more_by(authorization);
    }
}

fn a_gateway_that_is_gone_listens_no_more_by(authorization: Authorization) {
    let (mut gateway, _, _) = start(authorization);
    assert_eq!(
        gateway.get("ratings", "open.localhost:8080", "/").status,
        200
    );
    gateway.apply(&Objects::default());
    gateway.until("the port is closed", || {
        TcpStream::connect(("127.0.0.1", gateway.port)).is_err()
    });
}

#[test]
fn a_rotated_certificate_is_taken() {
    for authorization in BOTH {
        a_rotated_certificate_is_taken_by(authorization);
    }
}

fn a_rotated_certificate_is_taken_by(authorization: Authorization) {
    let (gateway, _, _) = start(authorization);
    let leaf = gateway.identity("ratings");
    let serial = || gateway.connect(Some(&leaf)).server_certificate();
    let before = serial();
    assert_eq!(before, serial());
    let renewed = gateway.mesh.sign(&["gateway.test"], &[GATEWAY_ID]);
    put(gateway.certs(), &renewed);
    gateway.until("the new certificate", || serial() != before);
    assert_eq!(
        gateway.get("ratings", "open.localhost:8080", "/").status,
        200
    );
}

fn put(certs: &Path, leaf: &Leaf) {
    for (name, content) in [("tls.crt", &leaf.pem), ("tls.key", &leaf.key_pem)] {
        let draft = certs.join("draft");
        fs::write(&draft, content).expect("a file");
        fs::rename(&draft, certs.join(name)).expect("a file in place");
    }
}

/// Envoy must also prove itself to the policy server with the certificate that is there now, not
/// with the one it was started with.
#[test]
fn a_renewed_certificate_reaches_the_policy_server() {
    let outside = outside();
    let port = free_port();
    let objects = guide(port, outside.secure, outside.wrong, outside.plain);
    let mut gateway = Gateway::prepare(port, &outside.authority, Authorization::Rbac);
    let end = SystemTime::now() + Duration::from_secs(6);
    let first = gateway
        .mesh
        .sign_until(&["gateway.test"], &[GATEWAY_ID], Some(end));
    put(gateway.certs(), &first);
    gateway.apply(&objects);
    gateway.run();
    let connected = || !gateway.server.nodes().is_empty();
    gateway.until("it is connected", connected);
    gateway.until("its time is over", || !connected());
    let renewed = gateway.mesh.sign(&["gateway.test"], &[GATEWAY_ID]);
    put(gateway.certs(), &renewed);
    gateway.until("it is connected again", connected);
    assert_eq!(
        gateway.get("ratings", "open.localhost:8080", "/").status,
        200
    );
}
