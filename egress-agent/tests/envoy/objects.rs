//! Objects of a gateway, as an operator writes them.

use std::collections::BTreeMap;

use egress_agent::api::{AccessPolicy, ExternalService, VirtualGateway};
use egress_agent::gateway::{
    Declared, GatewayObject, GatewayObjects, GatewayPolicy, ObjectName, OutboundPolicy, Problem,
    compile,
};

/// Objects in YAML, as an operator writes them.
#[derive(Clone, Default)]
pub struct Objects {
    pub gateways: Vec<VirtualGateway>,
    pub services: Vec<ExternalService>,
    pub policies: Vec<AccessPolicy>,
    pub outbound: OutboundPolicy,
}

impl Objects {
    pub fn parse(yaml: &str) -> Self {
        let mut objects = Self::default();
        for document in yaml.split("\n---\n") {
            let value: serde_json::Value = serde_yaml_ng::from_str(document).expect("YAML");
            let kind = value["kind"].as_str().expect("a kind").to_owned();
            match kind.as_str() {
                "VirtualGateway" => objects.gateways.push(read(value)),
                "ExternalService" => objects.services.push(read(value)),
                "AccessPolicy" => objects.policies.push(read(value)),
                other => panic!("unexpected kind {other}"),
            }
        }
        objects
    }

    pub fn compile(&self) -> (GatewayPolicy, Vec<Problem>) {
        let accounts = [
            ("productpage", true),
            ("reviews", false),
            ("ratings", false),
        ];
        let labels = BTreeMap::from([("account".to_owned(), "productpage".to_owned())]);
        compile(&GatewayObjects {
            trust_domain: "cluster.local".to_owned(),
            cluster: Some("here".to_owned()),
            outbound: self.outbound,
            gateways: self
                .gateways
                .iter()
                .map(|object| GatewayObject {
                    id: name_of(&object.metadata),
                    spec: &object.spec,
                    target_ports: BTreeMap::new(),
                })
                .collect(),
            external_services: self
                .services
                .iter()
                .map(|object| declared(&object.metadata, &object.spec))
                .collect(),
            access_policies: self
                .policies
                .iter()
                .map(|object| declared(&object.metadata, &object.spec))
                .collect(),
            service_accounts: accounts
                .map(|(name, labelled)| Declared {
                    id: ObjectName::new("bookinfo", name),
                    labels: labelled.then_some(&labels),
                    spec: &(),
                })
                .to_vec(),
        })
    }
}

fn name_of(meta: &kube::core::ObjectMeta) -> ObjectName {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    ObjectName {
        namespace: text(&meta.namespace),
        name: text(&meta.name),
    }
}

fn declared<'a, S>(meta: &'a kube::core::ObjectMeta, spec: &'a S) -> Declared<'a, S> {
    Declared {
        id: name_of(meta),
        labels: meta.labels.as_ref(),
        spec,
    }
}

fn read<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).expect("an object of its kind")
}
