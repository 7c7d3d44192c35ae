//! Asking the policy server from an Istio gateway: the provider, and the policy that uses it.

use super::object::{
    self, API_VERSION, Action, AuthorizationPolicy, KIND, Metadata, Rule, Selector, Spec,
};
use super::{Document, GatewayObjects, managed_by, object_name, workloads};

/// The policy server as Istio's mesh configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Name in `extensionProviders`.
    pub name: String,
    /// Host name of its Service.
    pub service: String,
    pub port: u16,
}

impl Provider {
    /// What belongs into the mesh configuration, as YAML. Without a timeout Istio's own default
    /// would let a request wait for ten minutes.
    pub fn mesh_config(&self) -> String {
        let Self {
            name,
            service,
            port,
        } = self;
        format!(
            "extensionProviders:\n\
             - name: {name}\n\
             \x20 envoyExtAuthzGrpc:\n\
             \x20   service: {service}\n\
             \x20   port: {port}\n\
             \x20   timeout: 0.5s\n\
             \x20   failOpen: false\n\
             \x20   statusOnError: \"403\"\n"
        )
    }
}

/// A policy for the pods of each gateway: every request is the provider's to decide.
pub fn custom(objects: &GatewayObjects<'_>, provider: &Provider) -> Vec<Document> {
    let mut documents = Vec::new();
    for gateway in &objects.gateways {
        for workload in workloads(objects, gateway) {
            let policy = AuthorizationPolicy {
                api_version: API_VERSION.to_owned(),
                kind: KIND.to_owned(),
                metadata: Metadata {
                    name: object_name(&gateway.id, "custom", &workload.labels),
                    namespace: workload.namespace,
                    labels: managed_by(),
                    ..Metadata::default()
                },
                spec: Spec {
                    selector: Selector {
                        match_labels: workload.labels,
                    },
                    action: Action::Custom,
                    provider: Some(object::Provider {
                        name: provider.name.clone(),
                    }),
                    rules: vec![Rule::default()],
                },
            };
            let comments = vec![format!(
                "Every request is for `{}` to decide.",
                provider.name
            )];
            documents.push(Document { comments, policy });
        }
    }
    documents
}
