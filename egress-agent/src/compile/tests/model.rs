//! What a pod may reach, said as plainly as possible, straight from the scenario. No tables.

use std::net::IpAddr;

use super::make::{ip, net};
use super::scenario::{
    ADDRESSES, APPS, CIDRS, Gateway, Lockdown, NAMESPACES, PROTOCOLS, Pod, Port, Scenario, Target,
};
use crate::compile::Hold;

const TCP: u8 = 6;
const UDP: u8 = 17;
const OVERLAYS: [u16; 11] = [
    4789, 5555, 6081, 6635, 6783, 6784, 8285, 8472, 51820, 51821, 51871,
];
const SPECIAL: [&str; 8] = [
    "169.254.0.0/16",
    "fe80::/10",
    "224.0.0.0/4",
    "ff00::/8",
    "127.0.0.0/8",
    "::/96",
    "64:ff9b::/96",
    "fd00:ec2::254/128",
];

/// What a pod is allowed by all its lockdowns together.
pub struct Rights<'a> {
    pub hold: Hold,
    pub reject: bool,
    pub gateways: bool,
    lockdowns: Vec<&'a Lockdown>,
}

impl Rights<'_> {
    fn by_address(&self, to: IpAddr, proto: u8, port: u16) -> bool {
        let named = ["192.168.0.1", "192.168.0.2", "10.244.0.9"];
        let named = named.iter().any(|own| to == ip(own));
        let pods = net("10.244.0.0/16").contains(&to) || net("fd00:244::/64").contains(&to);
        (self.part("Nodes") && named && !(proto == UDP && OVERLAYS.contains(&port)))
            || (self.part("Pods") && pods && !node(to))
            || self.lockdowns.iter().any(|l| l.cidrs(to, proto, port))
    }

    fn part(&self, part: &str) -> bool {
        self.lockdowns.iter().any(|l| l.cluster.contains(&part))
    }
}

fn special(to: IpAddr) -> bool {
    SPECIAL.iter().any(|s| net(s).contains(&to))
}

fn selected_by(pod: &Pod, gateway: &Gateway) -> bool {
    let namespace = NAMESPACES[gateway.namespace.unwrap_or(0)];
    !pod.finished
        && !gateway.foreign
        && gateway.app == Some(pod.app)
        && namespace == NAMESPACES[pod.namespace]
}

/// The address of a node.
fn node(to: IpAddr) -> bool {
    let own = [
        "10.244.0.1",
        "10.244.0.9",
        "10.244.1.0",
        "10.244.1.1",
        "192.168.0.1",
        "192.168.0.2",
    ];
    own.iter().any(|a| ip(a) == to)
}

impl Scenario {
    pub fn is_gateway(&self, pod: &Pod) -> bool {
        pod.ready && !pod.terminating && self.gateways.iter().any(|g| selected_by(pod, g))
    }

    /// Gateways and pods that may become one: nothing but listeners is open there.
    pub fn guarded_pod(&self, to: IpAddr) -> Option<&Pod> {
        self.pods.iter().find(|pod| {
            pod.ips().iter().any(|own| ip(own) == to)
                && self.gateways.iter().any(|g| selected_by(pod, g))
        })
    }

    pub fn guarded(&self, to: IpAddr) -> bool {
        self.guarded_pod(to).is_some()
            || (0..self.services.len()).any(|i| {
                let mut endpoints = self.services[i].endpoints.iter();
                self.cluster_ips(i).iter().any(|own| ip(own) == to)
                    && !self.services[i].endpoints.is_empty()
                    && endpoints.all(|(target, _)| {
                        let address = self.endpoint(target);
                        address.is_some_and(|a| self.guarded_pod(ip(&a)).is_some())
                    })
            })
    }

    /// TCP listeners at pods.
    fn listener(&self, to: IpAddr, port: u16) -> bool {
        self.pods.iter().enumerate().any(|(i, pod)| {
            let owners = self.pods.iter().filter(|p| {
                !p.finished && !p.host_network && p.ips().iter().any(|own| ip(own) == to)
            });
            let listens = |gateway: &Gateway| {
                let serving: Vec<(usize, &Port)> = (0..self.services.len())
                    .filter(|s| self.selects(*s, pod))
                    .flat_map(|s| self.services[s].ports.iter().map(move |p| (s, p)))
                    .filter(|(_, p)| p.port == gateway.port && p.protocol == 0)
                    .collect();
                if serving.is_empty() {
                    return port == gateway.port;
                }
                serving.iter().any(|(s, p)| {
                    p.target == Some(port)
                        && self.services[*s].endpoints.iter().any(|(target, _)| {
                            matches!(target, Target::Pod(n, true) if *n == i)
                                && self.endpoint(target).is_some_and(|a| ip(&a) == to)
                        })
                })
            };
            self.is_gateway(pod)
                && pod.ips().iter().any(|own| ip(own) == to)
                && (pod.host_network || owners.count() == 1)
                && self
                    .gateways
                    .iter()
                    .filter(|g| selected_by(pod, g))
                    .any(listens)
        })
    }

