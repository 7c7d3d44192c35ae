//! One policy: what the pods that share it may reach.

use std::net::IpAddr;

use egress_common::reason::Reason;
use ipnet::IpNet;

use super::cluster::{Cluster, OVERLAY_PORTS, api_service};
use super::desired::Policy;
use super::gateways::Gateways;
use super::ports::PortSet;
use super::services::Route;
use super::tables::{Overflow, Owner, Tables};
use crate::api::EgressLockdownSpec;
use crate::api::lockdown::{ClusterPart, Protocol};
use crate::index::{Index, Key, Service};

const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS: u16 = 53;

/// What every policy of one revision is made from.
#[derive(Debug)]
pub(super) struct World<'a> {
    pub index: &'a Index,
    pub cluster: &'a Cluster,
    pub gateways: &'a Gateways,
    pub routes: &'a [(&'a Key, &'a Service, Vec<Route<'a>>)],
    /// Where `node-local-dns` listens; nowhere where no pod of it runs on this node.
    pub node_local_dns: &'a [IpAddr],
}

/// What tells one policy from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Recipe<'a> {
    /// Lockdowns whose lists add up, sorted.
    pub lockdowns: Vec<&'a str>,
    /// The gateways are open to it.
    pub gateways: bool,
}

impl World<'_> {
    pub fn policy(&self, recipe: &Recipe<'_>) -> (Policy, Vec<Overflow>) {
        let known = self.index.lockdowns();
        let mut cook = Cook {
            world: self,
            lockdowns: recipe
                .lockdowns
                .iter()
                .filter_map(|name| Some((*name, known.get(*name)?)))
                .collect(),
            gateways: recipe.gateways.then_some(self.gateways),
            tables: Tables::default(),
        };
        cook.holes();
        cook.gateways();
        cook.dns();
        cook.api_server();
        cook.services();
        cook.nodes();
        cook.pods();
        cook.cidrs();
        cook.tables.build()
    }
}

struct Cook<'a> {
    world: &'a World<'a>,
    lockdowns: Vec<(&'a str, &'a EgressLockdownSpec)>,
    gateways: Option<&'a Gateways>,
    tables: Tables,
}

