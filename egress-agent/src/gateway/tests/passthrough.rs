//! Connections that are passed on as they are.

use serde_json::{Value, json};

use super::super::access::AccessReason::{
    self, Admitted, BadHost, NoListener, NoPolicy, NotAdmitted, TrustDomain, UnknownHost,
};
use super::super::policy::Effect::{self, Ignored, Refused};
use super::super::{Connection, Decision, ObjectName, SpiffeId, decide_connection};
use super::{PORT, World, mk_authz, mk_client, mk_https, mk_id};

fn mk_port(number: u16, protocol: &str) -> Value {
    json!({ "number": number, "protocol": protocol, "egressGatewayRoutes": {} })
}

/// `db.org` and everything below `wild.org` passed on, `api.wild.org` served for requests.
fn mk_world() -> World {
    let db = json!({ "hosts": ["db.org"], "ports": [mk_port(5432, "TCP")] });
    let wild = json!({ "hosts": ["*.wild.org"], "ports": [mk_port(443, "TLS")] });
    World::exposing(&["*.org"])
        .service_spec("db", db)
        .service_spec("wild", wild)
        .service("api", &["api.wild.org"])
}

fn connect_as(world: &World, client: &SpiffeId, sni: &str) -> Decision {
    let gateway = ObjectName::new("istio-egress", "egress-vg");
    let (policy, _) = world.compile();
    let connection = Connection {
        gateway: &gateway,
        listener: PORT,
        client,
        client_ip: [10, 1, 2, 3].into(),
        sni,
    };
    let decision = decide_connection(&policy, &connection);
    let allows = matches!(decision.reason, Admitted | NoPolicy);
    assert_eq!(decision.allowed, allows, "{decision:?}");
    decision
}

fn connect(world: &World, account: &str, sni: &str) -> AccessReason {
    connect_as(world, &mk_id(account), sni).reason
}

fn has(world: &World, effect: Effect, field: &str, word: &str) {
    let (_, problems) = world.compile();
    let found = problems
        .iter()
        .any(|it| it.effect == effect && it.field.ends_with(field) && it.reason.contains(word));
    assert!(found, "{field} {word}: {problems:?}");
}

#[test]
fn the_server_name_tells_the_host() {
    let world = mk_world();
    assert_eq!(world.compile().1, []);
    for (sni, expected) in [
        ("db.org", NoPolicy),
        ("DB.org", NoPolicy),
        ("x.wild.org", NoPolicy),
        ("x.y.wild.org", NoPolicy),
        ("wild.org", UnknownHost),
        ("other.org", UnknownHost),
        ("db.com", UnknownHost),
        // Of a host that is served for requests nothing is passed on.
        ("api.wild.org", UnknownHost),
        ("db.org.", BadHost),
        ("10.0.0.1", BadHost),
        ("", BadHost),
    ] {
        assert_eq!(connect(&world, "ratings", sni), expected, "{sni}");
    }
    let stranger = SpiffeId::new("other.local", "bookinfo", "ratings").unwrap();
    assert_eq!(connect_as(&world, &stranger, "db.org").reason, TrustDomain);
    let decision = connect_as(&world, &mk_id("ratings"), "db.org");
    assert_eq!(decision.service, Some(ObjectName::new("global", "db")));
}

#[test]
fn a_wildcard_of_requests_is_no_way_around_a_name_that_is_passed_on() {
    let world = World::exposing(&["*.org"])
        .service("all", &["*.org"])
        .service_spec(
            "db",
            json!({ "hosts": ["db.org"], "ports": [mk_port(443, "TLS")] }),
        )
        .policy(mk_authz(
            "a",
            "db",
            json!({ "allowedClients": mk_client("reviews") }),
        ));
    assert_eq!(world.get("ratings", "x.org").reason, NoPolicy);
    assert_eq!(world.get("reviews", "db.org").reason, UnknownHost);
    assert_eq!(connect(&world, "reviews", "db.org"), Admitted);
    assert_eq!(connect(&world, "ratings", "db.org"), NotAdmitted);
    assert_eq!(connect(&world, "ratings", "x.org"), UnknownHost);
}

#[test]
fn a_listener_has_one_port_for_a_name() {
    let two = json!({ "hosts": ["db.org"], "ports": [mk_port(443, "TLS"), mk_port(5432, "TCP")] });
    let world = World::exposing(&["*.org"])
        .service_spec("db", two)
        .service_spec(
            "all",
            json!({ "hosts": ["*.org"], "ports": [mk_port(443, "TLS")] }),
        );
    has(
        &world,
        Refused,
        "listeners",
        "port 443 of global/db, port 5432 of global/db",
    );
    assert_eq!(connect(&world, "ratings", "db.org"), UnknownHost);
    assert_eq!(connect(&world, "ratings", "x.org"), NoPolicy);

    let mut elsewhere = mk_port(5432, "TCP");
    elsewhere["egressGatewayRoutes"]["virtualGatewayRefs"] =
        json!([{ "name": "other", "namespace": "n" }]);
    let apart = json!({ "hosts": ["db.org"], "ports": [mk_port(443, "TLS"), elsewhere] });
    let world = World::exposing(&["*.org"]).service_spec("db", apart);
    assert_eq!(world.compile().1, []);
    assert_eq!(connect(&world, "ratings", "db.org"), NoPolicy);
}

