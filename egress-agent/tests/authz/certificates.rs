//! The policy server gone, and certificates that are wrong, expired or renewed.

use std::time::{Duration, Instant, SystemTime};

use egress_agent::policy_server::authz::Binding;

use crate::client::Connection;
use crate::mesh::{Authority, Leaf};
use crate::objects::{GATEWAY_ID, PRODUCTPAGE};
use crate::policy_server::SERVER_ID;
use crate::world::{World, put};

fn get(world: &World) -> u16 {
    let answer = world.get("productpage", PRODUCTPAGE, "api.localhost", "/get");
    assert!([200, 403].contains(&answer.status), "{answer:?}");
    answer.status
}

/// A world in which gateway and server have these certificates.
fn world_of(make: impl Fn(&Authority) -> (Leaf, Leaf)) -> World {
    let mut world = World::prepare(Binding::Require);
    let (gateway, server) = make(&world.mesh);
    put(&world.gateway_certs(), &gateway, &world.mesh);
    put(&world.server_certs(), &server, &world.mesh);
    world.start_server();
    world.start_envoy();
    world
}

fn in_seconds(seconds: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(seconds)
}

#[test]
fn without_the_policy_server_the_gateway_refuses() {
    let mut world = World::start();
    let leaf = world.identity("productpage");
    let mut standing = world.connect(Some(&leaf), PRODUCTPAGE, world.ports.http, "gateway.test");
    let mut ask = || {
        let answer = standing.ask("GET", "api.localhost", "/get", "");
        answer.expect("an answer").status
    };
    assert_eq!((get(&world), ask()), (200, 200));
    world.server = None;
    for _ in 0..5 {
        assert_eq!((get(&world), ask()), (403, 403));
    }
    let entry = world.logged(|entry| entry["code"] == 403);
    assert_eq!(entry["details"], "ext_authz_error", "{entry:#}");
    assert!(entry["verdict"].is_null(), "{entry:#}");
    world.start_server();
    world.until("it serves again", || get(&world) == 200);
    assert_eq!(ask(), 200);
}

#[test]
fn a_server_that_is_told_to_stop_does_so_though_gateways_are_connected() {
    let mut world = World::start();
    assert_eq!(get(&world), 200);
    assert!(world.metric("sallyport_policy_connections ") > 0);
    let begin = Instant::now();
    world.server.take().expect("it runs").stop();
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(get(&world), 403);
    world.start_server();
    world.until("it serves again", || get(&world) == 200);
}

#[test]
fn a_gateway_started_first_waits_for_the_server() {
    let mut world = World::prepare(Binding::Require);
    let own = world.mesh.sign(&["gateway.test"], &[GATEWAY_ID]);
    put(&world.gateway_certs(), &own, &world.mesh);
    put(
        &world.server_certs(),
        &world.mesh.sign(&[], &[SERVER_ID]),
        &world.mesh,
    );
    world.start_envoy();
    assert_eq!(get(&world), 403);
    world.start_server();
    world.until("it serves", || get(&world) == 200);
}

#[test]
fn a_server_that_is_another_is_asked_nothing() {
    let outsider = Authority::new("outsider");
    for (what, server) in [
        (
            "another account",
            "spiffe://cluster.local/ns/bookinfo/sa/productpage",
        ),
        (
            "another namespace",
            "spiffe://cluster.local/ns/default/sa/sallyport-agent",
        ),
        (
            "another trust domain",
            "spiffe://other.domain/ns/sallyport-system/sa/sallyport-agent",
        ),
    ] {
        let world = world_of(|mesh| {
            (
                mesh.sign(&["gateway.test"], &[GATEWAY_ID]),
                mesh.sign(&[], &[server]),
            )
        });
        for _ in 0..3 {
            assert_eq!(get(&world), 403, "{what}");
        }
        // The right one takes its place without a restart.
        put(
            &world.server_certs(),
            &world.mesh.sign(&[], &[SERVER_ID]),
            &world.mesh,
        );
        world.until("it is believed", || get(&world) == 200);
    }
    let world = world_of(|mesh| {
        (
            mesh.sign(&["gateway.test"], &[GATEWAY_ID]),
            outsider.sign(&[], &[SERVER_ID]),
        )
    });
    assert_eq!(get(&world), 403);
    assert_eq!(world.metric("sallyport_access_decisions_total"), 0);
}

