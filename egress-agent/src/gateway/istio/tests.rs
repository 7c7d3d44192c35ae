//! What is rendered. That it means the same is shown with a real Envoy elsewhere.

use serde_json::{Value, json};

use super::object::{AuthorizationPolicy, DRY_RUN, Rule};
use super::{Options, Provider, Rendered, custom, render};
use crate::gateway::OutboundPolicy;
use crate::gateway::tests::{PORT, World, mk_authz, mk_client, mk_https, mk_policy, mk_to};

fn mk_world(hosts: &[&str]) -> World {
    let mut world = World::exposing(hosts);
    select(&mut world);
    world
}

fn select(world: &mut World) {
    for gateway in &mut world.gateways {
        let workloads = json!([{ "selector": { "labels": { "istio": "egress" } } }]);
        gateway.spec.workloads = serde_json::from_value(workloads).unwrap();
    }
}

fn rendered(world: &World) -> Rendered {
    rendered_with(world, Options::default())
}

fn rendered_with(world: &World, options: Options) -> Rendered {
    let rendered = render(&world.objects(), &world.compile().0, options);
    let deny = &rendered.policies[0].policy.spec;
    assert!(deny.rules.is_empty());
    rendered
}

/// The rules of the policy whose name has this in it.
fn rules<'a>(rendered: &'a Rendered, name: &str) -> &'a [Rule] {
    let mut found = rendered.policies.iter().map(|it| &it.policy);
    let found = found.find(|it| it.metadata.name.contains(name));
    found.map_or(&[], |policy| &policy.spec.rules)
}

fn refused(rendered: &Rendered, object: &str, field: &str) {
    let found = rendered
        .problems
        .iter()
        .any(|it| it.object == object && it.field == field);
    assert!(found, "{:?}", rendered.problems);
}

