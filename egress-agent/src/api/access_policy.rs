//! `AccessPolicy`: who may reach an external service.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ObjectSelector, PortRef, Unsupported};

/// Admits service accounts to destinations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "sallyport.dev",
    version = "v1alpha1",
    kind = "AccessPolicy",
    namespaced
)]
#[serde(rename_all = "camelCase")]
pub struct AccessPolicySpec {
    #[serde(default)]
    pub apply_to_destinations: Vec<Destination>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apply_to_workloads: Vec<WorkloadTarget>,
    #[serde(default)]
    pub config: AccessConfig,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// `EXTERNAL_SERVICE`; other kinds are refused.
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub selector: ObjectSelector,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortRef>,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadTarget {
    #[serde(default)]
    pub selector: ObjectSelector,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessConfig {
    /// The one entry of a policy with a single entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authz: Option<Authz>,
    /// Entries; one that admits is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authz_list: Vec<Authz>,
    #[serde(flatten)]
    pub other: Unsupported,
}

/// One entry: all that is given must hold. An empty entry (`{}`) admits nobody.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Authz {
    /// One of them must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_clients: Vec<Client>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_methods: Vec<String>,
    /// Exact, `prefix*` or `*suffix`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_paths: Vec<String>,
    /// CIDRs of the client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_ip_blocks: Vec<String>,
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<Match>,
    /// Decide and report, but let through.
    #[serde(default)]
    pub dry_run: bool,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Client {
    /// By name, namespace, and labels of the `ServiceAccount`; empty is every client.
    #[serde(default)]
    pub service_account_selector: ObjectSelector,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    #[serde(default)]
    pub request: RequestMatch,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestMatch {
    /// Header name to allowed values (exact, `prefix*`, `*suffix`, or `*` for any).
    #[serde(default)]
    pub headers: BTreeMap<String, HeaderValues>,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderValues {
    #[serde(default)]
    pub values: Vec<String>,
    #[serde(default)]
    pub not_values: Vec<String>,
}
