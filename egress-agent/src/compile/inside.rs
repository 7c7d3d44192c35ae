//! What is in the cluster, to tell connections that the node's NAT leads out of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Policy;
use super::cluster::Cluster;
use crate::index::Index;

const TCP: u8 = 6;

/// Where a Service may lead without being closed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    cluster: Cluster,
    /// Pods behind Services that are in no range of pods.
    pods: BTreeSet<IpAddr>,
}

impl Inside {
    pub(super) fn find(index: &Index, cluster: &Cluster) -> Self {
        let slices = index.services().keys().flat_map(|key| index.slices_of(key));
        let endpoints = slices.flat_map(|slice| &slice.endpoints);
        let addresses = endpoints.flat_map(|endpoint| &endpoint.addresses).flatten();
        let pods = addresses
            .filter(|ip| index.is_pod_ip(**ip) && !cluster.node_addresses.contains(ip))
            .filter(|ip| !cluster.in_pod_cidrs(**ip));
        Self {
            cluster: cluster.clone(),
            pods: pods.copied().collect(),
        }
    }

    /// Whether a pod with this policy may be led there by a Service. The kernel judges what a pod sends by
    /// the Service's address, before the NAT.
    pub fn may_lead(&self, policy: &Policy, to: IpAddr, proto: u8, port: u16) -> bool {
        policy.allows(to, proto, port)
            || self.cluster.in_pod_cidrs(to)
            || self.pods.contains(&to)
            || (proto == TCP && self.cluster.api.contains(&(to, port)))
    }
}
