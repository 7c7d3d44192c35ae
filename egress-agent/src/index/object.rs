//! The kinds of object that the index takes.

use std::fmt;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

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

impl Object {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "Namespace",
            Self::Node(_) => "Node",
            Self::Pod(_) => "Pod",
            Self::ServiceAccount(_) => "ServiceAccount",
            Self::Service(_) => "Service",
            Self::EndpointSlice(_) => "EndpointSlice",
            Self::EgressLockdown(_) => "EgressLockdown",
            Self::VirtualGateway(_) => "VirtualGateway",
            Self::ExternalService(_) => "ExternalService",
            Self::AccessPolicy(_) => "AccessPolicy",
        }
    }

    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Namespace(o) => &o.metadata,
            Self::Node(o) => &o.metadata,
            Self::Pod(o) => &o.metadata,
            Self::ServiceAccount(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
            Self::EndpointSlice(o) => &o.metadata,
            Self::EgressLockdown(o) => &o.metadata,
            Self::VirtualGateway(o) => &o.metadata,
            Self::ExternalService(o) => &o.metadata,
            Self::AccessPolicy(o) => &o.metadata,
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub fn namespaced(&self) -> bool {
        !matches!(
            self,
            Self::Namespace(_) | Self::Node(_) | Self::EgressLockdown(_)
        )
    }

    /// Whether it says what is allowed, not what there is.
    pub fn is_policy(&self) -> bool {
        matches!(
            self,
            Self::EgressLockdown(_)
                | Self::VirtualGateway(_)
                | Self::ExternalService(_)
                | Self::AccessPolicy(_)
        )
    }

    /// A namespaced object without a namespace is in `default`, as `kubectl` has it.
    pub fn id(&self) -> ObjectId {
        let meta = self.metadata();
        let namespace = if self.namespaced() {
            meta.namespace
                .clone()
                .unwrap_or_else(|| "default".to_owned())
        } else {
            String::new()
        };
        ObjectId {
            kind: self.kind(),
            namespace,
            name: meta.name.clone().unwrap_or_default(),
        }
    }
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
