//! Messages of ttrpc and of NRI (`nri.pkg.api.v1alpha1`), as far as they are used. Fields that are
//! not declared are skipped when they are read.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;

use prost::Message;

use super::board::Sandbox;

pub(super) const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
pub(super) const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";

/// Codes of gRPC, which ttrpc has too.
pub(super) const INVALID_ARGUMENT: i32 = 3;
pub(super) const UNIMPLEMENTED: i32 = 12;
pub(super) const UNAVAILABLE: i32 = 14;

/// Numbers of events.
pub(super) const RUN_POD_SANDBOX: i32 = 1;
pub(super) const STOP_POD_SANDBOX: i32 = 2;
pub(super) const REMOVE_POD_SANDBOX: i32 = 3;

/// The events that the agent wants, as a mask.
pub(super) const EVENTS: i32 =
    1 << (RUN_POD_SANDBOX - 1) | 1 << (STOP_POD_SANDBOX - 1) | 1 << (REMOVE_POD_SANDBOX - 1);

#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(string, tag = "1")]
    pub(super) service: String,
    #[prost(string, tag = "2")]
    pub(super) method: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) payload: Vec<u8>,
    #[prost(int64, tag = "4")]
    pub(super) timeout_nano: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Response {
    /// None is success.
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) payload: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RegisterPluginRequest {
    #[prost(string, tag = "1")]
    pub(super) plugin_name: String,
    /// Two digits; plugins are called in this order.
    #[prost(string, tag = "2")]
    pub(super) plugin_idx: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ConfigureRequest {
    #[prost(string, tag = "2")]
    pub(super) runtime_name: String,
    #[prost(string, tag = "3")]
    pub(super) runtime_version: String,
    /// Milliseconds after which the runtime gives up on a plugin that has not answered; 0 where it
    /// does not tell.
    #[prost(int64, tag = "5")]
    pub(super) request_timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ConfigureResponse {
    #[prost(int32, tag = "2")]
    pub(super) events: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SynchronizeRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) pods: Vec<PodSandbox>,
    #[prost(bool, tag = "3")]
    pub(super) more: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SynchronizeResponse {
    #[prost(bool, tag = "2")]
    pub(super) more: bool,
}

/// Of `RunPodSandbox`, `StopPodSandbox` and `RemovePodSandbox`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) pod: Option<PodSandbox>,
}

/// How older runtimes tell of sandboxes.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StateChangeEvent {
    #[prost(int32, tag = "1")]
    pub(super) event: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) pod: Option<PodSandbox>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandbox {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) uid: String,
    #[prost(string, tag = "4")]
    pub(super) namespace: String,
    #[prost(map = "string, string", tag = "5")]
    pub(super) labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "6")]
    pub(super) annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(super) linux: Option<LinuxPodSandbox>,
    /// Not told by runtimes before NRI 0.9.
    #[prost(string, repeated, tag = "10")]
    pub(super) ips: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LinuxPodSandbox {
    #[prost(message, repeated, tag = "5")]
    pub(super) namespaces: Vec<LinuxNamespace>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LinuxNamespace {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    /// Empty for one that the container makes itself.
    #[prost(string, tag = "2")]
    pub(super) path: String,
}

/// The kubelet says in this annotation where it has a pod from; it overwrites what an object says.
const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
const FROM_API: &str = "api";
/// Labels that kubelet and runtime add to the pod's own.
const ADDED: [&str; 4] = [
    "io.kubernetes.pod.name",
    "io.kubernetes.pod.namespace",
    "io.kubernetes.pod.uid",
    "io.cri-containerd.kind",
];

impl PodSandbox {
    /// What the agent makes of it; none without what names a pod.
    pub(super) fn sandbox(self) -> Option<Sandbox> {
        if self.id.is_empty() || self.uid.is_empty() || self.namespace.is_empty() {
            return None;
        }
        let namespaces = self.linux.map(|linux| linux.namespaces);
        let namespaces = namespaces.unwrap_or_default();
        let network = namespaces
            .iter()
            .find(|namespace| namespace.kind == "network");
        let netns = network.map(|namespace| namespace.path.as_str());
        let source = self.annotations.get(CONFIG_SOURCE);
        Some(Sandbox {
            // A sandbox in the node's network has other namespaces, but none of this kind.
            host_network: network.is_none() && !namespaces.is_empty(),
            netns: netns.filter(|path| !path.is_empty()).map(PathBuf::from),
            is_static: source.is_some_and(|source| source != FROM_API),
            ips: self
                .ips
                .iter()
                .filter_map(|ip| ip.parse::<IpAddr>().ok())
                .collect(),
            labels: self
                .labels
                .into_iter()
                .filter(|(key, _)| !ADDED.contains(&key.as_str()))
                .collect(),
            id: self.id,
            uid: self.uid,
            namespace: self.namespace,
            name: self.name,
            running_before: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox() -> PodSandbox {
        let pairs = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            pairs
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        PodSandbox {
            id: "c1".into(),
            name: "web".into(),
            uid: "u1".into(),
            namespace: "shop".into(),
            labels: pairs(&[("app", "web"), ("io.kubernetes.pod.name", "web")]),
            annotations: pairs(&[(CONFIG_SOURCE, FROM_API)]),
            linux: Some(LinuxPodSandbox {
                namespaces: vec![
                    LinuxNamespace {
                        kind: "ipc".into(),
                        path: String::new(),
                    },
                    LinuxNamespace {
                        kind: "network".into(),
                        path: "/run/netns/cni-1".into(),
                    },
                ],
            }),
            ips: vec!["10.0.0.1".into(), "fd00::1".into(), "nonsense".into()],
        }
    }

    #[test]
    fn a_pod_is_told_by_its_own_labels_and_where_it_is() {
        let told = sandbox().sandbox().unwrap();
        assert_eq!(told.labels, [("app".to_owned(), "web".to_owned())].into());
        assert_eq!(told.netns, Some("/run/netns/cni-1".into()));
        assert_eq!(told.ips.len(), 2);
        assert!(!told.host_network && !told.is_static);
    }

    #[test]
    fn host_network_and_static_pods_are_known() {
        let mut host = sandbox();
        host.linux.as_mut().unwrap().namespaces.pop();
        host.annotations
            .insert(CONFIG_SOURCE.to_owned(), "file".to_owned());
        let told = host.sandbox().unwrap();
        assert!(told.host_network && told.is_static && told.netns.is_none());

        // A runtime that tells nothing of namespaces says nothing of the network either.
        let mut silent = sandbox();
        silent.linux = None;
        assert!(!silent.sandbox().unwrap().host_network);
    }

    #[test]
    fn what_names_no_pod_is_none() {
        for strip in [
            |it: &mut PodSandbox| it.uid.clear(),
            |it: &mut PodSandbox| it.id.clear(),
            |it: &mut PodSandbox| it.namespace.clear(),
        ] {
            let mut nameless = sandbox();
            strip(&mut nameless);
            assert_eq!(nameless.sandbox(), None);
        }
    }
}
