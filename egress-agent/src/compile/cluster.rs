//! What of the cluster matters for every policy: pod CIDRs, nodes, the API server.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Settings;
use super::special::is_special;
use crate::api::lockdown::Protocol;
use crate::index::{Index, Key};

/// UDP ports on which nodes take tunnelled packets (VXLAN, Linux' VXLAN, Geneve, `WireGuard`),
/// sorted: whoever reaches one can have a packet of his making sent on from there.
pub(super) const OVERLAY_PORTS: [u16; 4] = [4789, 6081, 8472, 51820];

#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// Sorted and joined, so that none overlap.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of nodes by which `allow.cluster: Nodes` reaches them.
    pub nodes: BTreeSet<IpAddr>,
    /// Every address that is a node's, those of bridges included.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Address and TCP port of the API server, behind its Service.
    pub api: BTreeSet<(IpAddr, u16)>,
}

impl Cluster {
    pub fn find(index: &Index, settings: &Settings) -> Self {
        let mut cluster = Self::default();
        cluster
            .pod_cidrs
            .extend(settings.pod_cidrs.iter().map(IpNet::trunc));
        cluster.node_addresses.extend(&settings.local_addresses);
        for node in index.nodes().values() {
            cluster.pod_cidrs.extend(&node.pod_cidrs);
            cluster.nodes.extend(&node.addresses);
            // By custom the bridge of a node has the first address of its range. Where addresses
            // are handed out otherwise that may be a pod, and then the pod is known here.
            for net in node
                .pod_cidrs
                .iter()
                .filter(|net| net.prefix_len() < net.max_prefix_len())
            {
                if let Some(bridge) = net.hosts().next().map(|first| after_network(*net, first))
                    && !index.is_pod_ip(bridge)
                {
                    cluster.node_addresses.insert(bridge);
                }
            }
        }
        cluster.node_addresses.extend(&cluster.nodes);
        // Mostly one range is left of thousands of nodes', and less is looked through.
        cluster.pod_cidrs = IpNet::aggregate(&cluster.pod_cidrs);
        cluster.pod_cidrs.sort_unstable();
        for slice in index.slices_of(&api_service()) {
            for port in slice
                .ports
                .iter()
                .filter(|port| port.protocol == Protocol::Tcp)
            {
                let addresses = slice.endpoints.iter().flat_map(|e| &e.addresses).flatten();
                cluster
                    .api
                    .extend(addresses.filter_map(|ip| Some((*ip, port.port?))));
            }
        }
        cluster
    }

    /// Whether the address is in the pods' ranges, and no node's.
    pub fn in_pod_cidrs(&self, ip: IpAddr) -> bool {
        let after = self.pod_cidrs.partition_point(|net| net.network() <= ip);
        let net = after.checked_sub(1).map(|at| self.pod_cidrs[at]);
        net.is_some_and(|net| net.contains(&ip))
            && !self.node_addresses.contains(&ip)
            && !is_special(ip)
    }
}

/// The Service that stands for the API server.
pub(super) fn api_service() -> Key {
    Key::new("default", "kubernetes")
}

/// `hosts()` of an IPv6 range begins with the network address itself, which is no bridge's.
fn after_network(net: IpNet, first: IpAddr) -> IpAddr {
    match (net, first) {
        (IpNet::V6(net), IpAddr::V6(first)) if first == net.network() => {
            IpAddr::V6((u128::from(first) + 1).into())
        }
        _ => first,
    }
}
