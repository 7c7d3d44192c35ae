//! Which pods are held, and what several lockdowns come to.

use serde_json::json;

use super::by_clients::compile;
use super::make::{
    TCP, UDP, ask, at, compiled, index, mk_lockdown, mk_namespace, mk_pod, pod, reason,
};
use crate::api::lockdown::OnDeny;
use crate::compile::{Hold, Settings};
use crate::index::Object;
use egress_common::reason::Reason;

fn web() -> Object {
    mk_pod(
        "shop",
        "web",
        "web",
        &["10.244.0.2", "fd00:244::2"],
        json!({}),
    )
}

#[test]
fn a_pod_without_a_lockdown_is_not_held() {
    let compiled = compiled(&index([web()]));
    let web = pod(&compiled, "web");
    assert_eq!((web.hold, web.policy), (Hold::Off, None));
    assert_eq!(
        web.v4.map(|v4| v4.to_string()).as_deref(),
        Some("10.244.0.2")
    );
    assert_eq!(
        web.v6.map(|v6| v6.to_string()).as_deref(),
        Some("fd00:244::2")
    );
    assert!(compiled.desired.policies.is_empty());
}

#[test]
fn the_strictest_wins_and_the_lists_add_up() {
    let objects = [
        web(),
        mk_lockdown(
            "a",
            json!({"mode": "Audit", "onDeny": "Reject",
            "allow": {"cluster": [], "cidrs": [{"cidr": "198.51.100.0/24"}]}}),
        ),
        mk_lockdown(
            "b",
            json!({"mode": "Enforce", "onDeny": "Drop",
            "allow": {"cluster": [], "cidrs": [{"cidr": "203.0.113.0/24", "ports": [{"port": 443}]}]}}),
        ),
        mk_lockdown(
            "c",
            json!({"mode": "Off", "allow": {"cidrs": [{"cidr": "192.0.2.0/24"}]}}),
        ),
        mk_lockdown(
            "d",
            json!({"mode": "Enforce", "podSelector": {"matchLabels": {"app": "db"}},
            "allow": {"cidrs": [{"cidr": "192.0.2.0/24"}]}}),
        ),
    ];
    let compiled = compiled(&index(objects));
    let web = pod(&compiled, "web");
    assert_eq!((web.hold, web.on_deny), (Hold::Enforce, OnDeny::Drop));
    assert_eq!(web.lockdowns, ["a", "b"]);
    let (passed, rule) = ask(&compiled, "web", "198.51.100.1", UDP, 9);
    assert_eq!(
        (passed, rule.as_str()),
        (Reason::Exception, "EgressLockdown/a allow.cidrs[0]")
    );
    assert_eq!(
        reason(&compiled, "web", "203.0.113.1", TCP, 443),
        Reason::Exception
    );
    assert_eq!(
        reason(&compiled, "web", "203.0.113.1", TCP, 80),
        Reason::NotAllowed
    );
    assert_eq!(
        reason(&compiled, "web", "192.0.2.1", TCP, 443),
        Reason::NotAllowed
    );
}

#[test]
fn selectors_know_every_operator() {
    let held = |selector: serde_json::Value, labels: serde_json::Value| {
        let objects = [
            mk_namespace("shop", json!({"tier": "front"})),
            mk_pod(
                "shop",
                "p",
                "web",
                &[],
                json!({"metadata": {"labels": labels}}),
            ),
            mk_lockdown("a", json!({"mode": "Enforce", "podSelector": selector})),
        ];
        pod(&compiled(&index(objects)), "p").hold == Hold::Enforce
    };
    let expression = |operator: &str, values: serde_json::Value| json!({"matchExpressions": [{"key": "x", "operator": operator, "values": values}]});
    for (operator, values, with, without) in [
        ("In", json!(["1", "2"]), true, false),
        ("In", json!(["3"]), false, false),
        ("NotIn", json!(["1"]), false, true),
        ("NotIn", json!(["3"]), true, true),
        ("Exists", json!(null), true, false),
        ("DoesNotExist", json!(null), false, true),
    ] {
        let selector = expression(operator, values.clone());
        assert_eq!(
            held(selector.clone(), json!({"x": "1"})),
            with,
            "{operator} {values}"
        );
        assert_eq!(
            held(selector, json!({})),
            without,
            "{operator} {values}, no label"
        );
    }
    assert!(held(json!({}), json!({})), "an empty selector is every pod");
    assert!(!held(
        json!({"matchLabels": {"x": "1", "y": "2"}}),
        json!({"x": "1"})
    ));
}

