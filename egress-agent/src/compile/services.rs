//! Where the packets of a Service go, as far as its slices tell.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::cluster::{Cluster, OVERLAY_PORTS};
use super::gateways::Gateways;
use crate::api::lockdown::Protocol;
use crate::index::{Endpoint, EndpointPort, Index, Key, Service, ServicePort};

/// One port of a Service, and what must hold for its packets to stay where they may go.
#[derive(Debug)]
pub(super) struct Route<'a> {
    pub port: &'a ServicePort,
    /// Some endpoint has this port. Without one nothing is behind it, and nothing is opened: a
    /// slice that comes a moment later may name any address.
    pub served: bool,
    /// Some endpoint is outside the cluster.
    pub outside: bool,
    /// Some endpoint is a node.
    pub nodes: bool,
    /// Endpoints at gateways: only listeners will do.
    pub listeners: BTreeSet<(IpAddr, u16)>,
    /// Ports at gateways that are not Ready, or not any more: nothing is sent there, and a gateway
    /// that comes or goes must not cut the way to the others.
    pub waiting: BTreeSet<u16>,
}

impl Route<'_> {
    /// Whether a pod may follow it that may reach nodes, or not, and that the gateways' listeners
    /// are open to, or not.
    pub fn open(&self, nodes: bool, gateways: Option<&Gateways>) -> bool {
        let listeners = || {
            self.listeners
                .iter()
                .all(|l| gateways.is_some_and(|g| g.listeners.contains_key(l)))
        };
        // Alone they are no gateway.
        let waiting = || {
            let ready: BTreeSet<u16> = self.listeners.iter().map(|(_, port)| *port).collect();
            self.waiting.is_subset(&ready)
        };
        self.served && !self.outside && (nodes || !self.nodes) && listeners() && waiting()
    }
}

/// The routes of a Service, one a port.
pub(super) fn routes<'a>(
    index: &Index,
    cluster: &Cluster,
    gateways: &Gateways,
    key: &Key,
    service: &'a Service,
) -> Vec<Route<'a>> {
    service
        .ports
        .iter()
        .map(|port| {
            let mut route = Route {
                port,
                served: false,
                outside: false,
                nodes: false,
                listeners: BTreeSet::new(),
                waiting: BTreeSet::new(),
            };
            for slice in index.slices_of(key) {
                let targets: Vec<&EndpointPort> = slice
                    .ports
                    .iter()
                    .filter(|p| p.name == port.name && p.protocol == port.protocol)
                    .collect();
                for endpoint in &slice.endpoints {
                    route.follow(index, cluster, gateways, endpoint, &targets);
                }
            }
            route
        })
        .collect()
}

impl Route<'_> {
    fn follow(
        &mut self,
        index: &Index,
        cluster: &Cluster,
        gateways: &Gateways,
        endpoint: &Endpoint,
        targets: &[&EndpointPort],
    ) {
        for address in &endpoint.addresses {
            self.served |= !targets.is_empty();
            let Some(ip) = *address else {
                self.outside = true;
                continue;
            };
            let tcp = |t: &EndpointPort| t.port.filter(|_| t.protocol == Protocol::Tcp);
            let api = |t: &&EndpointPort| tcp(t).is_some_and(|p| cluster.api.contains(&(ip, p)));
            let listener = |t: &&EndpointPort| {
                tcp(t).is_some_and(|p| gateways.listeners.contains_key(&(ip, p)))
            };
            if targets.iter().all(api) && cluster.api.iter().any(|(api, _)| *api == ip) {
                continue;
            }
            let ports: Option<BTreeSet<u16>> = targets.iter().map(|t| tcp(t)).collect();
            if !endpoint.ready
                && !targets.iter().all(listener)
                && index.is_pod_ip(ip)
                && gateways.guards.contains_key(&ip)
                && let Some(ports) = ports
            {
                self.waiting.extend(ports);
            } else if gateways.guards.contains_key(&ip) {
                self.outside |= !targets.iter().all(listener);
                self.listeners
                    .extend(targets.iter().filter_map(|t| Some((ip, tcp(t)?))));
            } else if cluster.node_addresses.contains(&ip) {
                self.nodes = true;
                self.outside |= targets.iter().any(|t| into_overlay(t));
            } else {
                let pod =
                    index.is_pod_ip(ip) || (endpoint.pod.is_some() && cluster.in_pod_cidrs(ip));
                self.outside |= !pod;
            }
        }
    }
}

fn into_overlay(target: &EndpointPort) -> bool {
    target.protocol == Protocol::Udp && target.port.is_none_or(|port| OVERLAY_PORTS.contains(&port))
}
