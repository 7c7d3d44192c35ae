//! `deploy/gateway`: what its manifests say, and that they fit together.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use egress_agent::gateway::envoy::{Bootstrap, files};
use egress_agent::gateway::{ObjectName, OutboundPolicy, compile, from_index};
use egress_agent::index::Index;
use egress_agent::policy_server::gateway_pods;
use egress_agent::source::decode;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Namespace, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::policy_server::server_id;

/// The agent's own objects, which the index reads; the others are for Kubernetes alone.
const READ: [&str; 3] = ["Service", "ServiceAccount", "VirtualGateway"];

/// The manifests, as one text.
pub fn text() -> String {
    let file = directory().join("gateway.yaml");
    std::fs::read_to_string(file).expect("deploy/gateway/gateway.yaml")
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/gateway")
}

/// The object of a kind.
pub fn object(text: &str, kind: &str) -> Value {
    let mut found = objects(text).into_iter().filter(|it| it["kind"] == *kind);
    let object = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "one {kind} only");
    object
}

fn objects(text: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).expect("YAML"))
        .collect()
}

/// The gateway's container.
pub fn container(text: &str) -> Container {
    let deployment: Deployment =
        serde_json::from_value(object(text, "Deployment")).expect("a Deployment");
    let pod = deployment.spec.and_then(|spec| spec.template.spec);
    let mut containers = pod.expect("a pod").containers;
    assert_eq!(containers.len(), 1);
    containers.remove(0)
}

/// What an agent reads of these manifests, once a pod of the Deployment has this address.
pub fn index(text: &str, pod_ip: &str) -> Index {
    let mut index = Index::default();
    let deployment = object(text, "Deployment");
    let template = &deployment["spec"]["template"];
    let service = object(text, "Service");
    let port = &service["spec"]["ports"][0];
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "egress-gateway-0", "namespace": deployment["metadata"]["namespace"],
                      "uid": "u", "labels": template["metadata"]["labels"] },
        "spec": template["spec"],
        "status": { "phase": "Running", "podIPs": [{ "ip": pod_ip }] },
    });
    // As Kubernetes makes it of the Service.
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "egress-gateway-0",
                      "namespace": service["metadata"]["namespace"],
                      "labels": { "kubernetes.io/service-name": service["metadata"]["name"] } },
        "endpoints": [{ "addresses": [pod_ip], "conditions": { "ready": false },
                        "targetRef": { "kind": "Pod", "name": "egress-gateway-0",
                                       "namespace": service["metadata"]["namespace"] } }],
        "ports": [{ "name": port["name"], "port": port["targetPort"], "protocol": "TCP" }],
    });
    let read = objects(text)
        .into_iter()
        .filter(|it| READ.iter().any(|kind| it["kind"] == *kind));
    for object in read.chain([pod, slice]) {
        apply(&mut index, &object.to_string());
    }
    index
}

/// Objects in YAML or JSON.
pub fn apply(index: &mut Index, text: &str) {
    for located in decode(text).expect("sound objects") {
        index.apply(located.object);
    }
    let problems: Vec<_> = index.problems().collect();
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn the_bootstrap_is_the_one_that_is_rendered() {
    let config: ConfigMap = serde_json::from_value(object(&text(), "ConfigMap")).expect("its kind");
    let rendered = files(&Bootstrap {
        gateway: ObjectName::new("sallyport-egress", "egress-gateway"),
        server: (
            "sallyport-policy.sallyport-system.svc.cluster.local".to_owned(),
            9443,
        ),
        server_id: server_id(),
        cert_dir: "/etc/sallyport/tls".into(),
        config_dir: "/etc/envoy".into(),
        admin_port: Some(15000),
    });
    let written = config.data.expect("data");
    assert_eq!(written.len(), rendered.len());
    for (name, text) in rendered {
        assert!(
            written.get(name) == Some(&text),
            "put this into deploy/gateway/gateway.yaml as {name}:\n{text}"
        );
    }
}

/// Kubernetes' own types drop what they don't know, a misspelt field say.
fn check<T: DeserializeOwned + Serialize>(object: &Value) {
    let typed: T = serde_json::from_value(object.clone()).expect("an object of its kind");
    let again = serde_json::to_value(&typed).expect("JSON");
    assert_eq!(&again, object);
}

#[test]
fn every_field_is_one_that_kubernetes_knows() {
    let text = text();
    for object in objects(&text) {
        match object["kind"].as_str().expect("a kind") {
            "Namespace" => check::<Namespace>(&object),
            "ServiceAccount" => check::<ServiceAccount>(&object),
            "Service" => check::<Service>(&object),
            "ConfigMap" => check::<ConfigMap>(&object),
            "Deployment" => check::<Deployment>(&object),
            "PodDisruptionBudget" => check::<PodDisruptionBudget>(&object),
            "VirtualGateway" => apply(&mut Index::default(), &object.to_string()),
            other => panic!("{other} is not checked here"),
        }
    }
}

#[test]
fn the_parts_name_each_other_rightly() {
    let text = text();
    let index = index(&text, "10.0.0.9");
    let pods = gateway_pods(&index, "cluster.local");
    let pod = &pods[&"10.0.0.9".parse::<IpAddr>().expect("an address")];
    let config = object(&text, "ConfigMap");
    let boot = config["data"]["bootstrap.json"].as_str().expect("text");
    let boot: Value = serde_json::from_str(boot).expect("JSON");
    let named: Vec<String> = pod.gateways.iter().map(ToString::to_string).collect();
    assert_eq!(json!(named), json!([boot["node"]["cluster"]]));

    let certificate = std::fs::read_to_string(directory().join("cert-manager/certificate.yaml"));
    let certificate = object(&certificate.expect("a file"), "Certificate");
    assert_eq!(
        certificate["spec"]["uris"],
        json!([pod.identity.to_string()])
    );
    let deployment = object(&text, "Deployment");
    let spec = &deployment["spec"]["template"]["spec"];
    let volumes = spec["volumes"].as_array().expect("volumes");
    let tls = volumes.iter().find(|it| it["name"] == "tls").expect("tls");
    assert_eq!(
        tls["secret"]["secretName"],
        certificate["spec"]["secretName"]
    );
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for selector in [
        &deployment["spec"]["selector"]["matchLabels"],
        &object(&text, "Service")["spec"]["selector"],
        &object(&text, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ] {
        assert_eq!(selector, labels);
    }

    let objects = from_index::objects(&index, "cluster.local", None, OutboundPolicy::default());
    let (policy, problems) = compile(&objects);
    assert_eq!(problems, []);
    let listeners = policy.gateways.values().flat_map(|it| it.listeners.keys());
    let listeners: Vec<u16> = listeners.copied().collect();
    let container = container(&text);
    let ports = container.ports.expect("ports");
    let declared: Vec<i32> = ports.iter().map(|port| port.container_port).collect();
    assert_eq!((listeners, declared), (vec![8443], vec![8443]));
}

#[test]
fn nobody_outside_the_pod_reaches_the_admin_interface() {
    let config = object(&text(), "ConfigMap");
    let boot = config["data"]["bootstrap.json"].as_str().expect("text");
    let boot: Value = serde_json::from_str(boot).expect("JSON");
    let address = &boot["admin"]["address"]["socket_address"]["address"];
    assert_eq!(address, "127.0.0.1");
}
