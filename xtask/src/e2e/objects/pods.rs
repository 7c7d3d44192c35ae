//! Pods: held ones, gateways, helpers.

use serde_json::{Value, json};

use super::{CERTS, GATEWAY_APP, GATEWAY_PORT, LABEL, Names, SCRATCH};
use crate::node::plan;

/// Where the small program is in the image of the suite.
const PROBE: &str = "/usr/local/bin/e2e-probe";
/// Where Envoy is, in ours and in Envoy's own image.
const ENVOY: &str = "/usr/local/bin/envoy";

/// An image as pods take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub reference: String,
    /// `Never`, `IfNotPresent` or `Always`.
    pub pull_policy: String,
}

/// A container that runs the suite's small program.
#[derive(Clone, Debug)]
pub struct Container<'a> {
    pub name: &'a str,
    pub image: &'a Image,
    pub args: Vec<String>,
    pub user: u32,
    /// Capabilities beside none at all.
    pub capabilities: &'a [&'a str],
}

impl<'a> Container<'a> {
    /// As root with the capabilities of an attacker in its own namespace.
    pub fn attacker(image: &'a Image, args: &[&str]) -> Self {
        Self {
            name: "app",
            image,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            user: 0,
            capabilities: &["NET_RAW", "NET_ADMIN"],
        }
    }

    pub fn value(&self) -> Value {
        json!({
            "name": self.name,
            "image": self.image.reference,
            "imagePullPolicy": self.image.pull_policy,
            "command": [PROBE],
            "args": self.args,
            "securityContext": {
                "runAsUser": self.user,
                "allowPrivilegeEscalation": false,
                "capabilities": { "drop": ["ALL"], "add": self.capabilities },
            },
        })
    }
}

/// A pod on a given node.
#[derive(Clone, Debug)]
pub struct PodOf<'a> {
    pub names: &'a Names,
    pub namespace: &'a str,
    pub name: &'a str,
    pub node: &'a str,
    pub account: &'a str,
    pub labels: &'a [(&'a str, &'a str)],
    /// Secret with its certificate, in each container at [`CERTS`].
    pub certs: Option<&'a str>,
    pub host_network: bool,
    pub init: Vec<Value>,
    pub containers: Vec<Value>,
}

impl<'a> PodOf<'a> {
    /// Without labels, certificate or init containers.
    pub fn plain(
        names: &'a Names,
        namespace: &'a str,
        name: &'a str,
        node: &'a str,
        containers: Vec<Value>,
    ) -> Self {
        Self {
            names,
            namespace,
            name,
            node,
            account: "default",
            labels: &[],
            certs: None,
            host_network: false,
            init: Vec::new(),
            containers,
        }
    }

    pub fn value(&self) -> Value {
        let mut labels = json!({ LABEL: self.names.prefix });
        for (key, value) in self.labels {
            labels[key] = json!(value);
        }
        let mut volumes = vec![json!({ "name": "scratch", "emptyDir": {} })];
        let mut mounts = vec![json!({ "name": "scratch", "mountPath": SCRATCH })];
        if let Some(secret) = self.certs {
            volumes.push(json!({ "name": "certs", "secret": { "secretName": secret } }));
            mounts.push(json!({ "name": "certs", "mountPath": CERTS, "readOnly": true }));
        }
        let mounted = |containers: &[Value]| -> Vec<Value> {
            let containers = containers.iter().cloned();
            containers
                .map(|mut container| {
                    container["volumeMounts"] = json!(mounts);
                    container
                })
                .collect()
        };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": self.namespace, "name": self.name, "labels": labels },
            "spec": {
                // Not by the scheduler: several cases need to know where a pod is.
                "nodeName": self.node,
                "serviceAccountName": self.account,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "hostNetwork": self.host_network,
                "restartPolicy": "Always",
                "terminationGracePeriodSeconds": 1,
                "tolerations": [{ "operator": "Exists" }],
                "initContainers": mounted(&self.init),
                "containers": mounted(&self.containers),
                "volumes": volumes,
            },
        })
    }
}

pub fn service_account(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Value {
    let labels: serde_json::Map<String, Value> = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "namespace": namespace, "name": name, "labels": labels },
        "automountServiceAccountToken": false,
    })
}

