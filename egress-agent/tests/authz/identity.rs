//! Clients that are not who they say, or can't prove it.

use egress_agent::policy_server::authz::Binding;

use crate::objects::{GATEWAY, NOBODY, PRODUCTPAGE, REVIEWS};
use crate::world::World;

fn refused(world: &World, reason: &str) -> u64 {
    world.metric(&format!(
        "sallyport_access_decisions_total{{gateway=\"istio-egress/egress-vg\",verdict=\"denied\",\
         reason=\"{reason}\""
    ))
}

#[test]
fn a_stolen_certificate_is_of_no_use_elsewhere() {
    // From where productpage's certificate is used, and what comes of it by setting.
    let rows = [
        (PRODUCTPAGE, [200, 200, 200]),
        (REVIEWS, [403, 403, 200]),
        (GATEWAY, [403, 403, 200]),
        (NOBODY, [403, 200, 200]),
    ];
    let settings = [Binding::Require, Binding::Prefer, Binding::Off];
    for (at, binding) in settings.into_iter().enumerate() {
        let world = World::start_with(binding);
        for (from, expected) in rows {
            let answer = world.get("productpage", from, "api.localhost", "/get");
            assert_eq!(
                answer.status, expected[at],
                "{binding:?} from {from}: {answer:?}"
            );
        }
        let stolen = if binding == Binding::Off { 0 } else { 2 };
        assert_eq!(refused(&world, "stolen-identity"), stolen);
        let unknown = u64::from(binding == Binding::Require);
        assert_eq!(refused(&world, "unknown-address"), unknown);
        let entry = world.logged(|entry| entry["from"] == REVIEWS);
        let reason = if stolen == 0 {
            "admitted"
        } else {
            "stolen-identity"
        };
        assert_eq!(entry["reason"], reason, "{entry:#}");
    }
}

#[test]
fn no_header_makes_a_client() {
    let world = World::start();
    let forged = format!(
        "x-forwarded-for: {PRODUCTPAGE}\r\n\
         x-real-ip: {PRODUCTPAGE}\r\n\
         x-envoy-external-address: {PRODUCTPAGE}\r\n\
         x-envoy-downstream-service-cluster: productpage\r\n\
         x-forwarded-client-cert: By=x;URI=spiffe://cluster.local/ns/bookinfo/sa/productpage\r\n\
         x-forwarded-host: open.localhost\r\n\
         x-envoy-original-path: /get\r\n"
    );
    for port in [world.ports.http, world.ports.raw] {
        let ask = |account, from| world.ask(account, from, port, "api.localhost", "/get", &forged);
        assert!(ask("reviews", REVIEWS).is_denied());
        // The address in the header is productpage's; that of the connection is not.
        assert!(ask("productpage", REVIEWS).is_denied());
        assert!(ask("productpage", NOBODY).is_denied());
        assert_eq!(ask("productpage", PRODUCTPAGE).status, 200);
    }
    assert_eq!(refused(&world, "stolen-identity"), 2);
    assert_eq!(refused(&world, "unknown-address"), 2);
    // Nor does a header of the client's take its own address from it.
    let stranger = format!("x-forwarded-for: {NOBODY}\r\n");
    let answer = world.ask(
        "productpage",
        PRODUCTPAGE,
        world.ports.http,
        "api.localhost",
        "/get",
        &stranger,
    );
    assert_eq!(answer.status, 200);
}

#[test]
fn who_proves_nothing_is_refused() {
    let world = World::start();
    let ask = |leaf: Option<_>, expected: &str| {
        let before = refused(&world, expected);
        let answer = world
            .connect(
                leaf.as_ref(),
                PRODUCTPAGE,
                world.ports.simple,
                "gateway.test",
            )
            .ask("GET", "open.localhost", "/", "")
            .expect("an answer");
        assert!(answer.is_denied(), "{expected}: {answer:?}");
        assert_eq!(refused(&world, expected), before + 1, "{expected}");
    };
    ask(None, "no-principal");
    let sign = |hosts: &[&str], uris: &[&str]| Some(world.mesh.sign(hosts, uris));
    ask(sign(&["productpage.bookinfo.svc"], &[]), "bad-principal");
    ask(
        sign(&[], &["https://cluster.local/ns/bookinfo/sa/productpage"]),
        "bad-principal",
    );
    for uri in [
        "spiffe://cluster.local/ns/bookinfo/sa/productpage/x",
        "spiffe://cluster.local/x/ns/bookinfo/sa/productpage",
        "spiffe://cluster.local/ns/bookinfo/sa/Productpage",
        "spiffe://cluster.local/ns/bookinfo/sa/product%70age",
        "spiffe://cluster.local:443/ns/bookinfo/sa/productpage",
    ] {
        ask(sign(&[], &[uri]), "bad-principal");
    }
    for uri in [
        "spiffe://other.domain/ns/bookinfo/sa/productpage",
        "spiffe://cluster.local/ns/default/sa/productpage",
        "spiffe://cluster.local/ns/bookinfo/sa/productpage2",
    ] {
        ask(sign(&[], &[uri]), "stolen-identity");
    }
    // The same way in, with an identity.
    let leaf = world.identity("productpage");
    let answer = world
        .connect(Some(&leaf), PRODUCTPAGE, world.ports.simple, "gateway.test")
        .ask("GET", "open.localhost", "/", "")
        .expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
}
