//! The semantics of DESIGN.md, one test a sentence.

use serde_json::json;

use super::super::access::AccessReason::{
    self, Admitted, AnyHost, BadHost, BadPath, NoListener, NoPolicy, NotAdmitted, TrustDomain,
    UnknownHost, UnknownPort,
};
use super::super::{ObjectName, OutboundPolicy, Request, SpiffeId, decide_access};
use super::{PORT, World, mk_authz, mk_client, mk_https, mk_id, mk_policy, mk_to};

fn reason(world: &World, account: &str, authority: &str) -> AccessReason {
    let decision = world.get(account, authority);
    let allows = matches!(decision.reason, Admitted | NoPolicy | AnyHost);
    assert_eq!(decision.allowed, allows, "{decision:?}");
    decision.reason
}

fn guide() -> World {
    World::exposing(&["*.org"]).service("httpbin", &["httpbin.org"]).policy(mk_policy(
        "web",
        json!({
            "applyToDestinations": [{
                "kind": "EXTERNAL_SERVICE",
                "port": { "number": 443 },
                "selector": { "cluster": "here", "name": "httpbin", "namespace": "global" },
            }],
            "config": { "authz": { "allowedClients": [{ "serviceAccountSelector": {
                "cluster": "here", "labels": { "account": "productpage" }, "namespace": "bookinfo",
            } }] } },
        }),
    ))
}

#[test]
fn the_guide_admits_one_account() {
    let (_, problems) = guide().compile();
    assert_eq!(problems, []);
    let decision = guide().get("productpage", "httpbin.org");
    assert!(decision.allowed);
    assert_eq!(
        decision.object,
        Some(ObjectName::new("istio-egress", "web"))
    );
    assert_eq!(decision.service, Some(ObjectName::new("global", "httpbin")));
    assert_eq!((decision.entry, decision.dry_run), (Some(0), None));
    assert_eq!(reason(&guide(), "reviews", "httpbin.org"), NotAdmitted);
}

#[test]
fn a_host_that_nothing_names_is_refused() {
    assert_eq!(reason(&guide(), "productpage", "example.org"), UnknownHost);
    assert_eq!(
        reason(&guide(), "productpage", "httpbin.org:8080"),
        UnknownPort
    );
    assert_eq!(reason(&guide(), "productpage", "10.0.0.1"), BadHost);
    assert_eq!(
        guide()
            .ask("productpage", "GET", "httpbin.org", "/%2f", &[])
            .reason,
        BadPath
    );
}

#[test]
fn with_allow_any_an_exposed_host_is_open() {
    let mut world = guide();
    world.outbound = OutboundPolicy::AllowAny;
    assert_eq!(reason(&world, "reviews", "example.org"), AnyHost);
    assert_eq!(reason(&world, "reviews", "example.com"), UnknownHost);
    // It opens nothing that has a policy.
    assert_eq!(reason(&world, "reviews", "httpbin.org"), NotAdmitted);
}

#[test]
fn a_host_that_is_not_exposed_is_refused_whatever_policy_says() {
    let mut world = World::exposing(&["other.org"]).service("httpbin", &["httpbin.org"]);
    world.policies = guide().policies;
    assert_eq!(reason(&world, "productpage", "httpbin.org"), UnknownHost);
}

#[test]
fn without_a_policy_a_named_host_is_open_to_the_mesh_alone() {
    let world = World::exposing(&["*"]).service("httpbin", &["httpbin.org"]);
    assert_eq!(reason(&world, "ratings", "httpbin.org"), NoPolicy);
    let client = SpiffeId::new("other.local", "bookinfo", "productpage").unwrap();
    let gateway = ObjectName::new("istio-egress", "egress-vg");
    let mut request = Request {
        gateway: &gateway,
        listener: PORT,
        client: &client,
        client_ip: [10, 0, 0, 1].into(),
        authority: "httpbin.org",
        method: "GET",
        path: "/",
        normalized: false,
        headers: &[],
    };
    let policy = world.compile().0;
    assert_eq!(decide_access(&policy, &request).reason, TrustDomain);
    let client = mk_id("ratings");
    request.client = &client;
    request.listener = PORT + 1;
    assert_eq!(decide_access(&policy, &request).reason, NoListener);
}

