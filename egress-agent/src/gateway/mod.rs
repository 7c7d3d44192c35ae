//! Egress gateways: who may reach which outside host, and the Envoy that enforces it.
//!
//! `compile` makes a [`GatewayPolicy`] from objects; `access` decides a request by it, `envoy`
//! renders it as Envoy configuration, and both give the same answers. `write` puts that where
//! Envoy watches. All but `write` is pure.

pub mod access;
pub mod compile;
pub mod envoy;
pub mod host;
pub mod identity;
mod path;
pub mod policy;
mod rules;
mod services;
#[cfg(test)]
mod tests;
pub mod write;

use std::collections::{BTreeMap, BTreeSet};

use crate::api::{AccessPolicy, ExternalService, VirtualGateway};

pub use access::{Decision, Request, decide_access};
pub use compile::compile;
pub use envoy::{Rendered, Settings, render};
pub use identity::SpiffeId;
pub use path::TextPattern;
pub use policy::{Effect, GatewayPolicy, ObjectName, OutboundPolicy, Problem};
pub use write::Writer;

/// All that gateway policy is made from.
#[derive(Clone, Debug, Default)]
pub struct GatewayObjects<'a> {
    /// SPIFFE trust domain of the clients, such as `cluster.local`.
    pub trust_domain: String,
    /// Name of this cluster, to which a selector's `cluster` is compared.
    pub cluster: String,
    pub outbound: OutboundPolicy,
    pub gateways: Vec<GatewayObject<'a>>,
    pub external_services: Vec<&'a ExternalService>,
    pub access_policies: Vec<&'a AccessPolicy>,
    pub service_accounts: Vec<ServiceAccountObject<'a>>,
}

/// A gateway and where its pods listen.
#[derive(Clone, Debug)]
pub struct GatewayObject<'a> {
    pub object: &'a VirtualGateway,
    /// From a listener's port number to the ports its pods listen on for it, through the
    /// Service's `targetPort`. A number that is missing here stands for itself.
    pub target_ports: BTreeMap<u16, BTreeSet<u16>>,
}

/// What policy needs of a `ServiceAccount`.
#[derive(Clone, Debug)]
pub struct ServiceAccountObject<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub labels: Option<&'a BTreeMap<String, String>>,
}
