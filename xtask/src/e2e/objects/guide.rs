//! The objects of the guide, and those of the ways around it.

use serde_json::{Value, json};

use super::{GATEWAY, GATEWAY_APP, GATEWAY_PORT, Names};
use crate::node::plan;

const API: &str = "sallyport.dev/v1alpha1";

/// The lockdown of the held namespace; `allow` is added as it is.
pub fn lockdown(names: &Names, mode: &str, allow: &Value) -> Value {
    let mut object = json!({
        "apiVersion": API, "kind": "EgressLockdown",
        "metadata": { "name": names.lockdown() },
        "spec": {
            "namespaceSelector": {
                "matchLabels": { "kubernetes.io/metadata.name": names.held() },
            },
            "mode": mode,
        },
    });
    if !allow.is_null() {
        object["spec"]["allow"] = allow.clone();
    }
    object
}

pub fn virtual_gateway(names: &Names) -> Value {
    json!({
        "apiVersion": API, "kind": "VirtualGateway",
        "metadata": { "namespace": names.gateway(), "name": GATEWAY },
        "spec": {
            "workloads": [{ "selector": { "labels": { "app": GATEWAY_APP } } }],
            "listeners": [{
                "exposedExternalServices": [{ "host": plan::OUTSIDE_NAME }],
                "port": { "number": 443 },
                "tls": { "mode": "ISTIO_MUTUAL" },
            }],
        },
    })
}

pub fn external_service(names: &Names) -> Value {
    json!({
        "apiVersion": API, "kind": "ExternalService",
        "metadata": { "namespace": names.global(), "name": plan::OUTSIDE_NAME },
        "spec": {
            "hosts": [plan::OUTSIDE_NAME],
            "ports": [{
                "name": "https",
                "number": plan::OUTSIDE_HTTPS,
                "protocol": "HTTPS",
                "clientsideTls": {},
                "egressGatewayRoutes": {
                    "portMatch": 80,
                    "virtualGatewayRefs": [{ "name": GATEWAY, "namespace": names.gateway() }],
                },
            }],
        },
    })
}

/// Admits the service accounts with the label `account: productpage` of the held namespace.
pub fn access_policy(names: &Names) -> Value {
    json!({
        "apiVersion": API, "kind": "AccessPolicy",
        "metadata": { "namespace": names.gateway(), "name": "egress-access-policy" },
        "spec": {
            "applyToDestinations": [{
                "kind": "EXTERNAL_SERVICE",
                "port": { "number": plan::OUTSIDE_HTTPS },
                "selector": { "name": plan::OUTSIDE_NAME, "namespace": names.global() },
            }],
            "config": { "authz": { "allowedClients": [{
                "serviceAccountSelector": {
                    "labels": { "account": "productpage" },
                    "namespace": names.held(),
                },
            }] } },
        },
    })
}

pub fn gateway_service(names: &Names) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": names.gateway(), "name": GATEWAY_APP },
        "spec": {
            "selector": { "app": GATEWAY_APP },
            "ports": [{
                "name": "tls", "port": 443, "targetPort": GATEWAY_PORT, "protocol": "TCP",
            }],
        },
    })
}

/// A Service without a selector: whoever may write `EndpointSlice`s says what is behind it.
pub fn leaking_service(names: &Names) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": names.held(), "name": "leak" },
        "spec": {
            "type": "NodePort",
            "ports": [{
                "name": "http", "port": plan::OUTSIDE_HTTP, "targetPort": plan::OUTSIDE_HTTP,
                "protocol": "TCP",
            }],
        },
    })
}

/// The outside host behind that Service.
pub fn endpoint_slice(names: &Names) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": names.held(),
            "name": "leak-outside",
            "labels": { "kubernetes.io/service-name": "leak" },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": plan::OUTSIDE_HTTP, "protocol": "TCP" }],
        "endpoints": [{
            "addresses": [plan::OUTSIDE.v4], "conditions": { "ready": true },
        }],
    })
}
