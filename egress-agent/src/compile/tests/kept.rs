//! Bad objects: reported with their field, while their last good version stands.

use serde_json::{Value, json};

use super::by_clients::{ByClients, compile};
use super::make::{
    TCP, at, compiled, index, ip, mk_access, mk_external, mk_gateway, mk_lockdown, mk_node, mk_pod,
    mk_raw_slice, mk_service, net, pod, reason,
};
use crate::compile::{GatewayAdmission, Hold, Settings};
use crate::index::{Effect, Index, Key, Object, ObjectId, Problem};
use egress_common::reason::Reason;

fn web() -> Object {
    mk_pod("shop", "web", "web", &["10.244.0.2"], json!({}))
}

fn problems(index: &Index) -> Vec<&Problem> {
    index.problems().collect()
}

#[test]
fn a_refused_lockdown_leaves_the_last_good_one() {
    let good = json!({"mode": "Enforce", "allow": {"cidrs": [{"cidr": "203.0.113.0/24"}]}});
    let bad = json!({"mode": "Off", "allow": {"cidrs": [{"cidr": "203.0.113.1/24"}]}});
    let mut index = index([web(), mk_lockdown("a", good.clone())]);
    assert!(
        index.apply(mk_lockdown("a", bad.clone())),
        "the report is news"
    );
    assert!(
        !index.apply(mk_lockdown("a", bad.clone())),
        "and then it is none"
    );
    let kept = compiled(&index);
    assert_eq!(pod(&kept, "web").hold, Hold::Enforce);
    assert_eq!(
        reason(&kept, "web", "203.0.113.9", TCP, 1),
        Reason::Exception
    );
    assert_eq!(kept.problems.len(), 1);
    assert_eq!(kept.problems[0].field, "spec.allow.cidrs[0].cidr");
    assert_eq!(kept.problems[0].effect, Effect::Refused);
    assert!(
        kept.problems[0].reason.contains("203.0.113.0/24"),
        "{}",
        kept.problems[0]
    );
    // Through a reset too, which is how the directory of files tells.
    assert!(!index.reset(vec![web(), mk_lockdown("a", bad)]));
    assert_eq!(pod(&compiled(&index), "web").hold, Hold::Enforce);
    assert!(index.apply(mk_lockdown("a", good)));
    assert!(problems(&index).is_empty());
    assert!(index.reset(vec![web()]));
    assert_eq!(pod(&compiled(&index), "web").hold, Hold::Off);
}

