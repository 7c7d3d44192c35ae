//! The node's state as ordinary Kubernetes objects, one YAML file each.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::plan;
use super::pod::PodSpec;
use super::service::Service;

/// A directory of objects, as the agent's `--state-dir` takes it.
#[derive(Clone, Debug)]
pub struct StateDirectory {
    path: PathBuf,
}

impl StateDirectory {
    /// The directory must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes an object to the file that bears its kind, namespace and name. A reader sees the
    /// old one or the new one whole.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let name = file_name(object);
        let text = serde_yaml_ng::to_string(object).context("an object as YAML")?;
        self.write(&name, &text)
    }

    /// Writes a manifest as it is to this file.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        // A name that no reader takes for a manifest.
        let new = self.path.join(format!(".{name}.new"));
        fs::write(&new, text).with_context(|| format!("cannot write {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes a file; one that is not there is no error.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Name of the file of an object.
pub fn file_name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    let parts = [
        text(&object["kind"]).to_lowercase(),
        text(&metadata["namespace"]),
        text(&metadata["name"]),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    format!("{}.yaml", parts.join("-"))
}

/// The Node.
pub fn node() -> Value {
    let addresses: Vec<Value> = plan::NODE
        .all()
        .iter()
        .map(|ip| json!({ "type": "InternalIP", "address": ip }))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": plan::NODE_NAME },
        "spec": { "podCIDR": plan::POD_CIDRS[0], "podCIDRs": plan::POD_CIDRS },
        "status": { "addresses": addresses },
    })
}

pub fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } },
    })
}

/// A service account with the label `account`, as the guide's policies select by.
pub fn service_account(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": { "namespace": namespace, "name": name, "labels": { "account": name } },
    })
}

/// A pod that runs and is ready.
pub fn pod(spec: &PodSpec) -> Value {
    // In the node's network nothing holds who can write frames to its devices.
    let dropped: &[&str] = if spec.host_network { &["NET_RAW"] } else { &[] };
    let ips: Vec<Value> = spec
        .ips
        .all()
        .iter()
        .map(|ip| json!({ "ip": ip }))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": spec.namespace,
            "name": spec.name,
            "uid": spec.uid,
            "labels": spec.labels,
        },
        "spec": {
            "nodeName": plan::NODE_NAME,
            "serviceAccountName": spec.service_account,
            "hostNetwork": spec.host_network,
            "containers": [{
                "name": super::ANY_CONTAINER,
                "image": "example.com/app",
                "securityContext": { "capabilities": { "drop": dropped } },
            }],
        },
        "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": "True" }],
            "podIP": spec.ips.v4,
            "podIPs": ips,
            "hostIP": plan::NODE.v4,
        },
    })
}

pub fn service(service: &Service) -> Value {
    let selector: serde_json::Map<String, Value> = service
        .selector
        .iter()
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            let mut value = json!({
                "name": port.name,
                "protocol": port.protocol,
                "port": port.port,
                "targetPort": port.target_port,
            });
            if let Some(node_port) = port.node_port {
                value["nodePort"] = json!(node_port);
            }
            value
        })
        .collect();
    let outside = service.ports.iter().any(|port| port.node_port.is_some());
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": service.namespace, "name": service.name },
        "spec": {
            "type": if outside { "NodePort" } else { "ClusterIP" },
            "selector": selector,
            "clusterIP": service.cluster_ips.v4,
            "clusterIPs": service.cluster_ips.all(),
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": ports,
        },
    })
}

/// The Service's endpoints: one slice for each family.
pub fn endpoint_slices(service: &Service) -> [Value; 2] {
    let ips = service.backend.ips.all();
    [("IPv4", "v4", ips[0]), ("IPv6", "v6", ips[1])].map(|(family, suffix, ip)| {
        let mut endpoint =
            json!({ "addresses": [ip], "conditions": { "ready": true, "serving": true } });
        if let Some((namespace, name, uid)) = &service.backend.pod {
            endpoint["nodeName"] = json!(plan::NODE_NAME);
            endpoint["targetRef"] =
                json!({ "kind": "Pod", "namespace": namespace, "name": name, "uid": uid });
        }
        let ports: Vec<Value> = service
            .ports
            .iter()
            .map(|port| {
                json!({ "name": port.name, "protocol": port.protocol, "port": port.target_port })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": service.namespace,
                "name": format!("{}-{suffix}", service.name),
                "labels": { "kubernetes.io/service-name": service.name },
            },
            "addressType": family,
            "endpoints": [endpoint],
            "ports": ports,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_by_what_they_hold() {
        assert_eq!(file_name(&node()), "node-miniature.yaml");
        let account = service_account("bookinfo", "reviews");
        assert_eq!(file_name(&account), "serviceaccount-bookinfo-reviews.yaml");
    }

    #[test]
    fn an_object_replaces_its_older_self() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::new(directory.path());
        state.apply(&namespace("bookinfo")).unwrap();
        state.apply(&namespace("bookinfo")).unwrap();
        let files: Vec<_> = fs::read_dir(state.path()).unwrap().collect();
        assert_eq!(files.len(), 1);
        state.remove("namespace-bookinfo.yaml").unwrap();
        state.remove("namespace-bookinfo.yaml").unwrap();
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }
}