/// A stock Envoy that has a bootstrap and gets the rest from the agent. It is Ready when it listens,
/// which it does once it has its whole configuration.
pub fn gateway_pod(names: &Names, node: &str, image: &Image) -> Value {
    let namespace = names.gateway();
    let container = json!({
        "name": "envoy",
        "image": image.reference,
        "imagePullPolicy": image.pull_policy,
        "command": [ENVOY],
        "args": [
            "--config-path", "/etc/envoy/bootstrap.json", "--service-node", "egress-gateway",
            "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning",
        ],
        "readinessProbe": {
            "tcpSocket": { "port": GATEWAY_PORT }, "periodSeconds": 2, "failureThreshold": 2,
        },
        "securityContext": {
            "runAsUser": 0,
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
        },
    });
    let mut pod = PodOf {
        account: super::GATEWAY_ACCOUNT,
        labels: &[("app", GATEWAY_APP)],
        certs: Some("gateway-tls"),
        ..PodOf::plain(names, &namespace, "egress-gateway", node, vec![container])
    }
    .value();
    let bootstrap = json!({ "name": "bootstrap", "mountPath": "/etc/envoy", "readOnly": true });
    if let Some(mounts) = pod["spec"]["containers"][0]["volumeMounts"].as_array_mut() {
        mounts.push(bootstrap);
    }
    if let Some(volumes) = pod["spec"]["volumes"].as_array_mut() {
        volumes.push(json!({ "name": "bootstrap", "configMap": { "name": "bootstrap" } }));
    }
    // The outside's DNS, as far as there is an outside.
    pod["spec"]["hostAliases"] = json!([
        { "ip": plan::OUTSIDE.v4, "hostnames": [plan::OUTSIDE_NAME] },
    ]);
    pod
}

/// Name of the helpers.
pub const HELPER: &str = "outside";

/// The outside host on each node: it needs the node's network to hang on, and leave to make a
/// network namespace. It looks at the node for the suite too.
pub fn outside_daemon_set(names: &Names, image: &Image) -> Value {
    let labels = json!({ LABEL: names.prefix, "app": HELPER });
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "namespace": names.outside(), "name": HELPER, "labels": labels },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "hostNetwork": true,
                    "hostPID": true,
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "terminationGracePeriodSeconds": 1,
                    "tolerations": [{ "operator": "Exists" }],
                    // Before the other, whose volume is of what is mounted when it starts.
                    "initContainers": [{
                        "name": "bpffs",
                        "image": image.reference,
                        "imagePullPolicy": image.pull_policy,
                        "command": [PROBE],
                        "args": ["bpffs"],
                        "securityContext": { "privileged": true, "runAsUser": 0 },
                    }],
                    "containers": [{
                        "name": "outside",
                        "image": image.reference,
                        "imagePullPolicy": image.pull_policy,
                        "command": [PROBE],
                        "args": [
                            "outside", "--certificates", CERTS,
                            "--record", format!("{SCRATCH}/seen"),
                        ],
                        "securityContext": { "privileged": true, "runAsUser": 0 },
                        "volumeMounts": [
                            { "name": "certs", "mountPath": CERTS, "readOnly": true },
                            { "name": "scratch", "mountPath": SCRATCH },
                            { "name": "bpffs", "mountPath": "/host/bpf", "readOnly": true },
                        ],
                    }],
                    "volumes": [
                        { "name": "certs", "secret": { "secretName": "outside-tls" } },
                        { "name": "scratch", "emptyDir": {} },
                        { "name": "bpffs", "hostPath": {
                            "path": "/sys/fs/bpf", "type": "Directory",
                        } },
                    ],
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image {
            reference: "sallyport/e2e:1".into(),
            pull_policy: "Never".into(),
        }
    }

    #[test]
    fn every_container_has_the_pods_certificate() {
        let names = Names { prefix: "t".into() };
        let image = image();
        let container = Container::attacker(&image, &["pause"]).value();
        let pod = PodOf {
            certs: Some("tls"),
            init: vec![container.clone()],
            ..PodOf::plain(&names, "t-a", "p", "n", vec![container])
        }
        .value();
        for container in [
            &pod["spec"]["containers"][0],
            &pod["spec"]["initContainers"][0],
        ] {
            let mounts = container["volumeMounts"].as_array().unwrap();
            assert!(mounts.iter().any(|mount| mount["mountPath"] == CERTS));
            assert_eq!(container["imagePullPolicy"], "Never");
        }
    }

    #[test]
    fn the_gateway_is_ready_when_it_listens_and_knows_the_outside() {
        let names = Names { prefix: "t".into() };
        let pod = gateway_pod(&names, "n", &image());
        let spec = &pod["spec"];
        assert_eq!(
            spec["containers"][0]["readinessProbe"]["tcpSocket"]["port"],
            GATEWAY_PORT
        );
        assert_eq!(spec["hostAliases"][0]["ip"], "203.0.113.10");
        assert_eq!(spec["volumes"].as_array().unwrap().len(), 3);
        assert_eq!(
            spec["containers"][0]["volumeMounts"]
                .as_array()
                .unwrap()
                .len(),
            3
        );
    }
}