#[test]
fn each_slip_of_a_lockdown_has_its_field() {
    let allow = |cidr: Value| json!({"mode": "Enforce", "allow": {"cidrs": [cidr]}});
    let ports = |port: Value| allow(json!({"cidr": "203.0.113.0/24", "ports": [port]}));
    let many: Value = (0..17).map(|i| json!({"port": 100 + 2 * i})).collect();
    let selector = |operator: &str, values: Value| {
        json!({"mode": "Enforce", "podSelector": {"matchExpressions":
            [{"key": "x", "operator": operator, "values": values}]}})
    };
    for (spec, field) in [
        (
            allow(json!({"cidr": "10.0.0.1/8"})),
            "spec.allow.cidrs[0].cidr",
        ),
        (
            allow(json!({"cidr": "::ffff:10.0.0.0/104"})),
            "spec.allow.cidrs[0].cidr",
        ),
        (
            allow(json!({"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]})),
            "spec.allow.cidrs[0].except[0]",
        ),
        (
            allow(json!({"cidr": "10.0.0.0/8", "except": ["0.0.0.0/0"]})),
            "spec.allow.cidrs[0].except[0]",
        ),
        (
            allow(json!({"cidr": "10.0.0.0/8", "except": ["10.1.0.1/16"]})),
            "spec.allow.cidrs[0].except[0]",
        ),
        (
            ports(json!({"port": 0})),
            "spec.allow.cidrs[0].ports[0].port",
        ),
        (
            ports(json!({"endPort": 80})),
            "spec.allow.cidrs[0].ports[0].endPort",
        ),
        (
            ports(json!({"port": 80, "endPort": 79})),
            "spec.allow.cidrs[0].ports[0].endPort",
        ),
        (
            allow(json!({"cidr": "203.0.113.0/24", "ports": many})),
            "spec.allow.cidrs[0].ports",
        ),
        (
            json!({"mode": "Enforce", "allow": {"dns": {"resolvers": ["::ffff:8.8.8.8"]}}}),
            "spec.allow.dns.resolvers[0]",
        ),
        (
            json!({"mode": "Enforce", "allow": {"dns": {"resolvers": ["127.0.0.53"]}}}),
            "spec.allow.dns.resolvers[0]",
        ),
        (
            json!({"mode": "Off", "auditUntil": "2026-01-01T00:00:00Z"}),
            "spec.auditUntil",
        ),
        (
            selector("Is", json!(["a"])),
            "spec.podSelector.matchExpressions[0].operator",
        ),
        (
            selector("In", json!([])),
            "spec.podSelector.matchExpressions[0].values",
        ),
        (
            selector("Exists", json!(["a"])),
            "spec.podSelector.matchExpressions[0].values",
        ),
    ] {
        let index = index([web(), mk_lockdown("a", spec.clone())]);
        let problems = problems(&index);
        assert_eq!(problems.len(), 1, "{spec}");
        assert_eq!(
            (problems[0].field.as_str(), problems[0].effect),
            (field, Effect::Refused)
        );
        // There is no good version: the pods are held without exceptions, if it can be said which.
        let compiled = compiled(&index);
        if field.starts_with("spec.allow") {
            assert_eq!(pod(&compiled, "web").hold, Hold::Enforce, "{spec}");
            let denied = reason(&compiled, "web", "203.0.113.9", TCP, 100);
            assert_eq!(denied, Reason::NotAllowed, "{spec}");
        } else {
            assert_eq!(pod(&compiled, "web").hold, Hold::Off, "{spec}");
        }
    }
}

#[test]
fn fields_that_narrow_refuse_and_others_are_ignored() {
    let effect = |object: Object| {
        let index = index([object]);
        let problems = problems(&index);
        assert_eq!(problems.len(), 1, "{problems:?}");
        (problems[0].field.clone(), problems[0].effect)
    };
    let gateway = |patch: Value| effect(mk_gateway("vg", 443, patch));
    assert_eq!(
        gateway(json!({"extra": 1})),
        ("spec.extra".into(), Effect::Ignored)
    );
    let narrowed =
        json!({"workloads": [{"selector": {"labels": {"app": "gw"}, "workspace": "w"}}]});
    assert_eq!(
        gateway(narrowed),
        (
            "spec.workloads[0].selector.workspace".into(),
            Effect::Refused
        )
    );
    let tls = json!({"listeners": [{"port": {"number": 443}, "tls": {"subjectAltNames": ["x"]}}]});
    assert_eq!(
        gateway(tls),
        (
            "spec.listeners[0].tls.subjectAltNames".into(),
            Effect::Refused
        )
    );
    let zero = json!({"listeners": [{"port": {}}]});
    assert_eq!(
        gateway(zero),
        ("spec.listeners[0].port.number".into(), Effect::Refused)
    );
    let access = |config: Value| effect(mk_access("p", json!({"name": "x"}), config));
    let authn = |mode: &str| json!({"authn": {"tlsMode": mode}, "authz": {}});
    assert_eq!(
        access(authn("STRICT")),
        ("spec.config.authn".into(), Effect::Ignored)
    );
    assert_eq!(
        access(authn("PERMISSIVE")),
        ("spec.config.authn".into(), Effect::Refused)
    );
    let requests = json!({"authz": {"allowedClients": [{}], "allowedJwts": []}});
    assert_eq!(
        access(requests),
        ("spec.config.authz.allowedJwts".into(), Effect::Refused)
    );
}

#[test]
fn a_refused_access_policy_does_not_open_its_destination() {
    let client =
        json!({"authz": {"allowedClients": [{"serviceAccountSelector": {"name": "web"}}]}});
    let narrowed = json!({"authz": {"allowedClients": [{"serviceAccountSelector":
        {"name": "web", "workspace": "w"}}]}});
    let admits = |index: &Index| {
        ByClients {
            index,
            cluster: None,
            allow_any: false,
        }
        .admits(&Key::new("shop", "web"))
    };
    let access = |config: &Value| mk_access("p", json!({"name": "a.example"}), config.clone());
    let mut index = index([mk_external("a.example", 443)]);
    assert!(admits(&index), "without a policy it is open");
    index.apply(access(&narrowed));
    assert!(!admits(&index), "a policy is meant to stand here");
    index.apply(access(&client));
    assert!(admits(&index));
    index.apply(access(&narrowed));
    assert!(admits(&index), "the last good one stands");
    assert_eq!(problems(&index).len(), 1);
    let id = access(&client).id();
    assert!(index.delete(&id));
    assert!(problems(&index).is_empty());
    assert!(!index.delete(&id));
}

#[test]
fn what_can_not_be_read_is_left_out_and_named() {
    let index = index([
        mk_node(
            "n1",
            &["0.0.0.0/0", "10.244.9.0/24"],
            &["not an address", "192.168.0.9"],
        ),
        mk_service(
            "shop",
            "db",
            "10.96.0.20",
            80,
            json!({"clusterIPs": ["x", "10.96.0.20"],
            "ports": [{"port": 80}, {"port": 81, "protocol": "ODD"}, {"port": 0}]}),
        ),
        mk_raw_slice("shop", "db", json!([{"port": 70000}]), json!([])),
    ]);
    let fields: Vec<&str> = index.problems().map(|p| p.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "ports[0].port",
            "spec.podCIDRs[0]",
            "status.addresses[0].address",
            "spec.ports[1].protocol",
            "spec.ports[2].port",
            "spec.clusterIPs"
        ]
    );
    assert_eq!(index.nodes()["n1"].pod_cidrs, [net("10.244.9.0/24")]);
    assert_eq!(
        index.services()[&Key::new("shop", "db")].cluster_ips,
        [ip("10.96.0.20")]
    );
}

#[test]
fn addresses_lead_to_pods_as_long_as_they_have_them() {
    let mut index = index([web()]);
    assert_eq!(
        index
            .pod_by_ip(ip("10.244.0.2"))
            .map(|(k, _)| k.name.as_str()),
        Some("web")
    );
    index.apply(mk_pod("shop", "web", "web", &["10.244.0.3"], json!({})));
    assert!(index.pod_by_ip(ip("10.244.0.2")).is_none());
    index.apply(mk_pod("shop", "late", "web", &["10.244.0.3"], json!({})));
    assert!(index.pod_by_ip(ip("10.244.0.3")).is_none(), "two claim it");
    index.apply(mk_pod(
        "shop",
        "web",
        "web",
        &["10.244.0.3"],
        json!({"status": {"phase": "Failed"}}),
    ));
    assert_eq!(
        index
            .pod_by_ip(ip("10.244.0.3"))
            .map(|(k, _)| k.name.as_str()),
        Some("late")
    );
    let id = ObjectId {
        kind: "Pod",
        namespace: "shop".into(),
        name: "late".into(),
    };
    assert!(index.delete(&id));
    assert!(!index.is_pod_ip(ip("10.244.0.3")));
}

#[test]
fn nothing_compiles_to_nothing() {
    let compiled = compile(
        &Index::default(),
        &Settings::default(),
        at("2026-01-01T00:00:00Z"),
    );
    assert_eq!(compiled, crate::compile::Compiled::default());
}
