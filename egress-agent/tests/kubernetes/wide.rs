//! A history in which everything changes that may change what a pod of this node may reach: who is
//! held, how, by which gateways, and which pods there are.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::history::{CIDRS, History, name_of};
use super::kernel::{Births, Body};
use super::objects::{self, NODE};

/// Both of a pod's addresses, by its node's number and its own.
pub fn addresses(node: u8, number: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v6 = Ipv6Addr::new(
        0xfd00,
        0x244,
        u16::from(node),
        0,
        0,
        0,
        0,
        u16::from(number),
    );
    (Ipv4Addr::new(10, 244, node, number), v6)
}

fn small(number: u64) -> u8 {
    u8::try_from(number).expect("a small number")
}

/// A pod with both addresses and a service account of its own.
fn pod(namespace: &str, name: &str, node: (&str, u8), number: u8, app: &str) -> Value {
    let (v4, v6) = addresses(node.1, number);
    let mut pod = objects::pod(namespace, name, node.0, &v4.to_string(), app);
    pod["spec"]["serviceAccountName"] = json!(format!("sa-{name}"));
    pod["status"]["podIPs"] = json!([{ "ip": v4.to_string() }, { "ip": v6.to_string() }]);
    pod
}

impl History {
    /// As [`History::new`], where nodes have networks of both families.
    pub fn wide(seed: u64) -> Self {
        let mut history = Self::new(seed);
        for number in [1, 2] {
            let name = format!("node-{number}");
            let mut node = objects::node(&name, number);
            let v6 = format!("fd00:244:{number}::/64");
            node["spec"]["podCIDRs"] = json!([format!("10.244.{number}.0/24"), v6]);
            history.put(node);
        }
        history.put(objects::namespace("other"));
        history
    }

    /// One change of one object.
    pub fn change_widely(&mut self) {
        let there = self.random.below(3) > 0;
        let number = self.random.below(4);
        let namespace = ["bookinfo", "other"][usize::from(self.random.flip())];
        let object = match self.random.below(15) {
            0 | 1 => self.any_lockdown(namespace, number % 3),
            2..5 => return self.change_own_pod(namespace, number, there),
            5 | 6 => {
                let app = ["gateway", "other"][usize::from(self.random.flip())];
                let ip = 20 + small(number * 2 + self.random.below(3));
                let name = format!("gw{number}");
                let mut pod = pod("istio-egress", &name, ("node-2", 2), ip, app);
                if self.random.below(3) == 0 {
                    pod["status"]["conditions"][0]["status"] = json!("False");
                }
                pod
            }
            7 => self.any_gateway(number % 2),
            8 => objects::service("bookinfo", "s", "10.96.0.7", "web", 80),
            9 => {
                let outside = self.random.flip();
                let ip = ["10.244.1.10", "203.0.113.9"][usize::from(outside)];
                objects::slice("bookinfo", "s", 80, &[(ip, "web")])
            }
            10 => self.any_namespace(namespace),
            11 => external_service(number % 2),
            12 => access_policy(namespace, number),
            13 => objects::service("istio-egress", "gw", "10.96.0.20", "gateway", 443),
            _ => return self.change_gloo(there, number),
        };
        // A namespace stays: pods are in it.
        if there || object["kind"] == "Namespace" {
            self.put(object);
        } else {
            self.drop(&object);
        }
    }

    fn any_lockdown(&mut self, namespace: &str, number: u64) -> Value {
        let mut cidrs = CIDRS.to_vec();
        cidrs.retain(|_| self.random.flip());
        let mut lockdown = objects::lockdown(&format!("l{number}"), namespace, &cidrs);
        let spec = &mut lockdown["spec"];
        spec["mode"] = json!(["Enforce", "Enforce", "Audit", "Off"][self.index(4)]);
        if self.random.flip() {
            spec["namespaceSelector"] = json!({ "matchLabels": { "egress": "locked" } });
        }
        if self.random.flip() {
            spec["podSelector"] = json!({ "matchLabels": { "app": "web" } });
        }
        if self.random.flip() {
            let mut parts = vec!["Pods", "Services", "Nodes", "APIServer"];
            parts.retain(|_| self.random.flip());
            spec["allow"]["cluster"] = json!(parts);
        }
        if self.random.flip() {
            spec["gatewayAccess"] = json!(["Any", "Policy"][self.index(2)]);
        }
        if self.random.flip() {
            spec["onDeny"] = json!(["Drop", "Reject"][self.index(2)]);
        }
        lockdown
    }

