//! Connections whose contents nobody looks into, by server name.

use crate::mesh::Leaf;
use crate::objects::{PRODUCTPAGE, REVIEWS};
use crate::world::World;

/// Whether bytes go through to the outside server and back.
fn passes(world: &World, leaf: &Leaf, from: &str, port: u16, sni: &str) -> bool {
    world
        .connect(Some(leaf), from, port, sni)
        .ask("GET", "whatever", "/", "")
        .is_ok_and(|answer| answer.status == 200)
}

#[test]
fn the_server_name_decides() {
    let world = World::start();
    for (account, from, sni, expected) in [
        ("productpage", PRODUCTPAGE, "tls.localhost", "admitted"),
        ("productpage", PRODUCTPAGE, "TLS.localhost", "admitted"),
        ("reviews", REVIEWS, "tls.localhost", "not-admitted"),
        ("productpage", REVIEWS, "tls.localhost", "stolen-identity"),
        (
            "productpage",
            PRODUCTPAGE,
            "a.tls.localhost",
            "unknown-host",
        ),
        // Served for requests, of which there are none here.
        ("productpage", PRODUCTPAGE, "open.localhost", "unknown-host"),
        ("productpage", PRODUCTPAGE, "gateway.test", "unknown-host"),
    ] {
        let before = world.access_log().len();
        let leaf = world.identity(account);
        let passed = passes(&world, &leaf, from, world.ports.tls, sni);
        assert_eq!(
            passed,
            expected == "admitted",
            "{account} {sni}: {}",
            world.log()
        );
        world.until("the access log has it", || {
            world.access_log().len() > before
        });
        let entry = world.access_log()[before].clone();
        assert_eq!(entry["reason"], expected, "{entry:#}");
        assert_eq!(entry["from"], from, "{entry:#}");
        if passed {
            assert_eq!(entry["object"], "AccessPolicy/istio-egress/tls#0");
            assert_eq!(entry["service"], "ExternalService/global/tls");
        }
    }
}

#[test]
fn a_gateway_that_does_not_tell_the_server_name_is_refused() {
    let world = World::start();
    let leaf = world.identity("productpage");
    assert!(!passes(
        &world,
        &leaf,
        PRODUCTPAGE,
        world.ports.blind,
        "tls.localhost"
    ));
    let entry = world.logged(|entry| entry["port"] == world.ports.blind);
    assert_eq!(entry["reason"], "no-server-name", "{entry:#}");
}

#[test]
fn without_the_policy_server_nothing_passes() {
    let mut world = World::start();
    let leaf = world.identity("productpage");
    let pass = |world: &World| passes(world, &leaf, PRODUCTPAGE, world.ports.tls, "tls.localhost");
    assert!(pass(&world));
    world.server = None;
    assert!(!pass(&world));
    world.start_server();
    world.until("it passes again", || pass(&world));
}
