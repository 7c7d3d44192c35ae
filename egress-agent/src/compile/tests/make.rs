//! Objects as Kubernetes would send them, and a lookup as the kernel does it.

use std::net::IpAddr;

use egress_common::reason::Reason;
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::by_clients::compile;
use crate::compile::{Compiled, DesiredPod, Policy, Settings};
use crate::index::{Index, Object};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the test's object is well-formed")
}

pub fn mk_namespace(name: &str, labels: Value) -> Object {
    Object::Namespace(typed(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": labels}})))
}

pub fn mk_node(name: &str, pod_cidrs: &[&str], addresses: &[&str]) -> Object {
    mk_annotated_node(name, pod_cidrs, addresses, json!({}))
}

pub fn mk_annotated_node(
    name: &str,
    pod_cidrs: &[&str],
    addresses: &[&str],
    annotations: Value,
) -> Object {
    let addresses: Vec<Value> = addresses
        .iter()
        .map(|a| json!({"type": "InternalIP", "address": a}))
        .collect();
    Object::Node(typed(json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"podCIDRs": pod_cidrs}, "status": {"addresses": addresses}})))
}

/// A Ready pod on node `n1`; `patch` is merged over it.
pub fn mk_pod(namespace: &str, name: &str, app: &str, ips: &[&str], patch: Value) -> Object {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{name}"),
            "labels": {"app": app}},
        "spec": {"nodeName": "n1", "serviceAccountName": app, "containers": []},
        "status": {"podIPs": ips, "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}]}});
    merge(&mut pod, patch);
    Object::Pod(Box::new(typed(pod)))
}

pub fn mk_account(namespace: &str, name: &str, labels: Value) -> Object {
    Object::ServiceAccount(typed(json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"namespace": namespace, "name": name, "labels": labels}})))
}

/// A Service with one unnamed TCP port that selects by `app`; `patch` is merged over its spec.
pub fn mk_service(namespace: &str, name: &str, ip: &str, port: u16, patch: Value) -> Object {
    let mut spec = json!({"type": "ClusterIP", "clusterIPs": [ip], "selector": {"app": name},
        "ports": [{"port": port, "protocol": "TCP"}]});
    merge(&mut spec, patch);
    Object::Service(Box::new(typed(
        json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec}),
    )))
}

/// A slice of the Service with one unnamed TCP port; endpoints as (address, name of its pod).
pub fn mk_slice(
    namespace: &str,
    service: &str,
    port: u16,
    endpoints: &[(&str, Option<&str>)],
) -> Object {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(ip, pod)| match pod {
            Some(pod) => json!({"addresses": [ip], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": pod, "uid": format!("uid-{pod}")}}),
            None => json!({"addresses": [ip]}),
        })
        .collect();
    mk_raw_slice(
        namespace,
        service,
        json!([{"port": port, "protocol": "TCP"}]),
        json!(endpoints),
    )
}

pub fn mk_raw_slice(namespace: &str, service: &str, ports: Value, endpoints: Value) -> Object {
    Object::EndpointSlice(Box::new(typed(json!({"apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": namespace, "name": slice_name(service),
            "labels": {"kubernetes.io/service-name": service}},
        "ports": ports, "endpoints": endpoints}))))
}

/// The API server's own has the name of its Service, and all others some name.
fn slice_name(service: &str) -> String {
    match service {
        "kubernetes" => service.to_owned(),
        _ => format!("{service}-x"),
    }
}

pub fn mk_lockdown(name: &str, spec: Value) -> Object {
    Object::EgressLockdown(Box::new(typed(
        json!({"apiVersion": "sallyport.dev/v1alpha1",
        "kind": "EgressLockdown", "metadata": {"name": name}, "spec": spec}),
    )))
}

/// A gateway in `istio-egress` for pods labelled `app: gw`, with one listener.
pub fn mk_gateway(name: &str, port: u16, patch: Value) -> Object {
    let mut spec = json!({"workloads": [{"selector": {"labels": {"app": "gw"}}}],
        "listeners": [{"port": {"number": port}}]});
    merge(&mut spec, patch);
    Object::VirtualGateway(typed(json!({"apiVersion": "networking.gloo.solo.io/v2",
        "kind": "VirtualGateway", "metadata": {"namespace": "istio-egress", "name": name},
        "spec": spec})))
}