impl Cook<'_> {
    /// The first lockdown that allows this part of the cluster.
    fn part(&self, part: ClusterPart) -> Option<Owner> {
        let (name, _) = self
            .lockdowns
            .iter()
            .find(|(_, l)| l.allow.cluster.contains(&part))?;
        Some(Owner {
            lockdown: (*name).to_owned(),
            field: format!("allow.cluster {part:?}"),
        })
    }

    /// Wherever kube-proxy takes packets for a Service that leads out of what this policy allows,
    /// nothing may be open: the packet would arrive elsewhere than its address says.
    fn holes(&mut self) {
        let nodes = self.part(ClusterPart::Nodes).is_some();
        for (key, service, routes) in self.world.routes {
            for route in routes
                .iter()
                .filter(|r| r.served && !r.open(nodes, self.gateways))
            {
                let rule = format!("Service/{key} leads elsewhere");
                let proto = route.port.protocol.number();
                for ip in service.cluster_ips.iter().chain(&service.outside_ips) {
                    self.tables.hole((*ip, route.port.port, proto), &rule);
                }
                if let Some(port) = route.port.node_port {
                    for ip in &self.world.cluster.node_addresses {
                        self.tables.hole((*ip, port, proto), &rule);
                    }
                }
            }
        }
    }

    fn gateways(&mut self) {
        for (ip, guard) in &self.world.gateways.guards {
            self.tables.guard(*ip, &guard.rule);
        }
        if let Some(gateways) = self.gateways {
            for ((ip, port), rule) in gateways.listeners.iter().chain(&gateways.services) {
                self.tables.exact((*ip, *port, TCP), rule, Reason::Gateway);
            }
        }
    }

    /// What may be on a node beside a gateway of the host network, but not on a gateway's own pod.
    fn infrastructure(&mut self, target: (IpAddr, u16, u8), rule: &str, reason: Reason) {
        match self.world.gateways.guards.get(&target.0) {
            Some(guard) if !guard.node => {}
            _ => self.tables.exact(target, rule, reason),
        }
    }

    fn dns(&mut self) {
        let lockdowns = self.lockdowns.clone();
        if let Some((name, _)) = lockdowns.iter().find(|(_, l)| l.allow.dns.cluster) {
            let rule = format!("EgressLockdown/{name} allow.dns cluster");
            for (key, service, routes) in self.world.routes.iter().filter(|s| is_dns(s.0, s.1)) {
                for route in routes.iter().filter(|r| r.port.port == DNS) {
                    self.dns_route(key, service, route, &rule);
                }
            }
            for ip in self.world.node_local_dns {
                for proto in [UDP, TCP] {
                    self.infrastructure((*ip, DNS, proto), &rule, Reason::Dns);
                }
            }
        }
        for (name, lockdown) in lockdowns {
            for (i, ip) in lockdown.allow.dns.resolvers.iter().enumerate() {
                let rule = format!("EgressLockdown/{name} allow.dns resolvers[{i}]");
                for proto in [UDP, TCP] {
                    self.tables
                        .exact_unguarded((*ip, DNS, proto), &rule, Reason::Dns);
                }
            }
        }
    }

    /// One port of the cluster's DNS: at its `ClusterIP`s, and at the pods behind them.
    fn dns_route(&mut self, key: &Key, service: &Service, route: &Route<'_>, rule: &str) {
        // DNS on the host network is as good, wherever else nodes are closed.
        if !route.open(true, None) {
            return;
        }
        let proto = route.port.protocol.number();
        for ip in &service.cluster_ips {
            self.tables.exact((*ip, DNS, proto), rule, Reason::Dns);
        }
        for slice in self.world.index.slices_of(key) {
            let named = |p: &&_| same_port(p, route);
            for port in slice.ports.iter().filter(named).filter_map(|p| p.port) {
                for ip in slice.endpoints.iter().flat_map(|e| &e.addresses).flatten() {
                    self.infrastructure((*ip, port, proto), rule, Reason::Dns);
                }
            }
        }
    }

    fn api_server(&mut self) {
        let Some(owner) = self.part(ClusterPart::APIServer) else {
            return;
        };
        let rule = owner.rule();
        if let Some(service) = self.world.index.services().get(&api_service()) {
            for port in service.ports.iter().filter(|p| p.protocol == Protocol::Tcp) {
                for ip in &service.cluster_ips {
                    self.tables
                        .exact((*ip, port.port, TCP), &rule, Reason::Cluster);
                }
            }
        }
        for (ip, port) in &self.world.cluster.api {
            self.infrastructure((*ip, *port, TCP), &rule, Reason::Cluster);
        }
    }

    fn services(&mut self) {
        let Some(owner) = self.part(ClusterPart::Services) else {
            return;
        };
        let rule = owner.rule();
        let nodes = self.part(ClusterPart::Nodes).is_some();
        for (_, service, routes) in self.world.routes {
            for route in routes
                .iter()
                .filter(|route| route.open(nodes, self.gateways))
            {
                for ip in &service.cluster_ips {
                    let target = (*ip, route.port.port, route.port.protocol.number());
                    self.tables.exact(target, &rule, Reason::Cluster);
                }
            }
        }
    }

    fn nodes(&mut self) {
        // The first two of a range are one prefix, and of thousands of nodes there are as many.
        let own = self.world.cluster.node_addresses.iter();
        let own: Vec<IpNet> = own.map(|ip| IpNet::from(*ip)).collect();
        for net in IpNet::aggregate(&own) {
            self.tables.node(net);
        }
        let Some(owner) = self.part(ClusterPart::Nodes) else {
            return;
        };
        let rule = self.tables.rule(&owner.rule());
        for ip in &self.world.cluster.nodes {
            let ports = PortSet::without_udp(&OVERLAY_PORTS, rule, Reason::Cluster);
            self.tables
                .grant(IpNet::from(*ip), ports, false, owner.clone());
        }
    }

    fn pods(&mut self) {
        let Some(owner) = self.part(ClusterPart::Pods) else {
            return;
        };
        let rule = self.tables.rule(&owner.rule());
        for net in &self.world.cluster.pod_cidrs {
            self.tables.grant(
                *net,
                PortSet::any(rule, Reason::Cluster),
                true,
                owner.clone(),
            );
        }
    }

    fn cidrs(&mut self) {
        for (name, lockdown) in self.lockdowns.clone() {
            for (i, entry) in lockdown.allow.cidrs.iter().enumerate() {
                let field = format!("allow.cidrs[{i}]");
                let owner = Owner {
                    lockdown: name.to_owned(),
                    field: field.clone(),
                };
                let rule = self.tables.rule(&owner.rule());
                let mut ports = PortSet::default();
                ports.allow(&entry.ports, rule);
                let grant = self.tables.grant(entry.cidr, ports, false, owner);
                for (j, except) in entry.except.iter().enumerate() {
                    let rule = format!("EgressLockdown/{name} {field}.except[{j}]");
                    self.tables.except(grant, *except, rule);
                }
            }
        }
    }
}

/// By namespaces that none but the cluster's operators may write to.
fn is_dns(key: &Key, service: &Service) -> bool {
    let app = service.labels.get("k8s-app").map(String::as_str);
    match (key.namespace.as_str(), key.name.as_str()) {
        ("kube-system", name) => app == Some("kube-dns") || matches!(name, "kube-dns" | "coredns"),
        ("openshift-dns", name) => name == "dns-default",
        _ => false,
    }
}

fn same_port(port: &crate::index::EndpointPort, route: &Route<'_>) -> bool {
    port.name == route.port.name && port.protocol == route.port.protocol
}
