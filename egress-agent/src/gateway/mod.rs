//! Egress gateways: who may reach which outside host, and the Envoy that enforces it.
//!
//! `compile` makes a [`GatewayPolicy`] from objects; `access` decides a request by it, `envoy`
//! renders it as Envoy configuration, and both give the same answers. All of it is pure.
#![forbid(unsafe_code)]

pub mod access;
pub mod compile;
mod decision;
mod entries;
pub mod envoy;
pub mod from_index;
pub mod host;
pub mod identity;
pub mod istio;
mod passthrough;
mod path;
pub mod policy;
mod rules;
mod services;
#[cfg(test)]
mod tests;
pub mod trial;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};

use crate::api::{AccessPolicySpec, ExternalServiceSpec, VirtualGatewaySpec};

pub use access::{Connection, Request, decide_access, decide_connection};
pub use compile::compile;
pub use decision::Decision;
pub use envoy::{Settings, render};
pub use identity::SpiffeId;
pub use path::{TextPattern, has_two_readings, normalize as normalize_path};
pub use policy::{Effect, GatewayPolicy, ObjectName, OutboundPolicy, Problem};

/// All that gateway policy is made from.
#[derive(Clone, Debug, Default)]
pub struct GatewayObjects<'a> {
    /// SPIFFE trust domain of the clients, such as `cluster.local`.
    pub trust_domain: String,
    /// Name of this cluster, to which a selector's `cluster` is compared; without it every name is
    /// this cluster.
    pub cluster: Option<String>,
    pub outbound: OutboundPolicy,
    pub gateways: Vec<GatewayObject<'a>>,
    pub external_services: Vec<Declared<'a, ExternalServiceSpec>>,
    pub access_policies: Vec<Declared<'a, AccessPolicySpec>>,
    /// Every service account of the cluster that may be a client.
    pub service_accounts: Vec<Declared<'a, ()>>,
}

impl GatewayObjects<'_> {
    /// Whether a `cluster` in a selector or reference means another one.
    fn is_foreign(&self, cluster: &str) -> bool {
        self.cluster.as_deref().is_some_and(|own| own != cluster)
    }

    /// Name of this cluster for messages.
    fn cluster_name(&self) -> &str {
        self.cluster.as_deref().unwrap_or_default()
    }
}

/// What policy needs of an object.
#[derive(Clone, Debug)]
pub struct Declared<'a, S> {
    pub id: ObjectName,
    pub labels: Option<&'a BTreeMap<String, String>>,
    pub spec: &'a S,
}

/// A gateway and where its pods listen.
#[derive(Clone, Debug)]
pub struct GatewayObject<'a> {
    pub id: ObjectName,
    pub spec: &'a VirtualGatewaySpec,
    /// From a listener's port number to the ports its pods listen on for it, through the
    /// Service's `targetPort`. A number that is missing here stands for itself.
    pub target_ports: BTreeMap<u16, BTreeSet<u16>>,
}
