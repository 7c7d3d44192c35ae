//! What is served, made from the index: policy, which pods are gateways, whose address it is. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sha2::{Digest as _, Sha256};

use super::{GatewayPod, PodAccount, Served};
use crate::gateway::envoy::Owners;
use crate::gateway::{
    ObjectName, OutboundPolicy, Problem, Settings, SpiffeId, compile, from_index, render,
};
use crate::index::{Index, Key, Pod, selects};

impl Served {
    /// Everything that the objects say, and what is wrong with them. Gateways' Envoys get their
    /// configuration only with `rendering`. `cluster` is the name of this cluster.
    pub fn from_index(
        index: &Index,
        trust_domain: &str,
        cluster: Option<&str>,
        outbound: OutboundPolicy,
        rendering: Option<&Settings>,
    ) -> (Self, Vec<Problem>) {
        let objects = from_index::objects(index, trust_domain, cluster, outbound);
        let (policy, problems) = compile(&objects);
        let clients = clients(index);
        let mut served = Self {
            revision: String::new(),
            resources: rendering
                .map(|settings| render(&policy, settings, &owners(&clients, trust_domain)))
                .unwrap_or_default(),
            policy,
            gateway_pods: gateway_pods(index, trust_domain),
            clients,
        };
        served.revision = revision(&served);
        (served, problems)
    }
}

/// Names a state by its contents.
fn revision(served: &Served) -> String {
    let mut hash = Sha256::new();
    hash.update(format!(
        "{:?} {:?} {:?}",
        served.policy, served.gateway_pods, served.clients
    ));
    let bytes = hash.finalize();
    let (head, _) = bytes.split_first_chunk().expect("SHA-256 is longer");
    format!("{:016x}", u64::from_be_bytes(*head))
}

/// The pods that a `VirtualGateway` selects, by each of their addresses. Pods that are not Ready
/// count too: an Envoy asks for its configuration before it can be. Finished pods, pods of the host
/// network and addresses that two pods claim don't: they prove nothing.
pub fn gateway_pods(index: &Index, trust_domain: &str) -> BTreeMap<IpAddr, GatewayPod> {
    let mut pods: BTreeMap<IpAddr, GatewayPod> = BTreeMap::new();
    for (gateway, declared) in index.virtual_gateways() {
        let id = ObjectName::new(&gateway.namespace, &gateway.name);
        for workload in &declared.spec.workloads {
            let selector = &workload.selector;
            let namespace = selector.namespace.as_ref().unwrap_or(&gateway.namespace);
            let selected = index.pods().iter().filter(|(key, pod)| {
                key.namespace == *namespace && selects(&selector.labels, &pod.labels)
            });
            for (key, pod) in selected {
                let identity = SpiffeId::new(trust_domain, &key.namespace, account(pod));
                let Ok(identity) = identity else { continue };
                for ip in own_addresses(index, key, pod) {
                    pods.entry(ip)
                        .or_insert_with(|| GatewayPod {
                            identity: identity.clone(),
                            gateways: BTreeSet::new(),
                        })
                        .gateways
                        .insert(id.clone());
                }
            }
        }
    }
    pods
}

/// Whose address it is: pods of the pod network that have not finished.
pub fn clients(index: &Index) -> BTreeMap<IpAddr, PodAccount> {
    let pods = index.pods().iter().flat_map(|(key, pod)| {
        own_addresses(index, key, pod).map(move |ip| {
            let owner = PodAccount {
                namespace: key.namespace.clone(),
                pod: key.name.clone(),
                service_account: account(pod).to_owned(),
            };
            (ip, owner)
        })
    });
    pods.collect()
}

/// The identities that are used from these addresses.
pub fn owners(clients: &BTreeMap<IpAddr, PodAccount>, trust_domain: &str) -> Owners {
    let owners = clients.iter().filter_map(|(&ip, pod)| {
        let id = SpiffeId::new(trust_domain, &pod.namespace, &pod.service_account);
        Some((ip, id.ok()?))
    });
    owners.collect()
}

/// Addresses that are this pod's alone.
fn own_addresses<'a>(
    index: &'a Index,
    key: &'a Key,
    pod: &'a Pod,
) -> impl Iterator<Item = IpAddr> + 'a {
    let owned = move |ip: &&IpAddr| index.pod_by_ip(**ip).is_some_and(|(owner, _)| owner == key);
    pod.ips.iter().filter(owned).copied()
}

/// Kubernetes fills it in; what comes from a file may not say.
fn account(pod: &Pod) -> &str {
    if pod.service_account.is_empty() {
        "default"
    } else {
        &pod.service_account
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::index::Object;

    fn take<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn pod(name: &str, account: &str, ip: &str, more: &serde_json::Value) -> Object {
        let mut value = json!({
            "metadata": { "name": name, "namespace": "istio-egress", "uid": name,
                          "labels": { "istio": "egress" } },
            "spec": { "nodeName": "n", "containers": [], "serviceAccountName": account },
            "status": { "podIPs": [{ "ip": ip }], "phase": "Running" },
        });
        if let Some(phase) = more.get("phase") {
            value["status"]["phase"] = phase.clone();
        }
        if let Some(host) = more.get("hostNetwork") {
            value["spec"]["hostNetwork"] = host.clone();
        }
        Object::Pod(take(value))
    }

    fn index(pods: Vec<Object>) -> Index {
        let mut index = Index::default();
        index.apply(Object::VirtualGateway(take(json!({
            "apiVersion": "sallyport.dev/v1alpha1", "kind": "VirtualGateway",
            "metadata": { "name": "vg", "namespace": "istio-egress" },
            "spec": { "workloads": [{ "selector": { "labels": { "istio": "egress" } } }] },
        }))));
        for pod in pods {
            index.apply(pod);
        }
        index
    }

    #[test]
    fn gateways_by_address_and_account() {
        let index = index(vec![
            pod("a", "egress", "10.0.0.1", &json!({})),
            pod("b", "", "10.0.0.2", &json!({})),
            pod(
                "done",
                "egress",
                "10.0.0.3",
                &json!({ "phase": "Succeeded" }),
            ),
            pod(
                "host",
                "egress",
                "10.0.0.4",
                &json!({ "hostNetwork": true }),
            ),
        ]);
        let pods = gateway_pods(&index, "cluster.local");
        let found: Vec<(String, String)> = pods
            .iter()
            .map(|(ip, pod)| (ip.to_string(), pod.identity.to_string()))
            .collect();
        let id = |account: &str| format!("spiffe://cluster.local/ns/istio-egress/sa/{account}");
        assert_eq!(
            found,
            [
                ("10.0.0.1".to_owned(), id("egress")),
                ("10.0.0.2".to_owned(), id("default"))
            ]
        );
        let owners = clients(&index);
        assert_eq!(owners.len(), 2);
        assert_eq!(
            owners[&"10.0.0.2".parse::<IpAddr>().unwrap()].service_account,
            "default"
        );
    }

    #[test]
    fn an_address_that_two_claim_is_nobodys() {
        let index = index(vec![
            pod("a", "egress", "10.0.0.1", &json!({})),
            pod("b", "other", "10.0.0.1", &json!({})),
        ]);
        assert!(gateway_pods(&index, "cluster.local").is_empty());
        assert!(clients(&index).is_empty());
    }
}
