//! Which pods are gateways, and which of their ports are open.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::make::{
    TCP, UDP, ask, compiled, index, mk_access, mk_account, mk_external, mk_gateway, mk_lockdown,
    mk_pod, mk_raw_slice, mk_service, mk_slice, pod, reason,
};
use crate::compile::{Compiled, Hold, Settings, listener_ports};
use crate::index::{Key, Object};
use egress_common::reason::Reason;

const GW: &str = "10.244.0.9";

fn gw(patch: Value) -> Object {
    mk_pod("istio-egress", "gw", "gw", &[GW], patch)
}

fn held(objects: impl IntoIterator<Item = Object>) -> Compiled {
    let base = [
        mk_pod("shop", "web", "web", &["10.244.0.2"], json!({})),
        mk_lockdown("l", json!({"mode": "Enforce"})),
        mk_gateway("vg", 443, json!({})),
    ];
    compiled(&index(base.into_iter().chain(objects)))
}

#[test]
fn a_listener_is_open_and_the_other_ports_are_not() {
    let compiled = held([gw(json!({}))]);
    let (passed, rule) = ask(&compiled, "web", GW, TCP, 443);
    assert_eq!(passed, Reason::Gateway);
    assert_eq!(rule, "VirtualGateway/istio-egress/vg listeners[0]");
    for (proto, port) in [(TCP, 15000), (TCP, 80), (UDP, 443), (1, 0)] {
        assert_eq!(
            reason(&compiled, "web", GW, proto, port),
            Reason::GatewayPort
        );
    }
    assert_eq!(
        reason(&compiled, "web", "10.244.0.8", TCP, 15000),
        Reason::Cluster
    );
    let gw = pod(&compiled, "gw");
    assert!(gw.gateway);
    assert_eq!(
        (gw.hold, gw.policy),
        (Hold::Off, None),
        "a gateway is not held"
    );
}

#[test]
fn a_service_tells_where_the_listener_is() {
    let compiled = held([
        gw(json!({})),
        mk_service("istio-egress", "gw", "10.96.0.10", 443, json!({})),
        mk_slice("istio-egress", "gw", 8443, &[(GW, Some("gw"))]),
    ]);
    assert_eq!(reason(&compiled, "web", GW, TCP, 8443), Reason::Gateway);
    assert_eq!(reason(&compiled, "web", GW, TCP, 443), Reason::GatewayPort);
    assert_eq!(
        reason(&compiled, "web", "10.96.0.10", TCP, 443),
        Reason::Gateway
    );
    assert_eq!(
        reason(&compiled, "web", "10.96.0.10", TCP, 8443),
        Reason::GatewayPort
    );
}

#[test]
fn the_ports_of_a_gateway_are_known_before_it_is_ready() {
    let starting = json!({"status": {"conditions": []}});
    let index = index([
        gw(starting),
        mk_gateway("vg", 443, json!({})),
        mk_gateway("vg2", 80, json!({})),
        mk_service("istio-egress", "gw", "10.96.0.10", 443, json!({})),
        mk_slice("istio-egress", "gw", 8443, &[(GW, Some("gw"))]),
    ]);
    let ports = listener_ports(&index, &Settings::default());
    let of = |name: &str| ports[&Key::new("istio-egress", name)].clone();
    assert_eq!(of("vg"), BTreeMap::from([(443, BTreeSet::from([8443]))]));
    assert_eq!(of("vg2"), BTreeMap::from([(80, BTreeSet::from([80]))]));
}

#[test]
fn an_endpoint_of_another_pod_uid_is_no_listener() {
    let compiled = held([
        gw(json!({"metadata": {"uid": "uid-new"}})),
        mk_service("istio-egress", "gw", "10.96.0.10", 443, json!({})),
        mk_slice("istio-egress", "gw", 8443, &[(GW, Some("gw"))]),
    ]);
    assert_eq!(reason(&compiled, "web", GW, TCP, 8443), Reason::GatewayPort);
    assert_eq!(
        reason(&compiled, "web", "10.96.0.10", TCP, 443),
        Reason::GatewayPort
    );
}

#[test]
fn the_services_of_others_open_nothing() {
    // Somebody's Service of the listener's number that leads to the gateway's admin port.
    let service = mk_service("shop", "gw", "10.96.0.11", 443, json!({}));
    let slice = mk_slice("shop", "gw", 15000, &[(GW, Some("gw"))]);
    let compiled = held([gw(json!({})), service, slice]);
    assert_eq!(
        reason(&compiled, "web", GW, TCP, 15000),
        Reason::GatewayPort
    );
    assert_eq!(reason(&compiled, "web", GW, TCP, 443), Reason::Gateway);
    assert!(!reason(&compiled, "web", "10.96.0.11", TCP, 443).passes());
}