#[test]
fn a_policy_for_one_port_closes_the_others() {
    let mut other = mk_https();
    other["number"] = json!(8443);
    other["egressGatewayRoutes"]["portMatch"] = json!(8080);
    let mut world = guide();
    world.services.clear();
    let world = world.service_spec(
        "httpbin",
        json!({ "hosts": ["httpbin.org"], "ports": [mk_https(), other] }),
    );
    assert_eq!(reason(&world, "productpage", "httpbin.org"), Admitted);
    assert_eq!(
        reason(&world, "productpage", "httpbin.org:8080"),
        NotAdmitted
    );
}

#[test]
fn policies_and_entries_are_ored_conditions_anded() {
    let world = World::exposing(&["*"])
        .service("api", &["api.org"])
        .policy(mk_authz(
            "a",
            "api",
            json!({ "allowedClients": mk_client("productpage"), "allowedMethods": ["get"],
                    "allowedPaths": ["/v1/*"] }),
        ))
        .policy(mk_policy(
            "b",
            json!({ "applyToDestinations": [mk_to("api")], "config": { "authzList": [
                { "allowedClients": mk_client("ratings"), "allowedIpBlocks": ["10.1.0.0/16"] },
                { "allowedClients": mk_client("reviews"), "allowedIpBlocks": ["10.2.0.0/16"] },
            ] } }),
        ));
    for (account, method, path, expected) in [
        ("productpage", "GET", "/v1/x?y", true),
        ("productpage", "GET", "/v1/../v2", false),
        ("productpage", "GET", "/v2/%2e%2e/v1/x", true),
        ("productpage", "POST", "/v1/x", false),
        ("ratings", "POST", "/", true),
        ("reviews", "GET", "/v1/x", false),
    ] {
        let decision = world.ask(account, method, "api.org", path, &[]);
        assert_eq!(decision.allowed, expected, "{account} {method} {path}");
    }
}

#[test]
fn an_empty_entry_admits_nobody_and_an_empty_selector_everybody() {
    for (authz, expected) in [
        (json!({}), false),
        (json!({ "match": {} }), false),
        (json!({ "allowedClients": [{}] }), true),
        (
            json!({ "allowedClients": [{ "serviceAccountSelector": {} }] }),
            true,
        ),
        (json!({ "allowedMethods": ["GET"] }), true),
    ] {
        let world = World::exposing(&["*"])
            .service("api", &["api.org"])
            .policy(mk_authz("a", "api", authz.clone()));
        assert_eq!(world.get("ratings", "api.org").allowed, expected, "{authz}");
    }
    let empty = mk_policy("a", json!({ "applyToDestinations": [mk_to("api")] }));
    let world = World::exposing(&["*"])
        .service("api", &["api.org"])
        .policy(empty);
    assert_eq!(reason(&world, "ratings", "api.org"), NotAdmitted);
}

#[test]
fn selectors_are_of_this_cluster_and_of_service_accounts_that_exist() {
    for (selector, expected) in [
        (json!({ "name": "ratings" }), true),
        (json!({ "name": "ratings", "cluster": "here" }), true),
        (json!({ "name": "ratings", "cluster": "there" }), false),
        (json!({ "name": "ratings", "namespace": "default" }), false),
        (json!({ "labels": { "account": "ratings" } }), true),
        (
            json!({ "labels": { "account": "ratings", "x": "y" } }),
            false,
        ),
        (json!({ "name": "ghost", "namespace": "bookinfo" }), false),
    ] {
        let authz = json!({ "allowedClients": [{ "serviceAccountSelector": selector }] });
        let world = World::exposing(&["*"])
            .service("api", &["api.org"])
            .policy(mk_authz("a", "api", authz));
        assert_eq!(
            world.get("ratings", "api.org").allowed,
            expected,
            "{selector}"
        );
        assert!(!world.get("ghost", "api.org").allowed);
    }
}

