//! Which pods are gateways, and by which addresses they are reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Settings;
use super::cluster::Cluster;
use crate::api::lockdown::Protocol;
use crate::index::{
    Endpoint, Finding, Index, Key, Labels, ObjectId, Pod, Problem, Service, selects,
};

#[derive(Debug, Default)]
pub(super) struct Gateways {
    /// Pods that are gateways now.
    pub pods: BTreeSet<Key>,
    /// Address and TCP port of a listener, at the pods, with the rule to name.
    pub listeners: BTreeMap<(IpAddr, u16), String>,
    /// Address and TCP port of a listener, at the `ClusterIP`s.
    pub services: BTreeMap<(IpAddr, u16), String>,
    /// Addresses of which nothing but listeners is open. Those of pods that are not Ready (any
    /// more) are among them.
    pub guards: BTreeMap<IpAddr, Guard>,
    /// Ports of the pods, Ready or not, by declared port of a listener.
    pub ports: BTreeMap<Key, BTreeMap<u16, BTreeSet<u16>>>,
    /// Ports that listeners of gateways with Ready pods are declared with.
    numbers: BTreeSet<u16>,
    pub problems: Vec<Problem>,
}

#[derive(Clone, Debug)]
pub(super) struct Guard {
    pub rule: String,
    /// It is a node's address too, where the API server and DNS may be.
    pub node: bool,
}

impl Gateways {
    pub fn find(index: &Index, settings: &Settings, cluster: &Cluster) -> Self {
        let mut gateways = Self::default();
        for (name, declared) in index.virtual_gateways() {
            let rule = format!("VirtualGateway/{name}");
            for (i, workload) in declared.spec.workloads.iter().enumerate() {
                let selector = &workload.selector;
                if selector.labels.is_empty() {
                    continue; // The index reports it.
                }
                if let Some(wanted) = &selector.cluster
                    && settings
                        .cluster_name
                        .as_ref()
                        .is_some_and(|ours| ours != wanted)
                {
                    gateways.report_foreign(name, i, wanted);
                    continue;
                }
                let namespace = selector.namespace.as_ref().unwrap_or(&name.namespace);
                for (key, pod) in select(index, namespace, &selector.labels) {
                    for ip in &pod.ips {
                        let guard = Guard {
                            rule: rule.clone(),
                            node: pod.host_network,
                        };
                        gateways.guards.entry(*ip).or_insert(guard);
                    }
                    let ready = pod.ready && !pod.terminating;
                    if ready {
                        gateways.pods.insert(key.clone());
                    }
                    for (j, listener) in declared.spec.listeners.iter().enumerate() {
                        let number = listener.port.number;
                        let targets = targets(index, key, pod, number);
                        let ports = gateways.ports.entry(name.clone()).or_default();
                        ports
                            .entry(number)
                            .or_default()
                            .extend(targets.iter().map(|t| t.1));
                        if ready {
                            gateways.numbers.insert(number);
                            for target in targets {
                                let rule = || format!("{rule} listeners[{j}]");
                                gateways.listeners.entry(target).or_insert_with(rule);
                            }
                        }
                    }
                }
            }
        }
        gateways.find_services(index, cluster);
        gateways
    }

    fn report_foreign(&mut self, gateway: &Key, workload: usize, cluster: &str) {
        let object = ObjectId {
            kind: "VirtualGateway",
            namespace: gateway.namespace.clone(),
            name: gateway.name.clone(),
        };
        let field = format!("spec.workloads[{workload}].selector.cluster");
        let reason = format!("`{cluster}` is another cluster: its pods are no gateways here");
        self.problems
            .push(Finding::ignored(field, reason).of(&object));
    }

    fn find_services(&mut self, index: &Index, cluster: &Cluster) {
        let mut services = BTreeMap::new();
        let mut guards = Vec::new();
        for (key, service) in index.services() {
            let endpoints = || index.slices_of(key).flat_map(|slice| &slice.endpoints);
            let mut addresses = endpoints().flat_map(|e| &e.addresses).peekable();
            if addresses.peek().is_none() {
                continue;
            }
            let guard = |ip: &Option<IpAddr>| ip.and_then(|ip| self.guards.get(&ip));
            let first = addresses.peek().copied().and_then(guard).cloned();
            if let Some(first) = first
                && addresses.all(|ip| guard(ip).is_some())
            {
                let guard = Guard {
                    node: false,
                    ..first
                };
                guards.extend(service.cluster_ips.iter().map(|ip| (*ip, guard.clone())));
            }
            for (port, rule) in self.service_listeners(index, cluster, key, service) {
                for ip in &service.cluster_ips {
                    services.entry((*ip, port)).or_insert_with(|| rule.clone());
                }
            }
        }
        self.services = services;
        for (ip, guard) in guards {
            self.guards.entry(ip).or_insert(guard);
        }
    }

