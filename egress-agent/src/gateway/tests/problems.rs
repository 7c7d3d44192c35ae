//! What can't be done as written is reported, and refused where ignoring it would allow more.

use serde_json::{Value, json};

use super::super::policy::Effect::{self, Ignored, Refused};
use super::{World, mk_authz, mk_client, mk_https, mk_policy, mk_to};

/// Asserts one problem with this effect whose field ends so, and what becomes of productpage.
fn check(world: &World, effect: Effect, field: &str, allowed: bool) {
    let (_, problems) = world.compile();
    let found = problems
        .iter()
        .any(|one| one.effect == effect && one.field.ends_with(field));
    assert!(found, "{effect:?} {field}: {problems:?}");
    let decision = world.get("productpage", "api.org");
    assert_eq!(
        decision.allowed, allowed,
        "{effect:?} {field}: {decision:?}"
    );
}

fn open() -> World {
    World::exposing(&["*"]).service("api", &["api.org"])
}

fn with_authz(authz: Value) -> World {
    open().policy(mk_authz("a", "api", authz))
}

#[test]
fn unsupported_conditions_admit_nobody() {
    for (field, value) in [
        ("tlsOnly", json!(true)),
        ("allowedPaths[0]", Value::Null),
        ("allowedMethods[0]", Value::Null),
        ("allowedIpBlocks[0]", Value::Null),
        ("headers.x-a", Value::Null),
        ("headers.x-forwarded-for", Value::Null),
        ("match.source", Value::Null),
        ("headers.x-b.notValue", Value::Null),
    ] {
        let mut authz = json!({ "allowedClients": [{}] });
        match field {
            "allowedPaths[0]" => authz["allowedPaths"] = json!(["/a/*/b", "*"]),
            "allowedMethods[0]" => authz["allowedMethods"] = json!(["*", "GET"]),
            "allowedIpBlocks[0]" => authz["allowedIpBlocks"] = json!(["10.0.0.0/33"]),
            "headers.x-a" => authz["match"] = json!({ "request": { "headers": { "x-a": {} } } }),
            "headers.x-forwarded-for" => {
                authz["match"] = json!({ "request": { "headers": {
                    "x-forwarded-for": { "values": ["*"] },
                } } });
            }
            "headers.x-b.notValue" => {
                authz["match"] = json!({ "request": { "headers": {
                    "x-b": { "values": ["*"], "notValue": ["a"] },
                } } });
            }
            "match.source" => authz["match"] = json!({ "source": {} }),
            _ => authz[field] = value,
        }
        check(&with_authz(authz), Refused, field, false);
    }
}

#[test]
fn an_unsupported_client_does_not_widen_its_entry() {
    let client = json!({ "allowedClients": [{ "requestIdentityMatcher": {} }] });
    check(
        &with_authz(client),
        Refused,
        "requestIdentityMatcher",
        false,
    );
    let client = json!({ "allowedClients": [{ "serviceAccountSelector": { "workspace": "w" } }] });
    check(&with_authz(client), Refused, "workspace", false);
    let mut clients = mk_client("productpage");
    clients
        .as_array_mut()
        .unwrap()
        .push(json!({ "requestIdentityMatcher": {} }));
    check(
        &with_authz(json!({ "allowedClients": clients })),
        Refused,
        "requestIdentityMatcher",
        true,
    );
    let nobody = json!({ "allowedClients": mk_client("ghost") });
    check(
        &with_authz(nobody),
        Ignored,
        "serviceAccountSelector",
        false,
    );
}

#[test]
fn a_destination_that_is_not_understood_closes() {
    let everyone = json!({ "authz": { "allowedClients": [{}] } });
    let to = |destination: Value| {
        open().policy(mk_policy(
            "a",
            json!({ "applyToDestinations": [destination], "config": everyone }),
        ))
    };
    let mut bad = mk_to("api");
    bad["kind"] = json!("EXTERNALSERVICE");
    check(&to(bad.clone()), Refused, "kind", false);
    bad["kind"] = json!("SERVICE");
    check(&to(bad.clone()), Ignored, "kind", true);
    let mut bad = mk_to("api");
    bad["selector"]["workspace"] = json!("w");
    check(&to(bad), Refused, "workspace", false);
    let mut bad = mk_to("api");
    bad["port"] = json!({ "number": 80 });
    check(&to(bad), Ignored, "port", false);
    let mut bad = mk_to("api");
    bad["port"] = json!({ "numbr": 443 });
    check(&to(bad), Refused, "port.numbr", false);
    check(
        &to(json!({ "kind": "EXTERNAL_SERVICE" })),
        Refused,
        "selector",
        false,
    );
    check(&to(mk_to("other")), Ignored, "selector", true);
    let mut bad = mk_to("api");
    bad["selector"]["cluster"] = json!("there");
    check(&to(bad), Ignored, "cluster", true);
    let nowhere = open().policy(mk_policy("a", json!({ "config": everyone })));
    check(&nowhere, Refused, "applyToDestinations", false);
    let config = json!({
        "applyToDestinations": [mk_to("api")],
        "config": { "authz": { "allowedClients": [{}] }, "enforcement": "x" },
    });
    check(
        &open().policy(mk_policy("a", config)),
        Refused,
        "enforcement",
        false,
    );
}