#[test]
fn the_most_specific_name_decides_even_if_it_is_not_served() {
    let mut elsewhere = mk_https();
    elsewhere["egressGatewayRoutes"]["virtualGatewayRefs"] =
        json!([{ "name": "other", "namespace": "istio-egress" }]);
    let world = World::exposing(&["*"])
        .service("all", &["*.org"])
        .service("api", &["api.org", "*.api.org"])
        .service_spec("far", json!({ "hosts": ["far.org"], "ports": [elsewhere] }))
        .policy(mk_authz(
            "a",
            "api",
            json!({ "allowedClients": mk_client("productpage") }),
        ));
    assert_eq!(reason(&world, "ratings", "x.org"), NoPolicy);
    assert_eq!(reason(&world, "ratings", "api.org"), NotAdmitted);
    assert_eq!(reason(&world, "ratings", "v1.x.api.org"), NotAdmitted);
    assert_eq!(reason(&world, "ratings", "far.org"), UnknownHost);
    assert_eq!(reason(&world, "ratings", "org"), UnknownHost);
}

#[test]
fn an_exposure_can_be_narrower_than_the_service() {
    let world = World::exposing(&["api.org", "*.b.org"]).service("all", &["*.org"]);
    assert_eq!(reason(&world, "ratings", "api.org"), NoPolicy);
    assert_eq!(reason(&world, "ratings", "x.b.org"), NoPolicy);
    assert_eq!(reason(&world, "ratings", "b.org"), UnknownHost);
    assert_eq!(reason(&world, "ratings", "x.org"), UnknownHost);
}

#[test]
fn a_dry_run_is_told_and_changes_nothing() {
    let trial = json!({ "allowedClients": mk_client("productpage"), "dryRun": true });
    let world = World::exposing(&["*"])
        .service("api", &["api.org"])
        .policy(mk_authz("trial", "api", trial));
    let told = |world: &World, account| {
        let decision = world.get(account, "api.org");
        (decision.allowed, decision.dry_run)
    };
    assert_eq!(told(&world, "productpage"), (true, Some(true)));
    assert_eq!(told(&world, "reviews"), (true, Some(false)));
    let world = world.policy(mk_authz(
        "real",
        "api",
        json!({ "allowedClients": mk_client("ratings") }),
    ));
    assert_eq!(told(&world, "productpage"), (false, Some(true)));
    assert_eq!(told(&world, "ratings"), (true, Some(true)));
    assert_eq!(told(&world, "reviews"), (false, Some(false)));
}

#[test]
fn who_may_use_the_gateway_at_all() {
    let (policy, _) = guide().compile();
    let gateway = ObjectName::new("istio-egress", "egress-vg");
    assert!(policy.may_use(&gateway, &mk_id("productpage")));
    assert!(!policy.may_use(&gateway, &mk_id("reviews")));
    assert!(!policy.may_use(
        &ObjectName::new("istio-egress", "other"),
        &mk_id("productpage")
    ));
    let (policy, _) = guide().service("open", &["open.org"]).compile();
    assert!(policy.may_use(&gateway, &mk_id("reviews")));
    let stranger = SpiffeId::new("other.local", "bookinfo", "productpage").unwrap();
    assert!(!policy.may_use(&gateway, &stranger));
    // A trial admits nobody.
    let mut trial = guide();
    trial.policies[0]
        .spec
        .config
        .authz
        .as_mut()
        .unwrap()
        .dry_run = true;
    trial.policies.push(mk_authz("real", "httpbin", json!({})));
    assert!(!trial.compile().0.may_use(&gateway, &mk_id("productpage")));
}