#[test]
fn a_namespace_is_selected_by_label_and_by_its_name() {
    let held = |selector: serde_json::Value| {
        let objects = [
            mk_namespace(
                "shop",
                json!({"tier": "front", "kubernetes.io/metadata.name": "posing"}),
            ),
            web(),
            mk_lockdown("a", json!({"mode": "Audit", "namespaceSelector": selector})),
        ];
        pod(&compiled(&index(objects)), "web").hold == Hold::Audit
    };
    assert!(held(json!({"matchLabels": {"tier": "front"}})));
    assert!(!held(json!({"matchLabels": {"tier": "back"}})));
    assert!(held(
        json!({"matchLabels": {"kubernetes.io/metadata.name": "shop"}})
    ));
    assert!(!held(
        json!({"matchLabels": {"kubernetes.io/metadata.name": "posing"}})
    ));
}

#[test]
fn an_audit_ends_by_itself() {
    let until = "2026-03-01T00:00:00Z";
    let index = index([
        web(),
        mk_lockdown("a", json!({"mode": "Audit", "auditUntil": until})),
        mk_lockdown(
            "b",
            json!({"mode": "Audit", "auditUntil": "2027-01-01T00:00:00Z"}),
        ),
    ]);
    let compile_at = |now: &str| compile(&index, &Settings::default(), at(now));
    let before = compile_at("2026-02-28T23:59:59Z");
    assert_eq!(pod(&before, "web").hold, Hold::Audit);
    assert_eq!(before.next_change, Some(at(until)));
    let after = compile_at(until);
    assert_eq!(pod(&after, "web").hold, Hold::Enforce);
    assert_eq!(after.next_change, Some(at("2027-01-01T00:00:00Z")));
    assert_eq!(compile_at("2027-01-01T00:00:00Z").next_change, None);
}

#[test]
fn pods_of_this_node_that_are_not_finished() {
    let lockdown = mk_lockdown("a", json!({"mode": "Enforce"}));
    let objects = [
        web(),
        mk_pod(
            "shop",
            "far",
            "web",
            &["10.244.7.2"],
            json!({"spec": {"nodeName": "n2"}}),
        ),
        mk_pod(
            "shop",
            "done",
            "web",
            &["10.244.0.3"],
            json!({"status": {"phase": "Succeeded"}}),
        ),
        mk_pod(
            "shop",
            "starting",
            "web",
            &[],
            json!({"status": {"phase": "Pending"}}),
        ),
        mk_pod(
            "shop",
            "host",
            "web",
            &["192.168.0.1"],
            json!({"spec": {"hostNetwork": true}}),
        ),
        lockdown,
    ];
    let index = index(objects);
    let compiled = compiled(&index);
    let names: Vec<&str> = compiled
        .desired
        .pods
        .values()
        .map(|p| p.name.as_str())
        .collect();
    assert_eq!(names, ["host", "starting", "web"]);
    assert_eq!(
        (
            pod(&compiled, "starting").v4,
            pod(&compiled, "starting").hold
        ),
        (None, Hold::Enforce)
    );
    assert!(pod(&compiled, "host").host_network);
    assert_eq!(
        compiled.desired.policies.len(),
        1,
        "the same policy is shared"
    );
    let everywhere = compile(&index, &Settings::default(), at("2026-01-01T00:00:00Z"));
    assert_eq!(everywhere.desired.pods.len(), 4);
}

#[test]
fn a_static_pod_goes_by_the_hash_that_its_cgroup_bears() {
    let mirror = |name: &str, hash: &str| {
        mk_pod(
            "kube-system",
            name,
            "api",
            &["192.168.0.1"],
            json!({"metadata": {"annotations": {
            "kubernetes.io/config.mirror": hash, "kubernetes.io/config.hash": hash}}}),
        )
    };
    let objects = [mirror("api", "0123"), web(), mirror("posing", "uid-web")];
    let compiled = compiled(&index(objects));
    assert!(compiled.desired.pods.contains_key("0123"));
    assert_eq!(
        pod(&compiled, "web").name,
        "web",
        "nobody takes another pod's place"
    );
}

#[test]
fn the_same_content_has_the_same_name_and_another_has_another() {
    let make = |cidr: &str| {
        let spec = json!({"mode": "Enforce", "allow": {"cidrs": [{"cidr": cidr}]}});
        let compiled = compiled(&index([web(), mk_lockdown("a", spec)]));
        pod(&compiled, "web").policy
    };
    assert_eq!(make("203.0.113.0/24"), make("203.0.113.0/24"));
    assert_ne!(make("203.0.113.0/24"), make("203.0.113.0/25"));
}
