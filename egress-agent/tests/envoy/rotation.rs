//! Authorities that follow each other, on both sides of both connections: clients to the gateway,
//! and the gateway to its policy server.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use egress_agent::gateway::envoy::Authorization;
use egress_agent::policy_server::authz::Binding;

use crate::client::Connection;
use crate::gateway::{GATEWAY_ID, Gateway};
use crate::mesh::{Authority, Leaf, client_config_of};
use crate::policy_server::{SERVER_ID, Server};
use crate::world::{BOTH, start};

/// Puts a file in its place, whole.
fn put(directory: &Path, name: &str, content: &str) {
    let draft = directory.join("draft");
    fs::write(&draft, content).expect("a file");
    fs::rename(&draft, directory.join(name)).expect("a file in place");
}

/// Both the gateway and the policy server take these authorities from now on.
fn trust(gateway: &Gateway, authorities: &[&Authority]) {
    let pem: String = authorities.iter().map(|one| one.pem()).collect();
    for directory in [gateway.certs(), &gateway.agent_certs()] {
        put(directory, "ca.crt", &pem);
    }
}

fn bear(directory: &Path, leaf: &Leaf) {
    put(directory, "tls.key", &leaf.key_pem);
    put(directory, "tls.crt", &leaf.pem);
}

fn connect(gateway: &Gateway, leaf: &Leaf, trusts: &[&Authority]) -> Connection {
    gateway.connect_by(client_config_of(trusts, Some(leaf)))
}

/// Whether a client with this certificate, who trusts these, has its request answered.
fn enters(gateway: &Gateway, leaf: &Leaf, trusts: &[&Authority]) -> bool {
    connect(gateway, leaf, trusts)
        .ask("GET", "open.localhost:8080", "/", "")
        .is_ok_and(|answer| answer.status == 200)
}

#[test]
fn one_authority_follows_another_and_nothing_is_dropped() {
    for authorization in BOTH {
        one_authority_follows_another_and_nothing_is_dropped_by(authorization);
    }
}

fn one_authority_follows_another_and_nothing_is_dropped_by(authorization: Authorization) {
    let (mut gateway, objects, _) = start(authorization);
    let next = Authority::new("next");
    let old_leaf = gateway.identity("productpage");
    let new_leaf = next.identity("bookinfo", "productpage");

    // Asks all the while, on one connection.
    let mut standing = connect(&gateway, &old_leaf, &[&gateway.mesh]);
    let over = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicU32::new(0));
    let (told, count) = (over.clone(), asked.clone());
    let asking = thread::spawn(move || {
        while !told.load(Ordering::Relaxed) {
            let answer = standing.ask("GET", "api.localhost", "/", "");
            let answer = answer.expect("the connection stands");
            assert_eq!(answer.status, 200, "{answer:?}");
            count.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(5));
        }
    });
    // At each step, however slow the machine is.
    let goes_on = |gateway: &Gateway| {
        let before = asked.load(Ordering::Relaxed);
        let more = || asked.load(Ordering::Relaxed) > before + 5;
        gateway.until("the standing connection goes on", more);
    };

    assert!(enters(&gateway, &old_leaf, &[&gateway.mesh]));
    assert!(!enters(&gateway, &new_leaf, &[&gateway.mesh]), "not yet");
    trust(&gateway, &[&gateway.mesh, &next]);
    gateway.until("both are trusted", || {
        enters(&gateway, &new_leaf, &[&gateway.mesh])
    });
    assert!(enters(&gateway, &old_leaf, &[&gateway.mesh]));
    goes_on(&gateway);

    bear(
        gateway.certs(),
        &next.sign(&["gateway.test"], &[GATEWAY_ID]),
    );
    bear(&gateway.agent_certs(), &next.sign(&[], &[SERVER_ID]));
    gateway.until("the gateway has its new certificate", || {
        enters(&gateway, &old_leaf, &[&next])
    });
    goes_on(&gateway);

    trust(&gateway, &[&next]);
    gateway.until("the old authority is gone", || {
        !enters(&gateway, &old_leaf, &[&next])
    });
    assert!(enters(&gateway, &new_leaf, &[&next]));
    goes_on(&gateway);

    // A policy server that starts now, and so connections that begin now.
    let address = gateway.server.address;
    if authorization == Authorization::Rbac {
        gateway.server.kill();
        let certs = gateway.agent_certs();
        gateway.server = Server::start(address, &certs, Binding::Off);
    }
    let mut opened = objects.clone();
    opened.policies.clear();
    gateway.apply(&opened);
    let reviews = next.identity("bookinfo", "reviews");
    gateway.until("policy still reaches the gateway", || {
        connect(&gateway, &reviews, &[&next])
            .ask("GET", "api.localhost", "/", "")
            .is_ok_and(|answer| answer.status == 200)
    });
    goes_on(&gateway);
    over.store(true, Ordering::Relaxed);
    asking.join().expect("no request failed");
}
