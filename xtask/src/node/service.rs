//! Service addresses: what kube-proxy does, with one backend for each Service.

use std::fmt::Write as _;

use super::plan::{self, Both};

/// A Service with its backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    /// Labels by which it selects its pods.
    pub selector: Vec<(String, String)>,
    pub cluster_ips: Both,
    pub ports: Vec<ServicePort>,
    pub backend: Backend,
}

/// The one pod behind a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub ips: Both,
    /// Namespace, name and UID of the pod; `None` for an address that is no pod's.
    pub pod: Option<(String, String, String)>,
}

/// Ports in host byte order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: &'static str,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    pub port: u16,
    pub target_port: u16,
    /// Port on the node's own addresses, open to clients outside.
    pub node_port: Option<u16>,
}

impl ServicePort {
    pub const fn tcp(name: &'static str, port: u16, target_port: u16) -> Self {
        Self {
            name,
            protocol: "TCP",
            port,
            target_port,
            node_port: None,
        }
    }

    pub const fn udp(name: &'static str, port: u16, target_port: u16) -> Self {
        Self {
            name,
            protocol: "UDP",
            port,
            target_port,
            node_port: None,
        }
    }

    #[must_use]
    pub const fn node_port(mut self, port: u16) -> Self {
        self.node_port = Some(port);
        self
    }
}

/// The whole table, in place of the one before.
pub(super) fn ruleset(services: &[Service]) -> String {
    let mut rules = String::new();
    for service in services {
        for port in &service.ports {
            let protocol = port.protocol.to_lowercase();
            let families = [
                (
                    "ip",
                    service.cluster_ips.v4.to_string(),
                    service.backend.ips.v4.to_string(),
                ),
                (
                    "ip6",
                    service.cluster_ips.v6.to_string(),
                    format!("[{}]", service.backend.ips.v6),
                ),
            ];
            for ((family, cluster_ip, backend), node) in families.into_iter().zip(plan::NODE.all())
            {
                let target = format!("dnat {family} to {backend}:{}", port.target_port);
                let _ = writeln!(
                    rules,
                    "    {family} daddr {cluster_ip} {protocol} dport {} {target}",
                    port.port
                );
                if let Some(node_port) = port.node_port {
                    let _ = writeln!(
                        rules,
                        "    {family} daddr {node} {protocol} dport {node_port} {target}"
                    );
                }
            }
        }
    }
    format!(
        "table inet kube-proxy\n\
         delete table inet kube-proxy\n\
         table inet kube-proxy {{\n\
         \x20 chain services {{\n{rules}  }}\n\
         \x20 chain prerouting {{\n\
         \x20   type nat hook prerouting priority dstnat\n\
         \x20   jump services\n\
         \x20 }}\n\
         \x20 chain output {{\n\
         \x20   type nat hook output priority -100\n\
         \x20   jump services\n\
         \x20 }}\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_and_the_node_port_lead_to_the_backend() {
        let service = Service {
            namespace: "bookinfo".into(),
            name: "reviews".into(),
            selector: Vec::new(),
            cluster_ips: plan::service(40),
            ports: vec![ServicePort::tcp("http", 80, 9080).node_port(30080)],
            backend: Backend {
                ips: plan::pod(11),
                pod: None,
            },
        };
        let rules = ruleset(&[service]);
        for rule in [
            "ip daddr 10.96.0.40 tcp dport 80 dnat ip to 10.244.1.11:9080",
            "ip6 daddr fd00:10:96::28 tcp dport 80 dnat ip6 to [fd00:10:244:1::b]:9080",
            "ip daddr 192.0.2.10 tcp dport 30080 dnat ip to 10.244.1.11:9080",
            "ip6 daddr 2001:db8:2::10 tcp dport 30080 dnat ip6 to [fd00:10:244:1::b]:9080",
        ] {
            assert!(rules.contains(rule), "{rule} is not in:\n{rules}");
        }
    }
}
