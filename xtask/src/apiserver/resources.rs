//! Which resources the API server knows: those that are built in, and those that are defined.

use serde_json::{Value, json};

/// A resource in one version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub plural: String,
    pub kind: String,
    pub namespaced: bool,
}

impl Resource {
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Objects of one collection, whatever the version they are read in.
    pub fn collection(&self) -> String {
        format!("{}/{}", self.group, self.plural)
    }

    /// As `/apis/…/…` lists it.
    pub fn describe(&self) -> Value {
        json!({
            "name": self.plural,
            "singularName": self.kind.to_lowercase(),
            "namespaced": self.namespaced,
            "kind": self.kind,
            "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        })
    }
}

/// Collection of the definitions.
pub const DEFINITIONS: &str = "apiextensions.k8s.io/customresourcedefinitions";

const BUILT_IN: &[(&str, &str, &str, &str, bool)] = &[
    ("", "v1", "configmaps", "ConfigMap", true),
    ("", "v1", "events", "Event", true),
    ("", "v1", "namespaces", "Namespace", false),
    ("", "v1", "nodes", "Node", false),
    ("", "v1", "pods", "Pod", true),
    ("", "v1", "serviceaccounts", "ServiceAccount", true),
    ("", "v1", "services", "Service", true),
    ("coordination.k8s.io", "v1", "leases", "Lease", true),
    (
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        "EndpointSlice",
        true,
    ),
    ("events.k8s.io", "v1", "events", "Event", true),
    (
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        false,
    ),
];

pub fn built_in() -> impl Iterator<Item = Resource> {
    let make =
        |(group, version, plural, kind, namespaced): &(&str, &str, &str, &str, bool)| Resource {
            group: (*group).to_owned(),
            version: (*version).to_owned(),
            plural: (*plural).to_owned(),
            kind: (*kind).to_owned(),
            namespaced: *namespaced,
        };
    BUILT_IN.iter().map(make)
}

/// What a `CustomResourceDefinition` defines: one resource for each served version.
pub fn defined(definition: &Value) -> Vec<Resource> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let versions = spec["versions"].as_array().into_iter().flatten();
    versions
        .filter(|version| version["served"] == true)
        .map(|version| Resource {
            group: text(&spec["group"]),
            version: text(&version["name"]),
            plural: text(&spec["names"]["plural"]),
            kind: text(&spec["names"]["kind"]),
            namespaced: spec["scope"] == "Namespaced",
        })
        .collect()
}

/// A definition without a schema.
pub fn definition(group: &str, version: &str, plural: &str, kind: &str, namespaced: bool) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group,
            "names": { "plural": plural, "kind": kind },
            "scope": if namespaced { "Namespaced" } else { "Cluster" },
            "versions": [{ "name": version, "served": true, "storage": true }],
        },
    })
}

/// Definitions of Sallyport's own kinds.
pub fn own_definitions() -> Vec<Value> {
    let define = |plural, kind, namespaced| {
        definition("sallyport.dev", "v1alpha1", plural, kind, namespaced)
    };
    vec![
        define("egresslockdowns", "EgressLockdown", false),
        define("virtualgateways", "VirtualGateway", true),
        define("externalservices", "ExternalService", true),
        define("accesspolicies", "AccessPolicy", true),
        define("egressnodes", "EgressNode", false),
    ]
}

/// Definitions of the kinds that Gloo Mesh has too.
pub fn gloo_definitions() -> Vec<Value> {
    let networking = "networking.gloo.solo.io";
    vec![
        definition(networking, "v2", "virtualgateways", "VirtualGateway", true),
        definition(
            networking,
            "v2",
            "externalservices",
            "ExternalService",
            true,
        ),
        definition(
            "security.policy.gloo.solo.io",
            "v2",
            "accesspolicies",
            "AccessPolicy",
            true,
        ),
    ]
}