#[test]
fn a_cluster_ip_is_a_gateway_only_while_all_behind_it_are() {
    let endpoints = |second: Value| {
        let first = json!({"addresses": [GW], "targetRef": {"kind": "Pod", "uid": "uid-gw"}});
        mk_raw_slice(
            "istio-egress",
            "gw",
            json!([{"port": 8443}]),
            json!([first, second]),
        )
    };
    let with = |second: Value| {
        held([
            gw(json!({})),
            mk_service("istio-egress", "gw", "10.96.0.10", 443, json!({})),
            endpoints(second),
        ])
    };
    let other_pod = with(json!({"addresses": ["10.244.0.7"],
        "targetRef": {"kind": "Pod", "uid": "uid-x"}}));
    let (passed, rule) = ask(&other_pod, "web", "10.96.0.10", TCP, 443);
    assert_eq!(
        passed,
        Reason::Cluster,
        "no gateway, but all in the cluster: {rule}"
    );
    let outside = with(json!({"addresses": ["203.0.113.5"]}));
    assert!(!reason(&outside, "web", "10.96.0.10", TCP, 443).passes());
    assert_eq!(
        reason(&outside, "web", GW, TCP, 8443),
        Reason::Gateway,
        "itself it stays one"
    );
    let starting = with(
        json!({"addresses": ["10.244.0.7"], "conditions": {"ready": false},
        "targetRef": {"kind": "Pod", "uid": "uid-x"}}),
    );
    assert_eq!(
        reason(&starting, "web", "10.96.0.10", TCP, 443),
        Reason::Gateway
    );
}

#[test]
fn a_gateway_that_comes_or_goes_does_not_cut_the_way_to_the_others() {
    let not_ready = json!({"status": {"conditions": []}});
    let second = || {
        mk_pod(
            "istio-egress",
            "gw2",
            "gw",
            &["10.244.0.8"],
            not_ready.clone(),
        )
    };
    let with = |first: bool, port: u16| {
        let endpoints = json!([
            {"addresses": [GW], "conditions": {"ready": first},
                "targetRef": {"kind": "Pod", "uid": "uid-gw"}},
            {"addresses": ["10.244.0.8"], "conditions": {"ready": false},
                "targetRef": {"kind": "Pod", "uid": "uid-gw2"}},
        ]);
        let patch = if first { json!({}) } else { not_ready.clone() };
        held([
            gw(patch),
            second(),
            mk_service("istio-egress", "gw", "10.96.0.10", 443, json!({})),
            mk_raw_slice("istio-egress", "gw", json!([{"port": port}]), endpoints),
        ])
    };
    let one_ready = with(true, 8443);
    let at = |compiled: &Compiled, ip: &str, port: u16| reason(compiled, "web", ip, TCP, port);
    assert_eq!(at(&one_ready, "10.96.0.10", 443), Reason::Gateway);
    assert_eq!(at(&one_ready, "10.244.0.8", 8443), Reason::GatewayPort);
    let none_ready = with(false, 8443);
    assert_eq!(at(&none_ready, "10.96.0.10", 443), Reason::GatewayPort);
}

#[test]
fn only_ready_pods_are_gateways_and_the_others_stay_guarded() {
    for patch in [
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
        json!({"status": {"conditions": []}}),
    ] {
        let compiled = held([gw(patch.clone())]);
        assert!(!pod(&compiled, "gw").gateway, "{patch}");
        assert_eq!(pod(&compiled, "gw").hold, Hold::Enforce, "{patch}");
        assert_eq!(
            reason(&compiled, "web", GW, TCP, 443),
            Reason::GatewayPort,
            "{patch}"
        );
    }
    let compiled = held([gw(json!({"status": {"phase": "Failed"}}))]);
    assert_eq!(
        reason(&compiled, "web", GW, TCP, 15000),
        Reason::Cluster,
        "its address is free"
    );
}

#[test]
fn labels_elsewhere_make_no_gateway() {
    let posing = mk_pod("shop", "posing", "gw", &["10.244.0.7"], json!({}));
    let compiled = held([gw(json!({})), posing]);
    assert!(!pod(&compiled, "posing").gateway);
    assert_eq!(pod(&compiled, "posing").hold, Hold::Enforce);
    let elsewhere =
        json!({"workloads": [{"selector": {"labels": {"app": "gw"}, "namespace": "shop"}}]});
    let posing = mk_pod("shop", "meant", "gw", &["10.244.0.7"], json!({}));
    let compiled = held([mk_gateway("vg2", 80, elsewhere), posing]);
    assert!(pod(&compiled, "meant").gateway);
    assert_eq!(
        reason(&compiled, "web", "10.244.0.7", TCP, 80),
        Reason::Gateway
    );
}

