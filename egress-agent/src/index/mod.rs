//! Objects by kind, namespace and name: the one place that both sources fill and everything
//! else reads. It holds only what somebody asks for. Pure.
//!
//! A bad object is reported ([`Index::problems`]) and its last good version stands. Without one, a
//! lockdown stands without its exceptions, and an access policy as one that admits nobody.
#![forbid(unsafe_code)]

mod announced;
mod check;
mod heritage;
mod model;
mod node_access;
mod object;
mod problem;
mod thin;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use announced::Announced;
pub use heritage::Heritage;
pub use model::{
    Declared, Endpoint, EndpointPort, EndpointSlice, Key, Labels, Node, Pod, PodRef, Service,
    ServicePort, selects,
};
pub use node_access::{NodeAccess, node_access};
pub use object::{Object, ObjectId};
pub use problem::{Effect, Finding, Problem};
pub use thin::NODE_ADDRESSES;

use crate::api::access_policy::{AccessConfig, Authz};
use crate::api::{AccessPolicySpec, EgressLockdownSpec, ExternalServiceSpec, VirtualGatewaySpec};

/// The state of the cluster, as far as anybody here asks for it.
#[derive(Clone, Debug, Default)]
pub struct Index {
    namespaces: BTreeMap<String, Labels>,
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<Key, Pod>,
    service_accounts: BTreeMap<Key, Labels>,
    services: BTreeMap<Key, Service>,
    slices: BTreeMap<Key, EndpointSlice>,
    /// Slices by Service.
    slices_of: BTreeMap<Key, BTreeSet<Key>>,
    /// Pods by address, without those of the host network and finished ones.
    pods_by_ip: BTreeMap<IpAddr, BTreeSet<Key>>,
    lockdowns: BTreeMap<String, EgressLockdownSpec>,
    virtual_gateways: BTreeMap<Key, Declared<VirtualGatewaySpec>>,
    external_services: BTreeMap<Key, Declared<ExternalServiceSpec>>,
    access_policies: BTreeMap<Key, Declared<AccessPolicySpec>>,
    problems: BTreeMap<ObjectId, Vec<Problem>>,
    /// UIDs of the policy objects of which a version was taken as it is; empty where there is none.
    uids: BTreeMap<ObjectId, String>,
    heritage: Heritage,
    /// Pods that the container runtime tells of, by UID.
    announced: BTreeMap<String, Announced>,
}

/// Puts `value` at `key`; whether that changed anything.
fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    if map.get(&key) == Some(&value) {
        return false;
    }
    map.insert(key, value);
    true
}

impl Index {
    /// Takes an object, or reports it and keeps its last good version. Whether anything changed,
    /// reports included.
    pub fn apply(&mut self, object: Object) -> bool {
        let id = object.id();
        let key = Key {
            namespace: id.namespace.clone(),
            name: id.name.clone(),
        };
        let uid = object.metadata().uid.clone();
        let policy = object.is_policy();
        let mut findings = Vec::new();
        let changed = match object {
            Object::Namespace(o) => put(
                &mut self.namespaces,
                id.name.clone(),
                o.metadata.labels.unwrap_or_default(),
            ),
            Object::Node(o) => {
                let node = thin::node(&o, &mut findings);
                put(&mut self.nodes, id.name.clone(), node)
            }
            Object::Pod(o) => match thin::pod(&o) {
                Ok(pod) => self.put_pod(key, pod),
                Err(finding) => {
                    findings.push(finding);
                    false
                }
            },
            Object::ServiceAccount(o) => put(
                &mut self.service_accounts,
                key,
                o.metadata.labels.unwrap_or_default(),
            ),
            Object::Service(o) => {
                let service = thin::service(&o, &mut findings);
                put(&mut self.services, key, service)
            }
            Object::EndpointSlice(o) => {
                let slice = thin::slice(&o, &mut findings);
                self.put_slice(key, slice)
            }
            Object::EgressLockdown(o) => {
                findings = check::lockdown(&o.spec);
                let spec = if accept(&findings) {
                    Some(o.spec)
                } else if self.was_taken(&id) {
                    None
                } else {
                    check::without_exceptions(o.spec)
                };
                spec.is_some_and(|spec| put(&mut self.lockdowns, id.name.clone(), spec))
            }
            Object::VirtualGateway(o) => {
                findings = check::virtual_gateway(&o.spec);
                accept(&findings)
                    && put(
                        &mut self.virtual_gateways,
                        key,
                        declared(o.metadata.labels, o.spec),
                    )
            }
            Object::ExternalService(o) => {
                findings = check::external_service(&o.spec);
                accept(&findings)
                    && put(
                        &mut self.external_services,
                        key,
                        declared(o.metadata.labels, o.spec),
                    )
            }
            Object::AccessPolicy(o) => {
                findings = check::access_policy(&o.spec);
                self.put_access_policy(key, declared(o.metadata.labels, o.spec), accept(&findings))
            }
        };
        let good = accept(&findings);
        let changed = self.report(id.clone(), findings) || changed;
        (policy && self.weigh(&id, uid, good)) || changed
    }