    fn selects(&self, service: usize, pod: &Pod) -> bool {
        self.service_name(service).0 == NAMESPACES[pod.namespace]
            && self.services[service].selector == Some(pod.app)
    }

    /// TCP listeners at `ClusterIP`s.
    fn gateway_service(&self, to: IpAddr, port: u16) -> bool {
        let mut active = self.gateways.iter();
        active.any(|g| {
            g.port == port
                && self
                    .pods
                    .iter()
                    .any(|p| self.is_gateway(p) && selected_by(p, g))
        }) && (0..self.services.len()).any(|s| {
            let service = &self.services[s];
            let leads = |p: &Port| {
                p.port == port
                    && p.protocol == 0
                    && p.target.is_some_and(|target| {
                        service.endpoints.iter().any(|(_, ready)| *ready)
                            && service.endpoints.iter().all(|(endpoint, ready)| {
                                let Some(a) = self.endpoint(endpoint) else {
                                    return false;
                                };
                                let a = ip(&a);
                                let inside =
                                    self.guarded_pod(a).is_some() || self.is_pod(a, endpoint);
                                if *ready {
                                    self.listener(a, target)
                                } else {
                                    inside
                                }
                            })
                    })
            };
            self.cluster_ips(s).iter().any(|own| ip(own) == to)
                && self
                    .pods
                    .iter()
                    .any(|p| self.is_gateway(p) && self.selects(s, p))
                && service.ports.iter().any(leads)
        })
    }

    /// The endpoint is a pod: one that is known, or one that is said to be one in the pods' range.
    fn is_pod(&self, to: IpAddr, endpoint: &Target) -> bool {
        let known = self
            .pods
            .iter()
            .any(|p| !p.finished && !p.host_network && p.ips().iter().any(|own| ip(own) == to));
        let said = matches!(endpoint, Target::Pod(..) | Target::Address(_, true));
        let range = net("10.244.0.0/16").contains(&to) || net("fd00:244::/64").contains(&to);
        known || (said && range && !node(to))
    }

    fn api(&self, to: IpAddr, port: u16) -> bool {
        (0..self.services.len())
            .filter(|s| self.service_name(*s).1 == "kubernetes")
            .any(|s| {
                let service = &self.services[s];
                service
                    .ports
                    .iter()
                    .any(|p| p.protocol == 0 && p.target == Some(port))
                    && service
                        .endpoints
                        .iter()
                        .any(|(t, _)| self.endpoint(t).is_some_and(|a| ip(&a) == to))
            })
    }

    fn served(&self, service: usize, port: &Port) -> bool {
        port.target.is_some() && !self.services[service].endpoints.is_empty()
    }

    /// Every packet for this port of the Service arrives where the pod may go.
    fn safe(&self, service: usize, port: &Port, nodes: bool, gateways: bool) -> bool {
        let tcp = port.protocol == 0;
        let udp = port.protocol == 1;
        let Some(target) = port.target else {
            return false;
        };
        self.services[service]
            .endpoints
            .iter()
            .all(|(endpoint, ready)| {
                let Some(address) = self.endpoint(endpoint) else {
                    return false;
                };
                let to = ip(&address);
                // A gateway that comes or goes, beside one that is there.
                let waits = !ready
                    && self.guarded_pod(to).is_some_and(|p| !p.host_network)
                    && self.services[service].endpoints.iter().any(|(other, _)| {
                        let other = self.endpoint(other);
                        other.is_some_and(|a| self.listener(ip(&a), target))
                    });
                if tcp && self.api(to, target) {
                    true
                } else if self.guarded_pod(to).is_some() || self.guarded_service(to) {
                    tcp && gateways && (self.listener(to, target) || waits)
                } else if node(to) {
                    nodes && !(udp && OVERLAYS.contains(&target))
                } else {
                    self.is_pod(to, endpoint)
                }
            })
    }

    fn guarded_service(&self, to: IpAddr) -> bool {
        self.guarded(to) && self.guarded_pod(to).is_none()
    }

    /// kube-proxy takes the packet somewhere that the pod may not go.
    fn diverted(&self, to: IpAddr, proto: u8, port: u16, rights: &Rights<'_>) -> bool {
        let nodes = rights.part("Nodes");
        (0..self.services.len()).any(|s| {
            let service = &self.services[s];
            let external = service.external.is_some_and(|e| ip(ADDRESSES[e]) == to);
            let at_ip = external || self.cluster_ips(s).iter().any(|own| ip(own) == to);
            service.ports.iter().any(|p| {
                let at_port =
                    (at_ip && p.port == port) || (p.node_port && port == 30080 && node(to));
                at_port
                    && PROTOCOLS[p.protocol].0 == proto
                    && self.served(s, p)
                    && !self.safe(s, p, nodes, rights.gateways)
            })
        })
    }