#[test]
fn requests_stand_where_both_are_declared() {
    let both = json!({ "hosts": ["api.org"], "ports": [mk_https(), mk_port(8443, "TLS")] });
    let world = World::exposing(&["*.org"]).service_spec("api", both);
    has(&world, Refused, "listeners", "served for requests");
    assert_eq!(world.get("ratings", "api.org").reason, NoPolicy);
    assert_eq!(connect(&world, "ratings", "api.org"), UnknownHost);
}

#[test]
fn what_can_not_be_passed_on() {
    let with = |hosts: Value, change: &dyn Fn(&mut Value)| {
        let mut port = mk_port(443, "TLS");
        change(&mut port);
        World::exposing(&["*"]).service_spec("db", json!({ "hosts": hosts, "ports": [port] }))
    };
    let world = with(json!(["*"]), &|_| {});
    has(&world, Refused, "ports[0]", "can't be passed on");
    assert_eq!(connect(&world, "ratings", "db.org"), UnknownHost);
    let world = with(json!(["db.org"]), &|port| port["clientsideTls"] = json!({}));
    has(&world, Refused, "clientsideTls", "client's own");
    assert_eq!(connect(&world, "ratings", "db.org"), UnknownHost);
    let world = with(json!(["db.org"]), &|port| {
        port["egressGatewayRoutes"]["portMatch"] = json!(80);
    });
    has(&world, Ignored, "portMatch", "port 443");
    assert_eq!(connect(&world, "ratings", "db.org"), NoPolicy);
    let world = with(json!(["db.org"]), &|port| {
        port["egressGatewayRoutes"]["portMatch"] = json!(443);
        port["protocol"] = json!("HTTPS");
    });
    assert_eq!(world.compile().1, []);
    assert_eq!(connect(&world, "ratings", "db.org"), NoPolicy);
}

#[test]
fn an_entry_about_requests_admits_no_connection() {
    for (condition, expected) in [
        (json!({ "allowedMethods": ["GET"] }), NotAdmitted),
        (json!({ "allowedPaths": ["*"] }), NotAdmitted),
        (
            json!({ "match": { "request": { "headers": { "x": { "notValues": ["y"] } } } } }),
            NotAdmitted,
        ),
        (json!({ "allowedIpBlocks": ["10.1.0.0/16"] }), Admitted),
        (json!({ "allowedIpBlocks": ["10.2.0.0/16"] }), NotAdmitted),
        (json!({}), Admitted),
    ] {
        let mut authz = condition.clone();
        authz["allowedClients"] = mk_client("ratings");
        let world = mk_world().policy(mk_authz("a", "db", authz));
        assert_eq!(
            connect(&world, "ratings", "db.org"),
            expected,
            "{condition}"
        );
        assert_eq!(connect(&world, "reviews", "db.org"), NotAdmitted);
        let gateway = ObjectName::new("istio-egress", "egress-vg");
        let mut only = world.clone();
        only.services.truncate(1);
        let (policy, problems) = only.compile();
        let blind = condition.get("allowedIpBlocks").is_none() && expected == NotAdmitted;
        assert_eq!(problems.len(), usize::from(blind), "{problems:?}");
        // The kernel lets a pod to the gateway only for what it may have there.
        assert_eq!(policy.may_use(&gateway, &mk_id("ratings")), !blind);
        assert_eq!(policy.admits("bookinfo", "ratings"), !blind);
        assert!(!policy.admits("bookinfo", "reviews"));
    }
}

#[test]
fn an_entry_that_serves_requests_elsewhere_is_no_problem() {
    let authz = json!({ "allowedClients": mk_client("ratings"), "allowedMethods": ["GET"] });
    let mut policy = mk_authz("a", "db", authz);
    let selector = &mut policy.spec.apply_to_destinations[0].selector;
    selector.name = None;
    let world = mk_world().policy(policy);
    assert_eq!(world.compile().1, []);
    assert_eq!(world.get("ratings", "api.wild.org").reason, Admitted);
    assert_eq!(connect(&world, "ratings", "x.wild.org"), NotAdmitted);
}

#[test]
fn a_dry_run_is_told_of_connections_too() {
    let trial = json!({ "allowedClients": mk_client("ratings"), "dryRun": true });
    let world = mk_world().policy(mk_authz("trial", "db", trial));
    let told = |account| {
        let decision = connect_as(&world, &mk_id(account), "db.org");
        (decision.allowed, decision.dry_run, decision.would)
    };
    let entry = (ObjectName::new("istio-egress", "trial"), 0);
    assert_eq!(told("ratings"), (true, Some(true), Some(entry)));
    assert_eq!(told("reviews"), (true, Some(false), None));
}

#[test]
fn another_port_of_the_gateway_passes_nothing_on() {
    let gateway = ObjectName::new("istio-egress", "egress-vg");
    let (policy, _) = mk_world().compile();
    let connection = Connection {
        gateway: &gateway,
        listener: PORT + 1,
        client: &mk_id("ratings"),
        client_ip: [10, 1, 2, 3].into(),
        sni: "db.org",
    };
    assert_eq!(decide_connection(&policy, &connection).reason, NoListener);
}