#[test]
fn what_gloo_adds_without_a_condition_is_taken() {
    let config = |other: Value| {
        let mut config = json!({ "authz": { "allowedClients": [{}] } });
        for (key, value) in other.as_object().unwrap() {
            config[key] = value.clone();
        }
        let spec = json!({ "applyToDestinations": [mk_to("api")], "config": config });
        open().policy(mk_policy("a", spec))
    };
    let strict = json!({ "authn": { "tlsMode": "STRICT" } });
    check(&config(strict), Ignored, "authn", true);
    check(
        &config(json!({ "authn": { "tlsMode": "X" } })),
        Refused,
        "authn",
        false,
    );
    check(
        &config(json!({ "enforcementLayers": { "mesh": true } })),
        Ignored,
        "Layers",
        true,
    );
    let mut world = open();
    world.gateways[0].spec.listeners[0]
        .other
        .insert("http".to_owned(), json!({}));
    assert_eq!(world.compile().1, []);
    assert!(world.get("productpage", "api.org").allowed);
}

#[test]
fn services_that_can_not_be_served() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut spec = json!({ "hosts": ["api.org"], "ports": [mk_https()] });
        change(&mut spec);
        World::exposing(&["*"])
            .service("all", &["*.org"])
            .service_spec("api", spec)
    };
    let port =
        |key: &'static str, value: Value| with(&move |spec| spec["ports"][0][key] = value.clone());
    for protocol in ["TCP", "TLS"] {
        let field = "ports[0].clientsideTls";
        check(&port("protocol", json!(protocol)), Refused, field, false);
    }
    let field = "ports[0].protocol";
    check(&port("protocol", json!("MONGO")), Refused, field, false);
    check(
        &port("clientsideTls", json!({ "mode": "X" })),
        Refused,
        "clientsideTls.mode",
        false,
    );
    check(
        &port("clientsideTls", json!({ "sni": "10.0.0.1" })),
        Refused,
        "clientsideTls.sni",
        false,
    );
    check(
        &port("egressGatewayRoutes", Value::Null),
        Ignored,
        "ports[0]",
        false,
    );
    check(&port("x", json!(1)), Refused, "ports[0].x", false);
    check(
        &with(&|spec| spec["addresses"] = json!(["192.0.2.1"])),
        Refused,
        "addresses",
        false,
    );
    check(
        &with(&|spec| spec["endpoints"] = json!([])),
        Refused,
        "endpoints",
        false,
    );
    let far = json!({ "virtualGatewayRefs": [{ "name": "egress-vg", "cluster": "there" }] });
    check(
        &port("egressGatewayRoutes", far),
        Ignored,
        "virtualGatewayRefs",
        false,
    );
}

#[test]
fn a_wildcard_needs_a_certificate_of_each_name() {
    for (tls, field) in [
        (Value::Null, "clientsideTls"),
        (json!({ "sni": "a.org" }), "clientsideTls"),
        (json!({ "subjectAltNames": ["a.org"] }), "clientsideTls"),
    ] {
        let mut port = mk_https();
        port["protocol"] = json!("HTTP");
        port["clientsideTls"] = tls;
        let spec = json!({ "hosts": ["*.org"], "ports": [port] });
        check(
            &World::exposing(&["*"]).service_spec("all", spec),
            Refused,
            field,
            false,
        );
    }
}

#[test]
fn one_host_and_port_of_two_services_is_served_by_neither() {
    let world = open().service("again", &["api.org"]);
    check(&world, Refused, "listeners", false);
}

#[test]
fn listeners_that_can_not_be_had() {
    for (change, field) in [
        (json!({ "tls": { "mode": "SIMPLE" } }), "tls.mode"),
        (json!({ "tls": { "mode": "PASSTHROUGH" } }), "tls.mode"),
        (json!({ "tls": null }), "tls.mode"),
        (
            json!({ "tls": { "mode": "MUTUAL", "minimumProtocolVersion": "x" } }),
            "Version",
        ),
        (json!({ "port": { "number": 0 } }), "port.number"),
        (json!({ "allowedRouteTables": [] }), "allowedRouteTables"),
        (
            json!({ "exposedExternalServices": [{ "host": "a*" }] }),
            "host",
        ),
        (
            json!({ "exposedExternalServices": [{ "host": "*", "x": 1 }] }),
            "x",
        ),
    ] {
        let mut world = open();
        let mut spec = serde_json::to_value(&world.gateways[0].spec).unwrap();
        for (key, value) in change.as_object().unwrap() {
            spec["listeners"][0][key] = value.clone();
        }
        world.gateways[0].spec = serde_json::from_value(spec).unwrap();
        check(&world, Refused, field, false);
    }
}

#[test]
fn a_problem_reads_as_a_sentence() {
    let (_, problems) = with_authz(json!({ "tlsOnly": true })).compile();
    assert_eq!(
        problems[0].to_string(),
        "AccessPolicy/istio-egress/a spec.config.authz.tlsOnly refused: not supported; remove it"
    );
}
