//! What the index keeps of an object: what compiling and the gateway ask for, and no more.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::api::lockdown::Protocol;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Whether labels have all that a plain selector (of a Service, or a workload) asks for. An empty
/// selector selects nothing.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

/// Namespace and name. Ordered by namespace first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for Key {
    /// `namespace/name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An object of one of the gateway's kinds, as last accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared<T> {
    pub labels: Labels,
    pub spec: T,
}

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub uid: String,
    /// It runs another system than Linux, by its label.
    pub other_os: bool,
    /// `spec.podCIDRs`, sorted.
    pub pod_cidrs: Vec<IpNet>,
    /// `InternalIP` and `ExternalIP` of `status.addresses`, and those of its tunnels, which the
    /// network plugin writes as annotations; sorted.
    pub addresses: Vec<IpAddr>,
}

/// A pod of any node.
// Each is a fact of its own that Kubernetes gives; no two of them make a state.
#[allow(clippy::struct_excessive_bools)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// The UID that the pod's cgroup bears: `metadata.uid`, or for a mirror of a static pod the
    /// hash that the kubelet uses in its place.
    pub uid: String,
    /// It mirrors a static pod; see `uid`.
    pub mirror: bool,
    /// Empty while it is not scheduled.
    pub node: String,
    pub labels: Labels,
    pub service_account: String,
    pub host_network: bool,
    /// By which it gets at its node, in words; empty for most pods.
    pub node_access: Vec<String>,
    /// `status.podIPs`, in their order.
    pub ips: Vec<IpAddr>,
    /// `Succeeded` or `Failed`: it will never send again, and its addresses may go to another.
    pub finished: bool,
    /// Condition `Ready`.
    pub ready: bool,
    /// It has a `deletionTimestamp`.
    pub terminating: bool,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub labels: Labels,
    pub selector: Labels,
    /// Empty for headless Services and for `ExternalName`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs` and the addresses of `status.loadBalancer`: where kube-proxy takes
    /// packets for this Service beside its `ClusterIP`s and node ports.
    pub outside_ips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty if it has none; slices name the port the same.
    pub name: String,
    pub protocol: Protocol,
    /// Port of the `ClusterIP`.
    pub port: u16,
    pub node_port: Option<u16>,
}

/// Part of the endpoints of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Label `kubernetes.io/service-name`; the Service is in the slice's own namespace.
    pub service: String,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Empty if it has none.
    pub name: String,
    pub protocol: Protocol,
    /// None is every port.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// None for what is not an IP address (a slice of host names): it is outside the cluster.
    pub addresses: Vec<Option<IpAddr>>,
    /// Condition `ready`; true when it is not given.
    pub ready: bool,
    /// `targetRef`, if that is a Pod.
    pub pod: Option<PodRef>,
}

/// `targetRef` of an endpoint that names a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRef {
    pub name: String,
    /// `metadata.uid` of the Pod.
    pub uid: String,
}
