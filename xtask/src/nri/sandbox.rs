//! A pod's sandbox as a runtime tells of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::proto;
use crate::node::Pod;

/// What a runtime says of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    pub id: String,
    pub name: String,
    pub uid: String,
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// None for one in the node's network.
    pub netns: Option<PathBuf>,
    pub ips: Vec<String>,
}

impl Sandbox {
    /// Of a pod of the node in miniature.
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec();
        let api = ("kubernetes.io/config.source", "api");
        let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs.iter();
            pairs
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let mut labels = pairs(&[
            ("io.cri-containerd.kind", "sandbox"),
            ("io.kubernetes.pod.name", &spec.name),
            ("io.kubernetes.pod.namespace", &spec.namespace),
            ("io.kubernetes.pod.uid", &spec.uid),
        ]);
        labels.extend(spec.labels.clone());
        Self {
            id: format!("sandbox-of-{}", spec.uid),
            name: spec.name.clone(),
            uid: spec.uid.clone(),
            namespace: spec.namespace.clone(),
            labels,
            annotations: pairs(&[api]),
            netns: (!spec.host_network).then(|| pod.netns().path()),
            ips: spec.ips.all().iter().map(ToString::to_string).collect(),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut pod = Vec::new();
        proto::bytes(&mut pod, 1, self.id.as_bytes());
        proto::bytes(&mut pod, 2, self.name.as_bytes());
        proto::bytes(&mut pod, 3, self.uid.as_bytes());
        proto::bytes(&mut pod, 4, self.namespace.as_bytes());
        for (key, value) in &self.labels {
            proto::entry(&mut pod, 5, key, value);
        }
        for (key, value) in &self.annotations {
            proto::entry(&mut pod, 6, key, value);
        }
        proto::bytes(&mut pod, 7, b"runc");
        let mut linux = Vec::new();
        let cgroup = format!("/kubepods/burstable/pod{}", self.uid);
        proto::bytes(&mut linux, 3, cgroup.as_bytes());
        let mut namespace = |kind: &str, path: &str| {
            let mut namespace = Vec::new();
            proto::bytes(&mut namespace, 1, kind.as_bytes());
            if !path.is_empty() {
                proto::bytes(&mut namespace, 2, path.as_bytes());
            }
            proto::bytes(&mut linux, 5, &namespace);
        };
        namespace("pid", "");
        namespace("ipc", "");
        if let Some(netns) = &self.netns {
            namespace("network", &netns.display().to_string());
        }
        proto::bytes(&mut pod, 8, &linux);
        proto::number(&mut pod, 9, 4711);
        for ip in &self.ips {
            proto::bytes(&mut pod, 10, ip.as_bytes());
        }
        pod
    }
}