pub fn mk_external(name: &str, port: u16) -> Object {
    Object::ExternalService(typed(json!({"apiVersion": "networking.gloo.solo.io/v2",
        "kind": "ExternalService", "metadata": {"namespace": "global", "name": name},
        "spec": {"hosts": [name], "ports": [{"number": port, "protocol": "HTTPS"}]}})))
}

pub fn mk_access(name: &str, destination: Value, config: Value) -> Object {
    Object::AccessPolicy(typed(
        json!({"apiVersion": "security.policy.gloo.solo.io/v2",
        "kind": "AccessPolicy", "metadata": {"namespace": "istio-egress", "name": name},
        "spec": {"applyToDestinations": [{"kind": "EXTERNAL_SERVICE", "selector": destination}],
            "config": config}}),
    ))
}

/// JSON merge patch (RFC 7386).
fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (target, patch) => *target = patch,
    }
}

pub fn index(objects: impl IntoIterator<Item = Object>) -> Index {
    let mut index = Index::default();
    for object in objects {
        index.apply(object);
    }
    index
}

pub fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// Compiles for node `n1` with the pod CIDRs 10.244.0.0/16 and `fd00:244::/64`.
pub fn compiled(index: &Index) -> Compiled {
    compiled_with(index, &settings())
}

pub fn compiled_with(index: &Index, settings: &Settings) -> Compiled {
    compile(index, settings, at("2026-01-01T00:00:00Z"))
}

pub fn settings() -> Settings {
    Settings {
        node_name: "n1".into(),
        pod_cidrs: vec![net("10.244.0.0/16"), net("fd00:244::/64")],
        local_addresses: vec![ip("10.244.0.1"), ip("192.168.0.1")],
        cluster_name: Some("cluster1".into()),
        ..Settings::default()
    }
}

pub fn pod<'a>(compiled: &'a Compiled, name: &str) -> &'a DesiredPod {
    compiled
        .desired
        .pods
        .get(&format!("uid-{name}"))
        .expect("the pod is on this node")
}

/// What the kernel says for a packet of the pod: the reason, and the rule in words.
pub fn ask(compiled: &Compiled, name: &str, to: &str, proto: u8, port: u16) -> (Reason, String) {
    let digest = pod(compiled, name).policy.expect("the pod is held");
    let policy = &compiled.desired.policies[&digest];
    let (reason, rule) = look_up(policy, ip(to), proto, port);
    let text = rule.map_or_else(String::new, |rule| policy.rules[usize::from(rule)].clone());
    (reason, text)
}

/// Reason only.
pub fn reason(compiled: &Compiled, name: &str, to: &str, proto: u8, port: u16) -> Reason {
    ask(compiled, name, to, proto, port).0
}

/// Exact, then the longest prefix, as the kernel does it.
pub fn look_up(policy: &Policy, to: IpAddr, proto: u8, port: u16) -> (Reason, Option<u16>) {
    let named = |rule: u16| (rule != egress_common::maps::NO_RULE).then_some(rule);
    let reason = |raw| Reason::from_u8(raw).expect("a reason");
    let exact = match to {
        IpAddr::V4(to) => policy.exact4.get(&(to, port, proto)),
        IpAddr::V6(to) => policy.exact6.get(&(to, port, proto)),
    };
    if let Some(exact) = exact {
        return (reason(exact.reason), named(exact.rule));
    }
    let found = match to {
        IpAddr::V4(to) => policy
            .prefix4
            .iter()
            .filter(|(net, _)| net.contains(&to))
            .max_by_key(|(net, _)| net.prefix_len())
            .map(|(_, rule)| rule),
        IpAddr::V6(to) => policy
            .prefix6
            .iter()
            .filter(|(net, _)| net.contains(&to))
            .max_by_key(|(net, _)| net.prefix_len())
            .map(|(_, rule)| rule),
    };
    let Some(rule) = found else {
        return (Reason::NotAllowed, None);
    };
    let port = if matches!(proto, 1 | 58) { 0 } else { port };
    for range in &rule.ranges[..usize::from(rule.count)] {
        let of_proto = range.proto == 0 || range.proto == proto;
        if of_proto && range.first <= port && port <= range.last {
            return (reason(range.reason), named(range.rule));
        }
    }
    (reason(rule.deny), named(rule.deny_rule))
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn net(text: &str) -> IpNet {
    text.parse().expect("a CIDR")
}