    /// Ports of the Service at which it is a gateway: it selects gateway pods, each ready endpoint
    /// is a listener of one, and no endpoint that may become ready is outside the cluster.
    fn service_listeners(
        &self,
        index: &Index,
        cluster: &Cluster,
        key: &Key,
        service: &Service,
    ) -> Vec<(u16, String)> {
        let mut found = Vec::new();
        let selects_one = self.pods.iter().any(|pod| {
            pod.namespace == key.namespace
                && index
                    .pods()
                    .get(pod)
                    .is_some_and(|pod| selects(&service.selector, &pod.labels))
        });
        if !selects_one {
            return found;
        }
        let tcp = service
            .ports
            .iter()
            .filter(|port| port.protocol == Protocol::Tcp);
        for port in tcp.filter(|port| self.numbers.contains(&port.port)) {
            let mut rule = None;
            let mut sound = true;
            for slice in index.slices_of(key) {
                let targets: Vec<Option<u16>> = slice
                    .ports
                    .iter()
                    .filter(|p| p.name == port.name && p.protocol == port.protocol)
                    .map(|p| p.port)
                    .collect();
                for endpoint in &slice.endpoints {
                    for address in &endpoint.addresses {
                        let listener = |target: &Option<u16>| {
                            self.listeners.get(&((*address)?, (*target)?)).cloned()
                        };
                        if endpoint.ready && !targets.is_empty() {
                            let first = targets.first().and_then(listener);
                            sound &= targets.iter().all(|target| listener(target).is_some());
                            rule = rule.or(first);
                        } else {
                            sound &= address.is_some_and(|ip| {
                                self.guards.contains_key(&ip)
                                    || index.is_pod_ip(ip)
                                    || (endpoint.pod.is_some() && cluster.in_pod_cidrs(ip))
                            });
                        }
                    }
                }
            }
            if let Some(rule) = rule.filter(|_| sound) {
                found.push((port.port, rule));
            }
        }
        found
    }
}

/// Where one listener of one pod is: where the Services that have this port send it, or at the
/// port itself where none has.
fn targets(index: &Index, key: &Key, pod: &Pod, port: u16) -> BTreeSet<(IpAddr, u16)> {
    let mut targets = BTreeSet::new();
    let mut served = false;
    for (service_key, service) in selecting(index, &key.namespace, &pod.labels) {
        let tcp = service.ports.iter().filter(|p| p.protocol == Protocol::Tcp);
        for service_port in tcp.filter(|p| p.port == port) {
            served = true;
            for slice in index.slices_of(service_key) {
                let ports = slice
                    .ports
                    .iter()
                    .filter(|p| p.name == service_port.name && p.protocol == service_port.protocol);
                for target in ports.filter_map(|p| p.port) {
                    let own = slice.endpoints.iter().filter(|e| is_endpoint_of(e, pod));
                    let addresses = own.flat_map(|e| &e.addresses).flatten();
                    targets.extend(addresses.map(|ip| (*ip, target)));
                }
            }
        }
    }
    if !served {
        targets.extend(pod.ips.iter().map(|ip| (*ip, port)));
    }
    // An address counts only while no other pod claims it.
    targets.retain(|(ip, _)| {
        let owned = pod.host_network || index.pod_by_ip(*ip).is_some_and(|(k, _)| k == key);
        owned && pod.ips.contains(ip)
    });
    targets
}

/// Pods of the namespace with these labels that are not finished.
fn select<'a>(
    index: &'a Index,
    namespace: &str,
    labels: &'a Labels,
) -> impl Iterator<Item = (&'a Key, &'a Pod)> {
    in_namespace(index.pods(), namespace)
        .filter(move |(_, pod)| !pod.finished && selects(labels, &pod.labels))
}

/// Services of the namespace that select a pod with these labels.
fn selecting<'a>(
    index: &'a Index,
    namespace: &str,
    labels: &'a Labels,
) -> impl Iterator<Item = (&'a Key, &'a Service)> {
    in_namespace(index.services(), namespace)
        .filter(move |(_, service)| selects(&service.selector, labels))
}

fn in_namespace<'a, V>(
    map: &'a BTreeMap<Key, V>,
    namespace: &str,
) -> impl Iterator<Item = (&'a Key, &'a V)> {
    let namespace = namespace.to_owned();
    map.range(Key::new(&namespace, "")..)
        .take_while(move |(key, _)| key.namespace == namespace)
}

fn is_endpoint_of(endpoint: &Endpoint, pod: &Pod) -> bool {
    endpoint
        .pod
        .as_ref()
        .is_some_and(|target| target.uid == pod.uid)
}
