//! From Kubernetes' objects to what the index keeps of them.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::model::{
    Endpoint, EndpointPort, EndpointSlice, Node, Pod, PodRef, Service, ServicePort,
};
use super::node_access::node_access;
use super::problem::Finding;
use crate::api::lockdown::Protocol;

/// Label that ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Annotations of the API object that mirrors a static pod. The kubelet names the pod's cgroup by
/// the hash. No pod that was made through the API can pose as one: the kubelet deletes mirrors
/// that it does not know.
const MIRROR: &str = "kubernetes.io/config.mirror";
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Label of a Node with what it runs; the kubelet writes it.
const OS: &str = "kubernetes.io/os";

/// Annotations of a Node in which network plugins say which addresses its own devices have: those of
/// tunnels lie in the midst of the pods' ranges, and what comes there comes to the node.
pub const NODE_ADDRESSES: [&str; 11] = [
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
    "network.cilium.io/ipv4-cilium-host",
    "network.cilium.io/ipv6-cilium-host",
    "io.cilium.network.ipv4-cilium-host",
    "io.cilium.network.ipv6-cilium-host",
    "flannel.alpha.coreos.com/public-ip",
    "flannel.alpha.coreos.com/public-ipv6",
];

pub(super) fn node(o: &core::Node, findings: &mut Vec<Finding>) -> Node {
    let mut node = Node {
        uid: o.metadata.uid.clone().unwrap_or_default(),
        other_os: o
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(OS))
            .is_some_and(|os| os != "linux"),
        ..Node::default()
    };
    let spec = o.spec.clone().unwrap_or_default();
    let cidrs = spec
        .pod_cidrs
        .unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    for (i, text) in cidrs.iter().enumerate() {
        match text.parse::<IpNet>() {
            // A node without a real range must not turn the whole world into "pods".
            Ok(net) if net.prefix_len() > 0 => node.pod_cidrs.push(net.trunc()),
            _ => findings.push(Finding::ignored(
                format!("spec.podCIDRs[{i}]"),
                format!("`{text}` is no CIDR of pods"),
            )),
        }
    }
    let addresses = o
        .status
        .as_ref()
        .and_then(|s| s.addresses.as_deref())
        .unwrap_or_default();
    for (i, address) in addresses.iter().enumerate() {
        if !matches!(address.type_.as_str(), "InternalIP" | "ExternalIP") {
            continue;
        }
        match address.address.parse() {
            Ok(ip) => node.addresses.push(ip),
            Err(_) => findings.push(Finding::ignored(
                format!("status.addresses[{i}].address"),
                format!("`{}` is no IP address", address.address),
            )),
        }
    }
    let annotations = o.metadata.annotations.iter().flatten();
    for (name, text) in annotations.filter(|(name, _)| NODE_ADDRESSES.contains(&name.as_str())) {
        // Some write the length of the prefix with it.
        let address = text.split('/').next().unwrap_or_default().trim();
        match address.parse() {
            Ok(ip) => node.addresses.push(ip),
            // So a plugin says that there is no such device.
            Err(_) if address.is_empty() => {}
            Err(_) => findings.push(Finding::ignored(
                format!("metadata.annotations[{name}]"),
                format!("`{text}` is no IP address"),
            )),
        }
    }
    node.pod_cidrs.sort_unstable();
    node.pod_cidrs.dedup();
    node.addresses.sort_unstable();
    node.addresses.dedup();
    node
}

