//! Small clusters with all that is easily got wrong in them, which `random` makes.
// These are objects, with the fields that Kubernetes gives them.
#![allow(clippy::struct_excessive_bools, clippy::struct_field_names)]

use serde_json::{Value, json};

use super::make::{mk_annotated_node, mk_lockdown, mk_namespace, mk_pod, mk_raw_slice};
use crate::index::Object;

pub const NAMESPACES: [&str; 3] = ["istio-egress", "red", "blue"];
pub const APPS: [&str; 3] = ["gw", "web", "db"];
/// Addresses that packets go to, and that endpoints, externals and resolvers have.
pub const ADDRESSES: [&str; 24] = [
    "10.244.0.1",
    "10.244.0.2",
    "10.244.0.3",
    "10.244.0.4",
    "10.244.0.5",
    "10.244.1.1",
    "10.244.1.2",
    "10.96.0.10",
    "10.96.0.11",
    "10.96.0.12",
    "192.168.0.1",
    "192.168.0.2",
    "203.0.113.1",
    "203.0.113.9",
    "169.254.169.254",
    "169.254.20.10",
    "fd00:244::2",
    "fd00:244::3",
    "fd00:96::10",
    "2001:db8::1",
    "fe80::1",
    "fd00:ec2::254",
    "10.244.0.9",
    "10.244.1.0",
];
pub const CIDRS: [&str; 17] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.244.0.0/24",
    "10.244.0.2/31",
    "10.244.0.3/32",
    "10.96.0.0/16",
    "10.96.0.10/32",
    "192.168.0.0/24",
    "203.0.113.0/24",
    "203.0.113.1/32",
    "169.254.0.0/16",
    "169.254.169.254/32",
    "::/0",
    "fd00::/8",
    "fd00:244::/64",
    "2001:db8::/32",
    "fd00:ec2::254/128",
];
pub const PORTS: [u16; 10] = [53, 80, 443, 4789, 6443, 8080, 8443, 15000, 30080, 40000];
/// TCP, UDP, SCTP.
pub const PROTOCOLS: [(u8, &str); 3] = [(6, "TCP"), (17, "UDP"), (132, "SCTP")];
pub const PARTS: [&str; 4] = ["Pods", "Services", "Nodes", "APIServer"];

#[derive(Clone, Debug)]
pub struct Pod {
    pub namespace: usize,
    pub app: usize,
    /// Last part of its addresses, 2 to 5; two pods may claim the same.
    pub host: u8,
    pub v6: bool,
    pub host_network: bool,
    pub ready: bool,
    pub terminating: bool,
    pub finished: bool,
}

impl Pod {
    pub fn ips(&self) -> Vec<String> {
        if self.host_network {
            return vec!["192.168.0.1".into()];
        }
        let mut ips = vec![format!("10.244.0.{}", self.host)];
        if self.v6 {
            ips.push(format!("fd00:244::{}", self.host));
        }
        ips
    }
}

#[derive(Clone, Debug)]
pub enum Target {
    /// A pod of the scenario by number, with its UID or (wrongly) another.
    Pod(usize, bool),
    /// An address, and whether it is said to be a Pod's.
    Address(usize, bool),
    /// A host name.
    Name,
}

#[derive(Clone, Debug)]
pub struct Port {
    pub port: u16,
    pub protocol: usize,
    pub node_port: bool,
    /// Port of the endpoints, by this port's name; none if the slice doesn't have it.
    pub target: Option<u16>,
}

#[derive(Clone, Debug)]
pub struct Service {
    /// 0 may be `default/kubernetes`, 1 may be `kube-system/kube-dns`.
    pub special: bool,
    pub namespace: usize,
    pub selector: Option<usize>,
    pub v6: bool,
    pub external: Option<usize>,
    pub ports: Vec<Port>,
    pub endpoints: Vec<(Target, bool)>,
}

#[derive(Clone, Debug)]
pub struct Cidr {
    pub cidr: usize,
    pub except: Vec<usize>,
    /// (protocol, port, last port).
    pub ports: Vec<(usize, Option<u16>, Option<u16>)>,
}