    pub fn rights(&self, pod: &Pod) -> Rights<'_> {
        let lockdowns: Vec<&Lockdown> = self
            .lockdowns
            .iter()
            .filter(|l| l.mode != "Off" && l.selects(pod))
            .collect();
        let enforced = |l: &&Lockdown| {
            l.mode == "Enforce" || l.until.is_some_and(|until| until < "2026-01-01")
        };
        let hold = if lockdowns.iter().any(enforced) {
            Hold::Enforce
        } else if lockdowns.is_empty() {
            Hold::Off
        } else {
            Hold::Audit
        };
        Rights {
            hold,
            reject: !lockdowns.is_empty() && lockdowns.iter().all(|l| l.reject),
            // The test admits the accounts of `web` and no other.
            gateways: !lockdowns.iter().any(|l| l.policy) || APPS[pod.app] == "web",
            lockdowns,
        }
    }

    pub fn allowed(&self, rights: &Rights<'_>, to: IpAddr, proto: u8, port: u16) -> bool {
        if self.diverted(to, proto, port, rights) {
            return false;
        }
        let listener = self.listener(to, port) || self.gateway_service(to, port);
        (rights.gateways && proto == TCP && listener)
            || self.dns(rights, to, proto, port)
            || self.api_server(rights, to, proto, port)
            || (rights.part("Services") && self.service(rights, to, proto, port))
            || (!self.guarded(to) && rights.by_address(to, proto, port))
    }

    fn dns(&self, rights: &Rights<'_>, to: IpAddr, proto: u8, port: u16) -> bool {
        let question = port == 53 && (proto == UDP || proto == TCP);
        let resolver = |l: &&Lockdown| l.resolver.is_some_and(|r| ip(ADDRESSES[r]) == to);
        if question && !self.guarded(to) && rights.lockdowns.iter().any(resolver) {
            return true;
        }
        if !rights.lockdowns.iter().any(|l| l.dns) {
            return false;
        }
        let beside_gateway =
            self.guarded_pod(to).is_none_or(|p| p.host_network) && !self.guarded_service(to);
        let cluster = (0..self.services.len())
            .filter(|s| self.service_name(*s).1 == "kube-dns")
            .any(|s| {
                let service = &self.services[s];
                service.ports.iter().any(|p| {
                    let at_ip = port == 53 && self.cluster_ips(s).iter().any(|own| ip(own) == to);
                    // The pods have one slice, in which ports have the name of the Service's.
                    let at_pod = p.target == Some(port)
                        && beside_gateway
                        && service
                            .endpoints
                            .iter()
                            .any(|(t, _)| self.endpoint(t).is_some_and(|a| ip(&a) == to));
                    p.port == 53
                        && PROTOCOLS[p.protocol].0 == proto
                        && (at_ip || at_pod)
                        && self.served(s, p)
                        && self.safe(s, p, true, false)
                })
            });
        cluster || (self.node_local_dns && question && to == ip("169.254.20.10"))
    }

    fn api_server(&self, rights: &Rights<'_>, to: IpAddr, proto: u8, port: u16) -> bool {
        let service = (0..self.services.len()).any(|s| {
            self.service_name(s).1 == "kubernetes"
                && self.cluster_ips(s).iter().any(|own| ip(own) == to)
                && self.services[s]
                    .ports
                    .iter()
                    .any(|p| p.protocol == 0 && p.port == port)
        });
        let beside_gateway =
            self.guarded_pod(to).is_none_or(|p| p.host_network) && !self.guarded_service(to);
        rights.part("APIServer")
            && proto == TCP
            && (service || (self.api(to, port) && beside_gateway))
    }

    fn service(&self, rights: &Rights<'_>, to: IpAddr, proto: u8, port: u16) -> bool {
        let nodes = rights.part("Nodes");
        (0..self.services.len()).any(|s| {
            self.cluster_ips(s).iter().any(|own| ip(own) == to)
                && self.services[s].ports.iter().any(|p| {
                    p.port == port
                        && PROTOCOLS[p.protocol].0 == proto
                        && self.served(s, p)
                        && self.safe(s, p, nodes, rights.gateways)
                })
        })
    }
}

impl Lockdown {
    fn selects(&self, pod: &Pod) -> bool {
        let app = match self.app {
            None => true,
            Some(("In", app)) => pod.app == app,
            Some((_, app)) => pod.app != app,
        };
        app && (!self.labelled || NAMESPACES[pod.namespace] == "red")
    }

    fn cidrs(&self, to: IpAddr, proto: u8, port: u16) -> bool {
        self.cidrs.iter().any(|entry| {
            let cidr = net(CIDRS[entry.cidr]);
            let meant = SPECIAL
                .iter()
                .all(|s| !net(s).contains(&to) || net(s).contains(&cidr));
            cidr.contains(&to)
                && meant
                && !entry.except.iter().any(|e| net(CIDRS[*e]).contains(&to))
                && (entry.ports.is_empty()
                    || entry.ports.iter().any(|(protocol, first, last)| {
                        let range = first.map_or(0..=u16::MAX, |f| f..=last.unwrap_or(f));
                        PROTOCOLS[*protocol].0 == proto && range.contains(&port)
                    }))
        })
    }
}

/// The model knows fewer special ranges than the compiler; the probes must not need the others.
#[test]
fn the_probes_need_no_other_special_ranges() {
    for address in ADDRESSES {
        assert_eq!(
            special(ip(address)),
            crate::compile::special::is_special(ip(address))
        );
    }
}