pub(super) fn pod(o: &core::Pod) -> Result<Pod, Finding> {
    let spec = o.spec.clone().unwrap_or_default();
    let status = o.status.clone().unwrap_or_default();
    let (uid, mirror) = pod_uid(&o.metadata)?;
    let mut ips = Vec::new();
    let listed = status.pod_ips.unwrap_or_default().into_iter().map(|p| p.ip);
    for (i, text) in listed.chain(status.pod_ip).enumerate() {
        let ip: IpAddr = text.parse().map_err(|_| {
            Finding::refused(
                format!("status.podIPs[{i}].ip"),
                format!("`{text}` is no IP address"),
            )
        })?;
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    let conditions = status.conditions.unwrap_or_default();
    Ok(Pod {
        uid,
        mirror,
        node: spec.node_name.unwrap_or_default(),
        labels: o.metadata.labels.clone().unwrap_or_default(),
        service_account: spec
            .service_account_name
            .or(spec.service_account)
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".to_owned()),
        host_network: spec.host_network.unwrap_or_default(),
        node_access: node_access(o).iter().map(ToString::to_string).collect(),
        ips,
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        ready: conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
        terminating: o.metadata.deletion_timestamp.is_some(),
    })
}

/// The UID that the pod's cgroup bears, and whether it is that of a static pod.
fn pod_uid(meta: &ObjectMeta) -> Result<(String, bool), Finding> {
    if let Some(annotations) = &meta.annotations
        && annotations.contains_key(MIRROR)
        && let Some(hash) = annotations.get(CONFIG_HASH).filter(|hash| !hash.is_empty())
    {
        return Ok((hash.clone(), true));
    }
    match meta.uid.as_deref() {
        Some(uid) if !uid.is_empty() => Ok((uid.to_owned(), false)),
        _ => Err(Finding::refused(
            "metadata.uid",
            "a Pod needs its UID: it is what tells its cgroup from others",
        )),
    }
}

pub(super) fn service(o: &core::Service, findings: &mut Vec<Finding>) -> Service {
    let labels = o.metadata.labels.clone().unwrap_or_default();
    let spec = o.spec.clone().unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        return Service {
            labels,
            ..Service::default()
        };
    }
    let ips = spec
        .cluster_ips
        .unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
    let cluster_ips = ips.iter().filter(|ip| !ip.is_empty() && *ip != "None");
    let status = o.status.clone().unwrap_or_default();
    let ingress = status
        .load_balancer
        .and_then(|lb| lb.ingress)
        .unwrap_or_default();
    let external = spec.external_ips.unwrap_or_default();
    let outside: Vec<String> = external
        .into_iter()
        .chain(ingress.into_iter().filter_map(|i| i.ip))
        .collect();
    let mut ports = Vec::new();
    for (i, port) in spec.ports.unwrap_or_default().into_iter().enumerate() {
        let field = format!("spec.ports[{i}]");
        let Some(protocol) = protocol(port.protocol.as_deref(), &field, findings) else {
            continue;
        };
        let Some(number) = number(port.port, &format!("{field}.port"), findings) else {
            continue;
        };
        ports.push(ServicePort {
            name: port.name.unwrap_or_default(),
            protocol,
            port: number,
            node_port: port
                .node_port
                .and_then(|p| u16::try_from(p).ok())
                .filter(|p| *p != 0),
        });
    }
    Service {
        labels,
        selector: spec.selector.unwrap_or_default(),
        cluster_ips: parse_ips(cluster_ips, "spec.clusterIPs", findings),
        outside_ips: parse_ips(outside.iter(), "spec.externalIPs", findings),
        ports,
    }
}

pub(super) fn slice(o: &discovery::EndpointSlice, findings: &mut Vec<Finding>) -> EndpointSlice {
    let labels = o.metadata.labels.as_ref();
    let service = labels
        .and_then(|l| l.get(SERVICE_NAME))
        .cloned()
        .unwrap_or_default();
    let mut ports = Vec::new();
    for (i, port) in o.ports.iter().flatten().enumerate() {
        let field = format!("ports[{i}]");
        let Some(protocol) = protocol(port.protocol.as_deref(), &field, findings) else {
            continue;
        };
        let number = match port.port {
            None => None,
            Some(raw) => match number(raw, &format!("{field}.port"), findings) {
                None => continue,
                some => some,
            },
        };
        ports.push(EndpointPort {
            name: port.name.clone().unwrap_or_default(),
            protocol,
            port: number,
        });
    }
    let endpoints = o.endpoints.iter().map(endpoint).collect();
    EndpointSlice {
        service,
        ports,
        endpoints,
    }
}

fn endpoint(o: &discovery::Endpoint) -> Endpoint {
    let target = o
        .target_ref
        .as_ref()
        .filter(|t| t.kind.as_deref() == Some("Pod"));
    Endpoint {
        // What can't be read as an address counts as one outside the cluster.
        addresses: o.addresses.iter().map(|a| a.parse().ok()).collect(),
        ready: o.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true),
        pod: target.map(|t| PodRef {
            name: t.name.clone().unwrap_or_default(),
            uid: t.uid.clone().unwrap_or_default(),
        }),
    }
}

fn protocol(text: Option<&str>, field: &str, findings: &mut Vec<Finding>) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        other => {
            findings.push(Finding::ignored(
                format!("{field}.protocol"),
                format!("`{other}` is none of TCP, UDP, SCTP"),
            ));
            None
        }
    }
}

fn number(raw: i32, field: &str, findings: &mut Vec<Finding>) -> Option<u16> {
    let number = u16::try_from(raw).ok().filter(|port| *port != 0);
    if number.is_none() {
        findings.push(Finding::ignored(
            field,
            format!("{raw} is no port (1 to 65535)"),
        ));
    }
    number
}

fn parse_ips<'a>(
    texts: impl Iterator<Item = &'a String>,
    field: &str,
    findings: &mut Vec<Finding>,
) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(ip) => ips.push(ip),
            Err(_) => findings.push(Finding::ignored(
                field,
                format!("`{text}` is no IP address"),
            )),
        }
    }
    ips
}
