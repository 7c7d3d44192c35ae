//! What the server answers from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::gateway::{GatewayPolicy, ObjectName, SpiffeId, envoy};

/// One state of policy, whole. It is never changed; a new one takes its place.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// Names this state in logs: 16 hexadecimal digits.
    pub revision: String,
    pub policy: GatewayPolicy,
    /// Pods that a `VirtualGateway` selects, ready or not, by each of their addresses.
    pub gateway_pods: BTreeMap<IpAddr, GatewayPod>,
    /// Whose address it is: pods of the pod network that have not finished. An address that two
    /// pods claim is missing.
    pub clients: BTreeMap<IpAddr, PodAccount>,
    /// Configuration of each gateway's Envoy.
    pub resources: BTreeMap<ObjectName, Arc<envoy::Resources>>,
}

impl Served {
    /// Whether some gateway's pods have this identity.
    pub fn is_gateway(&self, identity: &SpiffeId) -> bool {
        self.gateway_pods
            .values()
            .any(|pod| pod.identity == *identity)
    }

    /// The gateways that this identity serves as; empty for a caller that is none.
    pub fn gateways_of(&self, identity: &SpiffeId) -> BTreeSet<&ObjectName> {
        self.gateway_pods
            .values()
            .filter(|pod| pod.identity == *identity)
            .flat_map(|pod| &pod.gateways)
            .collect()
    }
}

/// A pod of one or more gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayPod {
    /// Of its service account.
    pub identity: SpiffeId,
    pub gateways: BTreeSet<ObjectName>,
}

/// The service account of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAccount {
    pub namespace: String,
    pub pod: String,
    pub service_account: String,
}

/// Who is at the other end of a connection, as its certificate proves. An extension of each
/// request that the server takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub identity: SpiffeId,
    pub address: SocketAddr,
}