#[test]
fn the_guide_in_yaml() {
    let world = mk_world(&["*.org"])
        .service("httpbin", &["httpbin.org"])
        .policy(mk_authz(
            "web",
            "httpbin",
            json!({ "allowedClients": mk_client("productpage") }),
        ));
    let rendered = rendered(&world);
    assert_eq!(rendered.problems, []);
    assert_eq!(rendered.policies.len(), 2);
    let text = rendered.policies[1].yaml().unwrap();
    assert_eq!(
        text,
        "---
# httpbin.org:
#   rules[0]: AccessPolicy/istio-egress/web#0
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: egress-vg-15443-httpbin.org-89363e28
  namespace: istio-egress
  labels:
    app.kubernetes.io/managed-by: egressctl
spec:
  selector:
    matchLabels:
      istio: egress
  action: ALLOW
  rules:
  - from:
    - source:
        principals:
        - cluster.local/ns/bookinfo/sa/productpage
    to:
    - operation:
        hosts:
        - httpbin.org
        - httpbin.org:80
        - httpbin.org.
        - httpbin.org.:80
        ports:
        - '15443'
        paths:
        - /*
"
    );
    let read: AuthorizationPolicy = serde_yaml_ng::from_str(&text).unwrap();
    assert_eq!(read, rendered.policies[1].policy);
}

#[test]
fn every_condition_has_its_field() {
    let world = mk_world(&["*"])
        .service("api", &["api.org"])
        .policy(mk_authz(
            "a",
            "api",
            json!({
                "allowedClients": [{}], "allowedMethods": ["get"], "allowedPaths": ["/a", "/b"],
                "allowedIpBlocks": ["10.0.0.0/8"],
                "match": { "request": { "headers":
                    { "x-a": { "values": ["1*"], "notValues": ["*2", "*"] } } } },
            }),
        ));
    let rendered = rendered(&world);
    assert_eq!(rendered.problems, []);
    let [rule] = rules(&rendered, "api.org") else {
        panic!("{rendered:?}");
    };
    assert_eq!(
        serde_json::to_value(rule).unwrap(),
        json!({
            "from": [{ "source": { "principals": ["cluster.local/ns/*"], "ipBlocks": ["10.0.0.0/8"] } }],
            "to": [{ "operation": {
                "hosts": ["api.org", "api.org:80", "api.org.", "api.org.:80"],
                "ports": [PORT.to_string()], "methods": ["GET"], "paths": ["/a", "/b"],
            } }],
            "when": [{ "key": "request.headers[x-a]", "values": ["1*"], "notValues": ["*2", "*"] }],
        })
    );
}

#[test]
fn an_entry_without_clients_is_no_rule() {
    let world = mk_world(&["*"]).service("api", &["api.org"]).policy(mk_policy(
        "a",
        json!({ "applyToDestinations": [mk_to("api")], "config": { "authzList": [
            {}, { "allowedClients": mk_client("ghost") }, { "tlsOnly": true, "allowedClients": [{}] },
        ] } }),
    ));
    assert_eq!(rules(&rendered(&world), "api.org"), []);
}

#[test]
fn names_below_a_wildcard_are_left_to_themselves() {
    let mut port = mk_https();
    port["egressGatewayRoutes"]["portMatch"] = json!(8080);
    let db = json!({ "hosts": ["db.org"], "ports": [
        { "number": 5432, "protocol": "TCP", "egressGatewayRoutes": {} },
    ] });
    let world = mk_world(&["*.org"])
        .service_spec("all", json!({ "hosts": ["*.org"], "ports": [port] }))
        .service_spec("db", db)
        .service("a", &["*.a.org"]);
    let rendered = rendered(&world);
    let [rule] = rules(&rendered, "-wildcard.org") else {
        panic!("{rendered:?}");
    };
    let operation = &rule.to[0].operation;
    assert_eq!(operation.hosts, ["*.org:8080", "*.org.:8080"]);
    assert_eq!(
        operation.not_hosts,
        [
            "*.a.org:8080",
            "*.a.org.:8080",
            "db.org:8080",
            "db.org.:8080"
        ]
    );
    let [rule] = rules(&rendered, "db.org") else {
        panic!("{rendered:?}");
    };
    assert_eq!(rule.to[0].operation.hosts, [""; 0]);
    assert_eq!(rule.when[0].key, "connection.sni");
    assert_eq!(rule.when[0].values, ["db.org"]);
}

#[test]
fn what_istio_can_not_say_is_refused() {
    let prefix = json!({ "allowedClients": [{}], "allowedPaths": ["/v1/*"] });
    let world = mk_world(&["*"])
        .service("all", &["*"])
        .service("api", &["api.org"])
        .policy(mk_policy(
            "a",
            json!({ "applyToDestinations": [mk_to("api")],
                    "config": { "authz": { "allowedClients": [{}] }, "authzList": [prefix] } }),
        ));
    let strict = rendered(&world);
    refused(&strict, "ExternalService/global/all", "spec.hosts");
    refused(
        &strict,
        "AccessPolicy/istio-egress/a",
        "spec.config.authzList[0].allowedPaths",
    );
    assert_eq!(strict.problems.len(), 2);
    assert_eq!(rules(&strict, "api.org").len(), 1);
    assert_eq!(rules(&strict, "any"), []);
    let options = Options {
        accept_hidden_dot_segments: true,
    };
    assert_eq!(rules(&rendered_with(&world, options), "api.org").len(), 2);
    let mut world = mk_world(&["*"]);
    world.outbound = OutboundPolicy::AllowAny;
    refused(
        &rendered(&world),
        "VirtualGateway/istio-egress/egress-vg",
        "spec.listeners.exposedExternalServices",
    );
}

#[test]
fn a_second_gateway_on_the_same_pods_adds_nothing() {
    let mut world = mk_world(&["*"])
        .add_gateway("second", &["*"])
        .service("api", &["api.org"]);
    select(&mut world);
    let rendered = rendered(&world);
    refused(
        &rendered,
        "VirtualGateway/istio-egress/second",
        "spec.listeners",
    );
    assert_eq!(rendered.policies.len(), 3);
}

#[test]
fn dry_runs_are_one_policy_of_all_that_would_be() {
    let trial = json!({ "allowedClients": mk_client("ratings"), "dryRun": true });
    let world = mk_world(&["*"])
        .service("api", &["api.org"])
        .service("open", &["open.org"])
        .policy(mk_authz("trial", "api", trial));
    let rendered = rendered(&world);
    let is_trial = |policy: &AuthorizationPolicy| policy.metadata.annotations.contains_key(DRY_RUN);
    let trials = rendered.policies.iter().filter(|it| is_trial(&it.policy));
    assert_eq!(trials.count(), 1);
    let would: Vec<(&str, &str)> = rules(&rendered, "dry-run")
        .iter()
        .map(|rule| {
            let host = &rule.to[0].operation.hosts[0];
            (host.as_str(), rule.from[0].source.principals[0].as_str())
        })
        .collect();
    assert_eq!(
        would,
        [
            ("api.org", "cluster.local/ns/bookinfo/sa/ratings"),
            ("open.org", "cluster.local/ns/*"),
        ]
    );
    // Until then it is open.
    assert_eq!(
        rules(&rendered, "api.org")[0].from[0].source.principals,
        ["cluster.local/ns/*"]
    );
}

#[test]
fn names_are_kubernetes_names_and_no_two_the_same() {
    let long = format!("{}.{}.org", "a".repeat(63), "b".repeat(63));
    let longer = format!("{}.{}.{long}", "c".repeat(63), "d".repeat(40));
    let world = mk_world(&["*.org"]).service(
        "a",
        &[
            "a_b.org",
            "a-b.org",
            "*.a.org",
            "wildcard.a.org",
            &long,
            &longer,
        ],
    );
    let rendered = rendered(&world);
    let mut names: Vec<&str> = rendered
        .policies
        .iter()
        .map(|it| it.policy.metadata.name.as_str())
        .collect();
    assert_eq!(names.len(), 7);
    for name in &names {
        let edge = |it: Option<char>| it.is_some_and(|it| it.is_ascii_alphanumeric());
        let label = |label: &str| edge(label.chars().next()) && edge(label.chars().last());
        let fits = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || ".-".contains(it);
        assert!(name.len() <= 253 && name.chars().all(fits), "{name}");
        assert!(name.split('.').all(label), "{name}");
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 7);
}

#[test]
fn more_rules_than_a_policy_takes_are_two_policies() {
    let entries: Vec<Value> = (0..600)
        .map(|at| json!({ "allowedClients": [{}], "allowedPaths": [format!("/{at}")] }))
        .collect();
    let world = mk_world(&["*"])
        .service("api", &["api.org"])
        .policy(mk_policy(
            "a",
            json!({ "applyToDestinations": [mk_to("api")], "config": { "authzList": entries } }),
        ));
    let rendered = rendered(&world);
    let lengths = rendered
        .policies
        .iter()
        .map(|it| it.policy.spec.rules.len());
    assert_eq!(lengths.collect::<Vec<_>>(), [0, 512, 88]);
}

#[test]
fn the_policy_server_is_asked_about_everything() {
    let world = mk_world(&["*"]);
    let provider = Provider {
        name: "sallyport".to_owned(),
        service: "policy.sallyport-system.svc".to_owned(),
        port: 9443,
    };
    let config: Value = serde_yaml_ng::from_str(&provider.mesh_config()).unwrap();
    assert_eq!(
        config,
        json!({ "extensionProviders": [{ "name": "sallyport", "envoyExtAuthzGrpc": {
            "service": "policy.sallyport-system.svc", "port": 9443, "timeout": "0.5s",
            "failOpen": false, "statusOnError": "403",
        } }] })
    );
    let [document] = &custom(&world.objects(), &provider)[..] else {
        panic!("one gateway");
    };
    assert_eq!(
        serde_json::to_value(&document.policy.spec).unwrap(),
        json!({ "selector": { "matchLabels": { "istio": "egress" } }, "action": "CUSTOM",
                "provider": { "name": "sallyport" }, "rules": [{}] })
    );
}