#[derive(Clone, Debug)]
pub struct Lockdown {
    /// Only namespaces labelled `held`.
    pub labelled: bool,
    pub app: Option<(&'static str, usize)>,
    pub mode: &'static str,
    pub until: Option<&'static str>,
    pub reject: bool,
    pub policy: bool,
    pub cluster: Vec<&'static str>,
    pub dns: bool,
    pub resolver: Option<usize>,
    pub cidrs: Vec<Cidr>,
}

#[derive(Clone, Debug)]
pub struct Gateway {
    pub namespace: Option<usize>,
    /// None selects by no label, and so nothing.
    pub app: Option<usize>,
    pub foreign: bool,
    pub port: u16,
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub pods: Vec<Pod>,
    pub services: Vec<Service>,
    pub lockdowns: Vec<Lockdown>,
    pub gateways: Vec<Gateway>,
    pub node_local_dns: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub pod: usize,
    pub address: usize,
    pub port: u16,
    /// Index into `PROTOCOLS`; 3 is ICMP.
    pub protocol: usize,
}

impl Scenario {
    /// Namespace and name of a Service.
    pub fn service_name(&self, i: usize) -> (&'static str, String) {
        match (i, self.services[i].special) {
            (0, true) => ("default", "kubernetes".into()),
            (1, true) => ("kube-system", "kube-dns".into()),
            _ => (NAMESPACES[self.services[i].namespace], format!("svc-{i}")),
        }
    }

    /// `ClusterIP`s of a Service.
    pub fn cluster_ips(&self, i: usize) -> Vec<String> {
        let mut ips = vec![format!("10.96.0.{}", 10 + i)];
        if self.services[i].v6 {
            ips.push(format!("fd00:96::{}", 10 + i));
        }
        ips
    }

    /// Address of an endpoint; none for a name.
    pub fn endpoint(&self, target: &Target) -> Option<String> {
        match target {
            Target::Pod(pod, _) => Some(self.pods[*pod].ips()[0].clone()),
            Target::Address(address, _) => Some(ADDRESSES[*address].into()),
            Target::Name => None,
        }
    }

