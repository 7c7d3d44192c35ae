//! The kinds of object that the index takes.

use std::fmt;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::api::{AccessPolicy, EgressLockdown, ExternalService, VirtualGateway};

/// One object, as a source read it.
#[allow(
    clippy::large_enum_variant,
    reason = "objects are moved once, from source to index"
)]
#[derive(Clone, Debug)]
pub enum Object {
    Namespace(Namespace),
    Node(Node),
    Pod(Box<Pod>),
    ServiceAccount(ServiceAccount),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    EgressLockdown(Box<EgressLockdown>),
    VirtualGateway(VirtualGateway),
    ExternalService(ExternalService),
    AccessPolicy(AccessPolicy),
}

/// What tells one object from another. The namespace is empty for cluster-scoped kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ObjectId {
    /// `Kind/namespace/name`, or `Kind/name` for a cluster-scoped object.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}/{}", self.kind, self.name)
        } else {
            write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
        }
    }
}
