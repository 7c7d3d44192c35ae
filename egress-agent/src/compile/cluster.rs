//! What of the cluster matters for every policy: pod CIDRs, nodes, the API server.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Settings;
use super::special::is_special;
use crate::api::lockdown::Protocol;
use crate::index::{EndpointSlice, Finding, Index, Key, ObjectId, Problem};

/// UDP ports on which nodes take tunnelled packets, sorted: whoever reaches one can have a packet of
/// his making sent on from there. Each costs a rule of a node's address a range of ports.
pub(super) const OVERLAY_PORTS: [u16; 11] = [
    4789,  // VXLAN
    5555,  // Foo-over-UDP of kube-router
    6081,  // Geneve
    6635,  // MPLS in UDP
    6783,  // Weave Net, sleeve
    6784,  // Weave Net, VXLAN
    8285,  // Flannel's own, plain
    8472,  // Linux' VXLAN: Flannel, Cilium
    51820, // WireGuard: Flannel, Calico
    51821, // WireGuard: Flannel and Calico, IPv6
    51871, // WireGuard: Cilium
];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cluster {
    /// Sorted and joined, so that none overlap.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of nodes by which `allow.cluster: Nodes` reaches them, those of tunnels included.
    pub nodes: BTreeSet<IpAddr>,
    /// Every address that is a node's, those of bridges included. All of its doors are there: the
    /// kubelet, SSH, and every `NodePort`, wherever that leads.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Address and TCP port of the API server, behind its Service.
    pub api: BTreeSet<(IpAddr, u16)>,
    /// Slices that pose as the API server's.
    pub problems: Vec<Problem>,
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
            // Where addresses are handed out otherwise that may be a pod, and then the pod is known
            // here, if it is on this node.
            let own = node.pod_cidrs.iter().flat_map(|net| first_two(*net));
            let own = own.filter(|ip| !index.is_pod_ip(*ip));
            cluster.node_addresses.extend(own);
        }
        cluster.node_addresses.extend(&cluster.nodes);
        // Mostly one range is left of thousands of nodes', and less is looked through.
        cluster.pod_cidrs = IpNet::aggregate(&cluster.pod_cidrs);
        cluster.pod_cidrs.sort_unstable();
        let service = api_service();
        for (key, slice) in index.named_slices_of(&service) {
            if !is_api_servers(index, key, slice) {
                cluster.problems.push(posing(key));
                continue;
            }
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

/// Whether the API server itself writes this slice of its Service: it has the Service's name; that of
/// the second family, which there is where the Service has two, is called after it. Whoever may make
/// slices there could else open what he likes to every pod that may reach the API server.
fn is_api_servers(index: &Index, key: &Key, slice: &EndpointSlice) -> bool {
    let service = api_service();
    let (v4, v6) = (
        format!("{}-v4", service.name),
        format!("{}-v6", service.name),
    );
    if key.name == service.name {
        return true;
    }
    let ips = index.services().get(&service).map(|it| &it.cluster_ips);
    let second = match ips.map(Vec::as_slice) {
        Some([IpAddr::V4(_), IpAddr::V6(_)]) => v6,
        Some([IpAddr::V6(_), IpAddr::V4(_)]) => v4,
        _ => return false,
    };
    let ipv6 = second.ends_with('6');
    let mut addresses = slice.endpoints.iter().flat_map(|it| &it.addresses);
    key.name == second && addresses.all(|ip| ip.is_some_and(|ip| ip.is_ipv6() == ipv6))
}

fn posing(key: &Key) -> Problem {
    let object = ObjectId {
        kind: "EndpointSlice",
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    };
    let reason = "not taken for the API server: its own slice is called as the Service, and what \
                  others make of the Service closes it; delete this one";
    Finding::ignored("metadata.labels[kubernetes.io/service-name]", reason).of(&object)
}

/// The Service that stands for the API server.
pub(super) fn api_service() -> Key {
    Key::new("default", "kubernetes")
}

/// What by custom is the node's own of a range of pods: the network's address is that of its tunnel
/// (`flannel.1`), and with IPv6 that of any router there; the next one is its bridge.
fn first_two(net: IpNet) -> impl Iterator<Item = IpAddr> {
    let network = net.network();
    let next = match network {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) | 1).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) | 1).into()),
    };
    let alone = net.prefix_len() == net.max_prefix_len();
    [network, next].into_iter().filter(move |_| !alone)
}