    /// Forgets an object, its last good version included. Whether it was known.
    pub fn delete(&mut self, id: &ObjectId) -> bool {
        let key = Key {
            namespace: id.namespace.clone(),
            name: id.name.clone(),
        };
        let known = match id.kind {
            "Namespace" => self.namespaces.remove(&id.name).is_some(),
            "Node" => self.nodes.remove(&id.name).is_some(),
            "Pod" => self.take_pod(&key),
            "ServiceAccount" => self.service_accounts.remove(&key).is_some(),
            "Service" => self.services.remove(&key).is_some(),
            "EndpointSlice" => self.take_slice(&key),
            "EgressLockdown" => self.lockdowns.remove(&id.name).is_some(),
            "VirtualGateway" => self.virtual_gateways.remove(&key).is_some(),
            "ExternalService" => self.external_services.remove(&key).is_some(),
            "AccessPolicy" => self.access_policies.remove(&key).is_some(),
            _ => false,
        };
        self.uids.remove(id);
        self.heritage.forget(id);
        self.problems.remove(id).is_some() || known
    }

    /// Takes `objects` for all there is: applies them and forgets the others. Whether anything
    /// changed.
    pub fn reset(&mut self, objects: Vec<Object>) -> bool {
        let present: BTreeSet<ObjectId> = objects.iter().map(Object::id).collect();
        let mut changed = false;
        for id in self.ids() {
            if !present.contains(&id) {
                changed |= self.delete(&id);
            }
        }
        for object in objects {
            changed |= self.apply(object);
        }
        changed
    }