#[test]
fn selectors_of_nothing_and_of_other_clusters_are_reported() {
    let none = json!({"workloads": [{"selector": {"namespace": "istio-egress"}}]});
    let foreign =
        json!({"workloads": [{"selector": {"labels": {"app": "gw"}, "cluster": "cluster2"}}]});
    let ours =
        json!({"workloads": [{"selector": {"labels": {"app": "gw"}, "cluster": "cluster1"}}]});
    let web = || mk_pod("istio-egress", "gw", "gw", &[GW], json!({}));
    let lockdown = || mk_lockdown("l", json!({"mode": "Enforce"}));
    for (patch, field) in [
        (none, "spec.workloads[0].selector.labels"),
        (foreign, "spec.workloads[0].selector.cluster"),
    ] {
        let compiled = compiled(&index([web(), lockdown(), mk_gateway("vg", 443, patch)]));
        assert!(!pod(&compiled, "gw").gateway);
        assert_eq!(compiled.problems[0].field, field);
        assert_eq!(
            compiled.problems[0].object.to_string(),
            "VirtualGateway/istio-egress/vg"
        );
    }
    let compiled = compiled(&index([web(), lockdown(), mk_gateway("vg", 443, ours)]));
    assert!(pod(&compiled, "gw").gateway);
    assert!(compiled.problems.is_empty());
}

#[test]
fn a_gateway_of_the_host_network_does_not_open_its_node() {
    let host = mk_pod(
        "istio-egress",
        "gw",
        "gw",
        &["192.168.0.2"],
        json!({"spec": {"hostNetwork": true}}),
    );
    let everything = mk_lockdown(
        "more",
        json!({"mode": "Enforce",
        "allow": {"cluster": ["Pods", "Nodes", "APIServer"], "cidrs": [{"cidr": "0.0.0.0/0"}]}}),
    );
    let api = mk_slice("default", "kubernetes", 6443, &[("192.168.0.2", None)]);
    let compiled = held([host, everything, api]);
    assert_eq!(
        reason(&compiled, "web", "192.168.0.2", TCP, 443),
        Reason::Gateway
    );
    assert_eq!(
        reason(&compiled, "web", "192.168.0.2", TCP, 6443),
        Reason::Cluster
    );
    assert_eq!(
        reason(&compiled, "web", "192.168.0.2", TCP, 10250),
        Reason::GatewayPort
    );
}

#[test]
fn a_guard_wins_over_exceptions_of_any_length() {
    for cidr in ["0.0.0.0/0", "10.244.0.0/16", "10.244.0.9/32"] {
        let spec = json!({"mode": "Enforce", "allow": {"cidrs": [
            {"cidr": cidr}, {"cidr": cidr, "ports": [{"port": 15000}]}]}});
        let compiled = held([gw(json!({})), mk_lockdown("wide", spec)]);
        assert_eq!(
            reason(&compiled, "web", GW, TCP, 15000),
            Reason::GatewayPort,
            "{cidr}"
        );
    }
}

#[test]
fn under_policy_only_admitted_accounts_reach_the_gateway() {
    let client = |labels: Value| {
        json!({"authz": {"allowedClients": [
        {"serviceAccountSelector": {"namespace": "shop", "labels": labels}}]}})
    };
    let compile = |config: Value| {
        held([
            gw(json!({})),
            mk_service("istio-egress", "gw", "10.96.0.10", 443, json!({})),
            mk_slice("istio-egress", "gw", 443, &[(GW, Some("gw"))]),
            mk_lockdown(
                "by-policy",
                json!({"mode": "Enforce", "gatewayAccess": "Policy"}),
            ),
            mk_account("shop", "web", json!({"account": "productpage"})),
            mk_external("httpbin.org", 443),
            mk_access("p", json!({"name": "httpbin.org"}), config),
        ])
    };
    let admitted = compile(client(json!({"account": "productpage"})));
    assert_eq!(reason(&admitted, "web", GW, TCP, 443), Reason::Gateway);
    assert_eq!(
        reason(&admitted, "web", "10.96.0.10", TCP, 443),
        Reason::Gateway
    );
    let refused = compile(client(json!({"account": "reviews"})));
    assert_eq!(reason(&refused, "web", GW, TCP, 443), Reason::GatewayPort);
    assert_eq!(
        reason(&refused, "web", "10.96.0.10", TCP, 443),
        Reason::GatewayPort
    );
}