    pub fn objects(&self) -> Vec<Object> {
        let mut objects = vec![
            mk_annotated_node(
                "n1",
                &["10.244.1.0/24"],
                &["192.168.0.1", "192.168.0.2"],
                json!({"projectcalico.org/IPv4VXLANTunnelAddr": "10.244.0.9"}),
            ),
            mk_namespace("istio-egress", json!({})),
            mk_namespace("red", json!({"held": "yes"})),
            mk_namespace("blue", json!({})),
        ];
        for (i, pod) in self.pods.iter().enumerate() {
            let ips = pod.ips();
            let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
            let mut patch = json!({"spec": {"hostNetwork": pod.host_network}, "status": {
                "phase": if pod.finished { "Failed" } else { "Running" },
                "conditions": [{"type": "Ready", "status": if pod.ready { "True" } else { "False" }}]}});
            if pod.terminating {
                patch["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
            }
            let name = format!("p{i}");
            objects.push(mk_pod(
                NAMESPACES[pod.namespace],
                &name,
                APPS[pod.app],
                &ips,
                patch,
            ));
        }
        if self.node_local_dns {
            let patch = json!({"spec": {"hostNetwork": true}, "metadata": {"labels": {"k8s-app": "node-local-dns"}}});
            objects.push(mk_pod("kube-system", "nld", "x", &["192.168.0.1"], patch));
        }
        for i in 0..self.services.len() {
            self.service_objects(i, &mut objects);
        }
        for (i, lockdown) in self.lockdowns.iter().enumerate() {
            objects.push(mk_lockdown(&format!("l{i}"), lockdown.spec()));
        }
        for (i, gateway) in self.gateways.iter().enumerate() {
            let mut selector = json!({});
            if let Some(app) = gateway.app {
                selector["labels"] = json!({"app": APPS[app]});
            }
            if let Some(namespace) = gateway.namespace {
                selector["namespace"] = json!(NAMESPACES[namespace]);
            }
            if gateway.foreign {
                selector["cluster"] = json!("another");
            }
            let patch = json!({"workloads": [{"selector": selector}]});
            objects.push(super::make::mk_gateway(
                &format!("vg{i}"),
                gateway.port,
                patch,
            ));
        }
        objects
    }

    fn service_objects(&self, i: usize, objects: &mut Vec<Object>) {
        let service = &self.services[i];
        let (namespace, name) = self.service_name(i);
        let ports: Vec<Value> = service
            .ports
            .iter()
            .enumerate()
            .map(|(j, port)| {
                json!({"name": format!("port{j}"), "port": port.port,
                    "protocol": PROTOCOLS[port.protocol].1,
                    "nodePort": port.node_port.then_some(30080)})
            })
            .collect();
        let mut spec =
            json!({"type": "NodePort", "clusterIPs": self.cluster_ips(i), "ports": ports});
        if let Some(app) = service.selector {
            spec["selector"] = json!({"app": APPS[app]});
        }
        if let Some(external) = service.external {
            spec["externalIPs"] = json!([ADDRESSES[external]]);
        }
        let object = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": namespace, "name": name}, "spec": spec});
        let object = serde_json::from_value(object).expect("well-formed");
        objects.push(Object::Service(Box::new(object)));
        let ports: Vec<Value> = service
            .ports
            .iter()
            .enumerate()
            .filter_map(|(j, port)| {
                Some(json!({"name": format!("port{j}"), "port": port.target?,
                    "protocol": PROTOCOLS[port.protocol].1}))
            })
            .collect();
        let endpoints: Vec<Value> = service
            .endpoints
            .iter()
            .map(|(target, ready)| {
                let address = self.endpoint(target).unwrap_or("example.com".into());
                let mut endpoint = json!({"addresses": [address], "conditions": {"ready": ready}});
                match target {
                    Target::Pod(pod, true) => {
                        endpoint["targetRef"] =
                            json!({"kind": "Pod", "uid": format!("uid-p{pod}")});
                    }
                    Target::Pod(_, false) | Target::Address(_, true) => {
                        endpoint["targetRef"] = json!({"kind": "Pod", "uid": "uid-old"});
                    }
                    Target::Address(_, false) | Target::Name => {}
                }
                endpoint
            })
            .collect();
        objects.push(mk_raw_slice(
            namespace,
            &name,
            json!(ports),
            json!(endpoints),
        ));
    }
}

impl Lockdown {
    fn spec(&self) -> Value {
        let cidrs: Vec<Value> = self
            .cidrs
            .iter()
            .map(|cidr| {
                let ports: Vec<Value> = cidr
                    .ports
                    .iter()
                    .map(|(protocol, port, last)| {
                        json!({"protocol": PROTOCOLS[*protocol].1, "port": port, "endPort": last})
                    })
                    .collect();
                let except: Vec<&str> = cidr.except.iter().map(|i| CIDRS[*i]).collect();
                json!({"cidr": CIDRS[cidr.cidr], "except": except, "ports": ports})
            })
            .collect();
        let resolvers: Vec<&str> = self.resolver.iter().map(|i| ADDRESSES[*i]).collect();
        let mut spec = json!({"mode": self.mode, "auditUntil": self.until,
            "onDeny": if self.reject { "Reject" } else { "Drop" },
            "gatewayAccess": if self.policy { "Policy" } else { "Any" },
            "allow": {"cluster": self.cluster, "cidrs": cidrs,
                "dns": {"cluster": self.dns, "resolvers": resolvers}}});
        if self.labelled {
            spec["namespaceSelector"] = json!({"matchLabels": {"held": "yes"}});
        }
        if let Some((operator, app)) = self.app {
            spec["podSelector"] = json!({"matchExpressions":
                [{"key": "app", "operator": operator, "values": [APPS[app]]}]});
        }
        spec
    }
}