#[test]
fn a_gateway_that_is_none_is_refused() {
    for (what, id) in [
        (
            "an application",
            "spiffe://cluster.local/ns/bookinfo/sa/productpage",
        ),
        (
            "a namesake",
            "spiffe://cluster.local/ns/bookinfo/sa/istio-egressgateway",
        ),
        (
            "another trust domain",
            "spiffe://other.domain/ns/istio-egress/sa/istio-egressgateway",
        ),
    ] {
        let world = world_of(|mesh| {
            (
                mesh.sign(&["gateway.test"], &[id]),
                mesh.sign(&[], &[SERVER_ID]),
            )
        });
        assert_eq!(get(&world), 403, "{what}");
        // It is counted after the gateway has seen it.
        world.until(what, || {
            let callers = world.metric("sallyport_policy_callers_refused_total");
            callers + world.metric("sallyport_policy_connections_refused_total") > 0
        });
        assert_eq!(world.metric("sallyport_access_decisions_total"), 0);
    }
}

#[test]
fn an_expired_gateway_is_refused_until_it_has_a_new_certificate() {
    let world = world_of(|mesh| {
        let gateway = mesh.sign_until(&["gateway.test"], &[GATEWAY_ID], Some(in_seconds(6)));
        (gateway, mesh.sign(&[], &[SERVER_ID]))
    });
    assert_eq!(get_trusting_the_past(&world), 200);
    // The connection that stands ends with the certificate that made it.
    world.until("its time is over", || get_trusting_the_past(&world) == 403);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(get_trusting_the_past(&world), 403);
    let refused = "sallyport_policy_connections_refused_total{reason=\"handshake\"}";
    assert!(world.metric(refused) > 0, "{}", world.server().metrics());
    let renewed = world.mesh.sign(&["gateway.test"], &[GATEWAY_ID]);
    put(&world.gateway_certs(), &renewed, &world.mesh);
    world.until("it serves again", || get_trusting_the_past(&world) == 200);
}

/// As [`get`], from a client that does not mind the gateway's certificate.
fn get_trusting_the_past(world: &World) -> u16 {
    let leaf = world.identity("productpage");
    world
        .connect_blindly(&leaf, PRODUCTPAGE)
        .ask("GET", "api.localhost", "/get", "")
        .expect("an answer")
        .status
}

#[test]
fn no_request_is_lost_when_a_renewed_certificate_expires() {
    let world = world_of(|mesh| {
        let gateway = mesh.sign_until(&["gateway.test"], &[GATEWAY_ID], Some(in_seconds(9)));
        (gateway, mesh.sign(&[], &[SERVER_ID]))
    });
    let leaf = world.identity("productpage");
    let connect = || world.connect(Some(&leaf), PRODUCTPAGE, world.ports.http, "gateway.test");
    // Envoy has connected to the policy server by the certificate that ends.
    assert_eq!(get(&world), 200);
    let clients: [Connection; 4] = std::array::from_fn(|_| connect());
    let over = Instant::now() + Duration::from_secs(12);
    let asking = clients.map(|mut client| {
        std::thread::spawn(move || {
            let mut asked = 0;
            while Instant::now() < over {
                let answer = client.ask("GET", "api.localhost", "/get", "");
                let answer = answer.expect("the client's own connection stands");
                assert_eq!(answer.status, 200, "after {asked}: {answer:?}");
                asked += 1;
            }
            asked
        })
    });
    let renewed = world.mesh.sign(&["gateway.test"], &[GATEWAY_ID]);
    put(&world.gateway_certs(), &renewed, &world.mesh);
    for asking in asking {
        let asked = asking.join().expect("every request was answered");
        assert!(asked > 100, "{asked}");
    }
    let refused = world.metric("sallyport_policy_connections_refused_total");
    assert_eq!(refused, 0, "{}", world.server().metrics());
}

#[test]
fn the_servers_certificate_is_renewed_without_a_restart() {
    let world = world_of(|mesh| {
        let server = mesh.sign_until(&[], &[SERVER_ID], Some(in_seconds(3600)));
        (mesh.sign(&["gateway.test"], &[GATEWAY_ID]), server)
    });
    let expiry = || {
        let metrics = world.server().metrics();
        let line = "sallyport_policy_certificate_expiry_timestamp_seconds ";
        let value = metrics.lines().find_map(|it| it.strip_prefix(line));
        value.expect("a metric").parse::<f64>().expect("a number")
    };
    assert_eq!(get(&world), 200);
    let before = expiry();
    // One that has expired already: the good one stands.
    let past = Some(SystemTime::now() - Duration::from_mins(1));
    put(
        &world.server_certs(),
        &world.mesh.sign_until(&[], &[SERVER_ID], past),
        &world.mesh,
    );
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(get(&world), 200);
    assert!((expiry() - before).abs() < 1.0, "{before}");
    let renewed = world
        .mesh
        .sign_until(&[], &[SERVER_ID], Some(in_seconds(7200)));
    put(&world.server_certs(), &renewed, &world.mesh);
    world.until("the new one is in use", || {
        assert_eq!(get(&world), 200);
        expiry() > before + 3000.0
    });
    assert_eq!(get(&world), 200);
}
