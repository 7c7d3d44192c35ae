//! Compiling and deciding, without a gateway.

mod model;
mod passthrough;
mod problems;
mod semantics;
mod words;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use kube::core::ObjectMeta;
use serde_json::{Value, json};

use crate::api::{AccessPolicy, ExternalService, VirtualGateway};

use super::access::{Decision, Request, decide_access};
use super::{
    Declared, GatewayObject, GatewayObjects, GatewayPolicy, ObjectName, OutboundPolicy, Problem,
    SpiffeId, compile,
};

/// Objects by hand. Specs are what an operator writes.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) gateways: Vec<VirtualGateway>,
    pub(super) services: Vec<ExternalService>,
    pub(super) policies: Vec<AccessPolicy>,
    /// (namespace, name, labels)
    pub(super) accounts: Vec<(String, String, BTreeMap<String, String>)>,
    pub(super) outbound: OutboundPolicy,
}

pub(super) const PORT: u16 = 15443;

pub(super) fn mk_meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    }
}

fn spec<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub(super) fn mk_service(name: &str, value: Value) -> ExternalService {
    ExternalService {
        metadata: mk_meta("global", name),
        spec: spec(value),
        status: None,
    }
}

pub(super) fn mk_policy(name: &str, value: Value) -> AccessPolicy {
    AccessPolicy {
        metadata: mk_meta("istio-egress", name),
        spec: spec(value),
        status: None,
    }
}

/// An HTTPS port with TLS origination, as the guide has it.
pub(super) fn mk_https() -> Value {
    json!({
        "number": 443, "name": "https", "protocol": "HTTPS",
        "clientsideTls": {}, "egressGatewayRoutes": { "portMatch": 80 },
    })
}

/// A destination by name.
pub(super) fn mk_to(name: &str) -> Value {
    json!({ "kind": "EXTERNAL_SERVICE", "selector": { "name": name, "namespace": "global" } })
}

/// A policy for one service, with one entry.
// By value, so that tests can write the entry in place.
#[allow(clippy::needless_pass_by_value)]
pub(super) fn mk_authz(name: &str, service: &str, authz: Value) -> AccessPolicy {
    let value = json!({ "applyToDestinations": [mk_to(service)], "config": { "authz": authz } });
    mk_policy(name, value)
}

/// An `allowedClients` by name.
pub(super) fn mk_client(name: &str) -> Value {
    json!([{ "serviceAccountSelector": { "name": name, "namespace": "bookinfo" } }])
}

impl World {
    /// One gateway that exposes these hosts, and three service accounts.
    pub(super) fn exposing(hosts: &[&str]) -> Self {
        let mut world = Self::default();
        for name in ["productpage", "reviews", "ratings"] {
            let labels = BTreeMap::from([("account".to_owned(), name.to_owned())]);
            world
                .accounts
                .push(("bookinfo".to_owned(), name.to_owned(), labels));
        }
        world.add_gateway("egress-vg", hosts)
    }

    pub(super) fn add_gateway(mut self, name: &str, hosts: &[&str]) -> Self {
        let hosts: Vec<Value> = hosts.iter().map(|host| json!({ "host": host })).collect();
        let value = json!({ "listeners": [{
            "port": { "number": PORT },
            "tls": { "mode": "ISTIO_MUTUAL" },
            "exposedExternalServices": hosts,
        }] });
        let metadata = mk_meta("istio-egress", name);
        self.gateways.push(VirtualGateway {
            metadata,
            spec: spec(value),
            status: None,
        });
        self
    }

    /// An external service with one HTTPS port.
    pub(super) fn service(self, name: &str, hosts: &[&str]) -> Self {
        self.service_spec(name, json!({ "hosts": hosts, "ports": [mk_https()] }))
    }

    pub(super) fn service_spec(mut self, name: &str, value: Value) -> Self {
        self.services.push(mk_service(name, value));
        self
    }

    pub(super) fn policy(mut self, policy: AccessPolicy) -> Self {
        self.policies.push(policy);
        self
    }

    pub(super) fn compile(&self) -> (GatewayPolicy, Vec<Problem>) {
        compile(&self.objects())
    }

    pub(super) fn objects(&self) -> GatewayObjects<'_> {
        GatewayObjects {
            trust_domain: "cluster.local".to_owned(),
            cluster: Some("here".to_owned()),
            outbound: self.outbound,
            gateways: self
                .gateways
                .iter()
                .map(|object| GatewayObject {
                    id: mk_name(&object.metadata),
                    spec: &object.spec,
                    target_ports: BTreeMap::new(),
                })
                .collect(),
            external_services: self
                .services
                .iter()
                .map(|object| mk_declared(&object.metadata, &object.spec))
                .collect(),
            access_policies: self
                .policies
                .iter()
                .map(|object| mk_declared(&object.metadata, &object.spec))
                .collect(),
            service_accounts: self
                .accounts
                .iter()
                .map(|(namespace, name, labels)| Declared {
                    id: ObjectName::new(namespace, name),
                    labels: Some(labels),
                    spec: &(),
                })
                .collect(),
        }
    }

    /// What becomes of `GET <authority>/` by a service account of bookinfo.
    pub(super) fn get(&self, account: &str, authority: &str) -> Decision {
        self.ask(account, "GET", authority, "/", &[])
    }

    pub(super) fn ask(
        &self,
        account: &str,
        method: &str,
        authority: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Decision {
        ask(&self.compile().0, account, method, authority, path, headers)
    }
}

/// What a compiled policy says to a request by a service account of bookinfo.
pub(super) fn ask(
    policy: &GatewayPolicy,
    account: &str,
    method: &str,
    authority: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Decision {
    let client = mk_id(account);
    let gateway = ObjectName::new("istio-egress", "egress-vg");
    let client_ip = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));
    let request = Request {
        gateway: &gateway,
        listener: PORT,
        client: &client,
        client_ip,
        authority,
        method,
        path,
        normalized: false,
        headers,
    };
    decide_access(policy, &request)
}

pub(super) fn mk_id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "bookinfo", account).unwrap()
}

fn mk_name(meta: &ObjectMeta) -> ObjectName {
    ObjectName::new(
        meta.namespace.as_ref().unwrap(),
        meta.name.as_ref().unwrap(),
    )
}

fn mk_declared<'a, S>(meta: &'a ObjectMeta, spec: &'a S) -> Declared<'a, S> {
    Declared {
        id: mk_name(meta),
        labels: meta.labels.as_ref(),
        spec,
    }
}
