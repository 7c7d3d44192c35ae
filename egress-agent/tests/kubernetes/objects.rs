//! Objects to declare.

use serde_json::{Value, json};

pub const NODE: &str = "node-1";

pub fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": name, "labels": { "kubernetes.io/metadata.name": name } } })
}

pub fn service_account(namespace: &str, name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "name": name, "namespace": namespace } })
}

pub fn node(name: &str, number: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "spec": { "podCIDRs": [format!("10.244.{number}.0/24")] },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": format!("192.168.0.{number}") }],
            "images": [{ "names": ["some/image"], "sizeBytes": 1 }],
        },
    })
}

/// A Ready pod.
pub fn pod(namespace: &str, name: &str, node: &str, ip: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "uid": format!("uid-{namespace}-{name}"),
            "labels": { "app": app } },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i" }] },
        "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

pub fn service(namespace: &str, name: &str, ip: &str, app: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "clusterIP": ip, "clusterIPs": [ip], "selector": { "app": app },
            "ports": [{ "name": "tcp", "port": port, "protocol": "TCP" }] },
    })
}

/// Endpoints that are pods: address and name.
pub fn slice(namespace: &str, service: &str, port: u16, pods: &[(&str, &str)]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|(ip, name)| {
            json!({ "addresses": [ip], "conditions": { "ready": true }, "targetRef": {
                "kind": "Pod", "name": name, "namespace": namespace,
                "uid": format!("uid-{namespace}-{name}") } })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": format!("{service}-1"), "namespace": namespace,
            "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{ "name": "tcp", "port": port, "protocol": "TCP" }],
    })
}

/// Holds a namespace; `cidrs` are open beside the default.
pub fn lockdown(name: &str, namespace: &str, cidrs: &[&str]) -> Value {
    let cidrs: Vec<Value> = cidrs.iter().map(|cidr| json!({ "cidr": cidr })).collect();
    json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": "EgressLockdown",
        "metadata": { "name": name },
        "spec": {
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": namespace } },
            "mode": "Enforce", "allow": { "cidrs": cidrs },
        },
    })
}

/// In Sallyport's own group.
pub fn gateway(namespace: &str, name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": "VirtualGateway",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "workloads": [{ "selector": { "labels": { "app": app } } }],
            "listeners": [{ "port": { "number": 8443 },
                "exposedExternalServices": [{ "host": "*.example.com" }] }] },
    })
}

/// In Gloo Mesh's group.
pub fn gloo(mut object: Value) -> Value {
    let group = if object["kind"] == "AccessPolicy" {
        "security.policy.gloo.solo.io/v2"
    } else {
        "networking.gloo.solo.io/v2"
    };
    object["apiVersion"] = json!(group);
    object
}