    fn any_gateway(&mut self, number: u64) -> Value {
        let app = ["gateway", "other"][self.index(2)];
        let mut gateway = objects::gateway("istio-egress", &format!("vg{number}"), app);
        let ports = [json!({ "number": 8443 }), json!({ "number": 443 })];
        gateway["spec"]["listeners"][0]["port"] = ports[self.index(2)].clone();
        gateway
    }

    fn any_namespace(&mut self, name: &str) -> Value {
        let mut namespace = objects::namespace(name);
        if self.random.flip() {
            namespace["metadata"]["labels"]["egress"] = json!("locked");
        }
        namespace
    }

    fn index(&mut self, of: usize) -> usize {
        usize::try_from(self.random.below(of as u64)).expect("a small number")
    }

    /// A pod of this node begins, changes, completes or goes. No two that run have the same address;
    /// one that has completed keeps its own, and another may have it.
    fn change_own_pod(&mut self, namespace: &str, number: u64, there: bool) {
        let name = format!("own{number}");
        let app = ["web", "other"][self.index(2)];
        let ip = 20 + small(number * 2 + self.random.below(4));
        let mut object = pod(namespace, &name, (NODE, 1), ip, app);
        let known = self.truth.get(&name_of(&object)).cloned();
        let completed = |pod: &Value| pod["status"]["phase"] == "Succeeded";
        if !there || known.as_ref().is_some_and(completed) {
            return self.drop(&object);
        }
        if let Some(known) = &known {
            // Addresses are for life.
            object["status"] = known["status"].clone();
            if self.random.below(4) == 0 {
                object["status"]["phase"] = json!("Succeeded");
            }
        } else {
            let ip = &object["status"]["podIP"];
            let has = |other: &Value| other["status"]["podIP"] == *ip && !completed(other);
            if self.truth.values().any(has) {
                return;
            }
        }
        self.put(object);
    }

    /// Pods of this node that run.
    pub fn bodies(&self, births: &mut Births) -> Vec<Body> {
        let pods = self.truth.values().filter(|object| {
            object["kind"] == "Pod"
                && object["spec"]["nodeName"] == NODE
                && object["status"]["phase"] == "Running"
        });
        pods.map(|pod| {
            let uid = pod["metadata"]["uid"].as_str().expect("a UID").to_owned();
            let number = births.number(&uid);
            let ips = pod["status"]["podIPs"].as_array().expect("addresses");
            let ips: Vec<&str> = ips.iter().filter_map(|ip| ip["ip"].as_str()).collect();
            Body {
                cgroup: u64::from(number) + 1000,
                ifindex: number,
                ips: (
                    ips[0].parse().expect("an address"),
                    ips.get(1)
                        .map_or(Ipv6Addr::UNSPECIFIED, |ip| ip.parse().expect("an address")),
                ),
                uid,
            }
        })
        .collect()
    }
}

fn external_service(number: u64) -> Value {
    json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": "ExternalService",
        "metadata": { "name": format!("es{number}"), "namespace": "istio-egress",
            "labels": { "es": format!("{number}") } },
        "spec": {
            "hosts": [format!("h{number}.example.com")],
            "ports": [{ "number": 443, "name": "https", "protocol": "HTTPS" }],
        },
    })
}

/// Admits one of the pods.
fn access_policy(namespace: &str, number: u64) -> Value {
    let account = json!({ "name": format!("sa-own{number}"), "namespace": namespace });
    json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": "AccessPolicy",
        "metadata": { "name": format!("ap{}", number % 2), "namespace": "istio-egress" },
        "spec": {
            "applyToDestinations": [{ "kind": "EXTERNAL_SERVICE",
                "selector": { "labels": { "es": format!("{}", number % 2) } } }],
            "config": { "authz": {
                "allowedClients": [{ "serviceAccountSelector": account }] } },
        },
    })
}