    /// What is wrong, sorted by object.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
    }

    /// Labels of the namespace; none if it is not known.
    pub fn namespace(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    pub fn nodes(&self) -> &BTreeMap<String, Node> {
        &self.nodes
    }

    pub fn pods(&self) -> &BTreeMap<Key, Pod> {
        &self.pods
    }

    /// The pod that has this address: none for addresses of the host network, and none when two
    /// pods claim it.
    pub fn pod_by_ip(&self, ip: IpAddr) -> Option<(&Key, &Pod)> {
        let keys = self.pods_by_ip.get(&ip)?;
        let key = keys.first().filter(|_| keys.len() == 1)?;
        self.pods.get_key_value(key)
    }

    /// Whether some pod that is not finished has this address of its own.
    pub fn is_pod_ip(&self, ip: IpAddr) -> bool {
        self.pods_by_ip.contains_key(&ip)
    }

    /// Service accounts and their labels.
    pub fn service_accounts(&self) -> &BTreeMap<Key, Labels> {
        &self.service_accounts
    }

    pub fn services(&self) -> &BTreeMap<Key, Service> {
        &self.services
    }

    /// The slices of a Service: by their label, in the Service's namespace.
    pub fn slices_of(&self, service: &Key) -> impl Iterator<Item = &EndpointSlice> {
        self.named_slices_of(service).map(|(_, slice)| slice)
    }

    /// The same, each with its own name.
    pub fn named_slices_of(&self, service: &Key) -> impl Iterator<Item = (&Key, &EndpointSlice)> {
        self.slices_of
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|key| self.slices.get_key_value(key))
    }

    pub fn lockdowns(&self) -> &BTreeMap<String, EgressLockdownSpec> {
        &self.lockdowns
    }

    pub fn virtual_gateways(&self) -> &BTreeMap<Key, Declared<VirtualGatewaySpec>> {
        &self.virtual_gateways
    }

    pub fn external_services(&self) -> &BTreeMap<Key, Declared<ExternalServiceSpec>> {
        &self.external_services
    }

    pub fn access_policies(&self) -> &BTreeMap<Key, Declared<AccessPolicySpec>> {
        &self.access_policies
    }

    fn report(&mut self, id: ObjectId, findings: Vec<Finding>) -> bool {
        let problems: Vec<Problem> = findings.into_iter().map(|f| f.of(&id)).collect();
        if problems.is_empty() {
            return self.problems.remove(&id).is_some();
        }
        put(&mut self.problems, id, problems)
    }

    /// A refused policy must not leave its destination without any policy, which would open it:
    /// without a last good version it stands as one that admits nobody.
    fn put_access_policy(
        &mut self,
        key: Key,
        mut policy: Declared<AccessPolicySpec>,
        good: bool,
    ) -> bool {
        if !good {
            if self.access_policies.contains_key(&key) {
                return false;
            }
            policy.spec.config = AccessConfig {
                authz: Some(Authz::default()),
                ..AccessConfig::default()
            };
        }
        put(&mut self.access_policies, key, policy)
    }

    fn put_pod(&mut self, key: Key, pod: Pod) -> bool {
        if self.pods.get(&key) == Some(&pod) {
            return false;
        }
        self.take_pod(&key);
        if !pod.host_network && !pod.finished {
            for ip in &pod.ips {
                self.pods_by_ip.entry(*ip).or_default().insert(key.clone());
            }
        }
        self.pods.insert(key, pod);
        true
    }

    fn take_pod(&mut self, key: &Key) -> bool {
        let Some(pod) = self.pods.remove(key) else {
            return false;
        };
        for ip in &pod.ips {
            if let Some(keys) = self.pods_by_ip.get_mut(ip) {
                keys.remove(key);
                if keys.is_empty() {
                    self.pods_by_ip.remove(ip);
                }
            }
        }
        true
    }

    fn put_slice(&mut self, key: Key, slice: EndpointSlice) -> bool {
        if self.slices.get(&key) == Some(&slice) {
            return false;
        }
        self.take_slice(&key);
        let service = Key::new(&key.namespace, &slice.service);
        self.slices_of
            .entry(service)
            .or_default()
            .insert(key.clone());
        self.slices.insert(key, slice);
        true
    }

    fn take_slice(&mut self, key: &Key) -> bool {
        let Some(slice) = self.slices.remove(key) else {
            return false;
        };
        let service = Key::new(&key.namespace, &slice.service);
        if let Some(keys) = self.slices_of.get_mut(&service) {
            keys.remove(key);
            if keys.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        true
    }

    /// Every object that is known, refused ones included.
    fn ids(&self) -> Vec<ObjectId> {
        fn cluster<V>(kind: &'static str, map: &BTreeMap<String, V>) -> Vec<ObjectId> {
            let id = |name: &String| ObjectId {
                kind,
                namespace: String::new(),
                name: name.clone(),
            };
            map.keys().map(id).collect()
        }
        fn namespaced<V>(kind: &'static str, map: &BTreeMap<Key, V>) -> Vec<ObjectId> {
            let id = |key: &Key| ObjectId {
                kind,
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            };
            map.keys().map(id).collect()
        }
        let mut ids = cluster("Namespace", &self.namespaces);
        ids.extend(cluster("Node", &self.nodes));
        ids.extend(cluster("EgressLockdown", &self.lockdowns));
        ids.extend(namespaced("Pod", &self.pods));
        ids.extend(namespaced("ServiceAccount", &self.service_accounts));
        ids.extend(namespaced("Service", &self.services));
        ids.extend(namespaced("EndpointSlice", &self.slices));
        ids.extend(namespaced("VirtualGateway", &self.virtual_gateways));
        ids.extend(namespaced("ExternalService", &self.external_services));
        ids.extend(namespaced("AccessPolicy", &self.access_policies));
        ids.extend(self.problems.keys().cloned());
        ids
    }
}

fn accept(findings: &[Finding]) -> bool {
    findings
        .iter()
        .all(|finding| finding.effect != Effect::Refused)
}

fn declared<T>(labels: Option<Labels>, spec: T) -> Declared<T> {
    Declared {
        labels: labels.unwrap_or_default(),
        spec,
    }
}
