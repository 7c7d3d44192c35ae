//! The index as gateway policy reads it.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::VirtualGatewaySpec;
use crate::api::lockdown::Protocol;
use crate::index::{self, Index, Key, selects};

use super::{Declared, GatewayObject, GatewayObjects, ObjectName, OutboundPolicy};

/// Borrows what gateway policy is made from. `cluster` is the name of this cluster in selectors
/// that give one; without it every name is this cluster.
pub fn objects<'a>(
    index: &'a Index,
    trust_domain: &str,
    cluster: Option<&str>,
    outbound: OutboundPolicy,
) -> GatewayObjects<'a> {
    GatewayObjects {
        trust_domain: trust_domain.to_owned(),
        cluster: cluster.map(str::to_owned),
        outbound,
        gateways: index
            .virtual_gateways()
            .iter()
            .map(|(key, declared)| GatewayObject {
                id: name(key),
                spec: &declared.spec,
                target_ports: target_ports(index, key, &declared.spec),
            })
            .collect(),
        external_services: index.external_services().iter().map(declared).collect(),
        access_policies: index.access_policies().iter().map(declared).collect(),
        service_accounts: index
            .service_accounts()
            .iter()
            .map(|(key, labels)| Declared {
                id: name(key),
                labels: Some(labels),
                spec: &(),
            })
            .collect(),
    }
}

fn name(key: &Key) -> ObjectName {
    ObjectName::new(&key.namespace, &key.name)
}

fn declared<'a, S>((key, declared): (&'a Key, &'a index::Declared<S>)) -> Declared<'a, S> {
    Declared {
        id: name(key),
        labels: Some(&declared.labels),
        spec: &declared.spec,
    }
}

/// The ports that the gateway's pods listen on, by listener. Pods that are not Ready count too:
/// Envoy has to listen before they can be.
fn target_ports(
    index: &Index,
    gateway: &Key,
    spec: &VirtualGatewaySpec,
) -> BTreeMap<u16, BTreeSet<u16>> {
    let mut targets: BTreeMap<u16, BTreeSet<u16>> = BTreeMap::new();
    for workload in &spec.workloads {
        let selector = &workload.selector;
        let namespace = selector.namespace.as_ref().unwrap_or(&gateway.namespace);
        let pods = index.pods().iter().filter(|(key, pod)| {
            key.namespace == *namespace && selects(&selector.labels, &pod.labels)
        });
        for (_, pod) in pods {
            let services = index.services().iter().filter(|(key, service)| {
                key.namespace == *namespace && selects(&service.selector, &pod.labels)
            });
            for (key, service) in services {
                for listener in &spec.listeners {
                    let number = listener.port.number;
                    let tcp = service
                        .ports
                        .iter()
                        .filter(|port| port.protocol == Protocol::Tcp);
                    for port in tcp.filter(|port| port.port == number) {
                        let ports = index.slices_of(key).flat_map(|slice| &slice.ports);
                        let same = ports
                            .filter(|one| one.name == port.name && one.protocol == port.protocol);
                        let numbers = same.filter_map(|one| one.port).collect::<Vec<_>>();
                        if !numbers.is_empty() {
                            targets.entry(number).or_default().extend(numbers);
                        }
                    }
                }
            }
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::gateway::{SpiffeId, compile};
    use crate::index::Object;

    fn take<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn mk_index() -> Index {
        let mut index = Index::default();
        let mut add = |object: Object| assert!(index.apply(object));
        add(Object::VirtualGateway(take(json!({
            "apiVersion": "sallyport.dev/v1alpha1", "kind": "VirtualGateway",
            "metadata": { "name": "egress-vg", "namespace": "istio-egress" },
            "spec": {
                "workloads": [{ "selector": { "labels": { "istio": "egress" } } }],
                "listeners": [{
                    "port": { "number": 443 }, "tls": { "mode": "ISTIO_MUTUAL" },
                    "exposedExternalServices": [{ "host": "*" }],
                }],
            },
        }))));
        add(Object::ExternalService(take(json!({
            "apiVersion": "sallyport.dev/v1alpha1", "kind": "ExternalService",
            "metadata": { "name": "httpbin", "namespace": "global", "labels": { "a": "b" } },
            "spec": { "hosts": ["httpbin.org"], "ports": [{
                "number": 443, "protocol": "HTTPS", "clientsideTls": {},
                "egressGatewayRoutes": {},
            }] },
        }))));
        add(Object::AccessPolicy(take(json!({
            "apiVersion": "sallyport.dev/v1alpha1", "kind": "AccessPolicy",
            "metadata": { "name": "web", "namespace": "istio-egress" },
            "spec": {
                "applyToDestinations":
                    [{ "kind": "EXTERNAL_SERVICE", "selector": { "labels": { "a": "b" } } }],
                "config": { "authz": { "allowedClients":
                    [{ "serviceAccountSelector": { "labels": { "account": "productpage" } } }] } },
            },
        }))));
        for account in ["productpage", "reviews"] {
            add(Object::ServiceAccount(take(json!({
                "metadata":
                    { "name": account, "namespace": "bookinfo", "labels": { "account": account } },
            }))));
        }
        index
    }

    fn listens_on(index: &Index) -> Vec<u16> {
        let (policy, problems) = compile(&objects(
            index,
            "cluster.local",
            None,
            OutboundPolicy::RegistryOnly,
        ));
        assert_eq!(problems, []);
        assert!(policy.admits("bookinfo", "productpage"));
        assert!(!policy.admits("bookinfo", "reviews"));
        let gateway = ObjectName::new("istio-egress", "egress-vg");
        let client = SpiffeId::new("cluster.local", "bookinfo", "productpage").unwrap();
        assert!(policy.may_use(&gateway, &client));
        policy.gateways[&gateway]
            .listeners
            .keys()
            .copied()
            .collect()
    }

    #[test]
    fn the_index_as_policy() {
        let mut index = mk_index();
        assert_eq!(listens_on(&index), [443]);
        index.apply(Object::Pod(take(json!({
            "metadata": { "name": "gw", "namespace": "istio-egress", "uid": "1",
                          "labels": { "istio": "egress" } },
            "spec": { "nodeName": "n", "containers": [] },
            "status": { "podIPs": [{ "ip": "10.0.0.9" }] },
        }))));
        index.apply(Object::Service(take(json!({
            "metadata": { "name": "gw", "namespace": "istio-egress" },
            "spec": { "selector": { "istio": "egress" }, "clusterIP": "10.96.0.1",
                      "ports": [{ "name": "tls", "port": 443, "targetPort": 8443 }] },
        }))));
        assert_eq!(listens_on(&index), [443]);
        index.apply(Object::EndpointSlice(take(json!({
            "metadata": { "name": "gw-1", "namespace": "istio-egress",
                          "labels": { "kubernetes.io/service-name": "gw" } },
            "addressType": "IPv4",
            "ports": [{ "name": "tls", "port": 8443, "protocol": "TCP" }],
            "endpoints": [{ "addresses": ["10.0.0.9"],
                            "targetRef": { "kind": "Pod", "name": "gw", "uid": "1" } }],
        }))));
        assert_eq!(listens_on(&index), [8443]);
    }
}
