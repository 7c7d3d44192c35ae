//! `AccessPolicy`: who may reach an external service.

#![allow(
    clippy::duplicated_attributes,
    reason = "columns of a table are of the same type"
)]

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{self, rule, rule_at};
use super::status::PolicyStatus;
use super::{ObjectSelector, PortRef, Unsupported};

/// Admits service accounts to destinations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "sallyport.dev",
    version = "v1alpha1",
    kind = "AccessPolicy",
    namespaced,
    doc = "Who may reach an external service.",
    shortname = "spap",
    category = "sallyport",
    status = "PolicyStatus",
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Realized",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Realized\")].status"
    ),
    printcolumn(
        name = "Nodes",
        type_ = "integer",
        json_path = ".status.nodes.realized",
        description = "Nodes that have realized this generation"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [rule_at(
    "applyToDestinations",
    "(has(self.applyToDestinations) && size(self.applyToDestinations) > 0) || \
     (has(self.applyToWorkloads) && size(self.applyToWorkloads) > 0)",
    "needs a destination: without one it closes every external service and opens none",
)]))]
pub struct AccessPolicySpec {
    /// External services that the policy is about.
    #[serde(default)]
    #[schemars(extend("maxItems" = 256))]
    pub apply_to_destinations: Vec<Destination>,
    /// For Gloo Mesh; has no effect at an egress gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub apply_to_workloads: Vec<WorkloadTarget>,
    /// Who is admitted.
    #[serde(default)]
    pub config: AccessConfig,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["kind"]))]
pub struct Destination {
    /// `EXTERNAL_SERVICE`. Destinations of the other two kinds are for Gloo Mesh and have no
    /// effect here.
    #[serde(default)]
    #[schemars(extend("enum" = ["EXTERNAL_SERVICE", "SERVICE", "VIRTUAL_DESTINATION"]))]
    pub kind: String,
    /// Which of them.
    #[serde(default)]
    pub selector: ObjectSelector,
    /// One of their ports; every port without it.
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
#[schemars(extend("x-kubernetes-validations" = [rule_at(
    "authzList",
    "!has(self.authz) || !has(self.authzList) || size(self.authzList) == 0",
    "goes without `authz`; remove one",
)]))]
pub struct AccessConfig {
    /// The one entry of a policy with a single entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authz: Option<Authz>,
    /// Entries; one that admits is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
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
    #[schemars(extend("maxItems" = 256))]
    pub allowed_clients: Vec<Client>,
    /// HTTP methods; case does not matter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::methods")]
    pub allowed_methods: Vec<String>,
    /// Exact, `prefix*` or `*suffix`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::paths")]
    pub allowed_paths: Vec<String>,
    /// Addresses or CIDRs of the client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::addresses")]
    pub allowed_ip_blocks: Vec<String>,
    /// Further conditions on the request.
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
    /// Conditions on the request's headers.
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
    #[schemars(extend("maxProperties" = 32))]
    pub headers: BTreeMap<String, HeaderValues>,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "(has(self.values) && size(self.values) > 0) || (has(self.notValues) && size(self.notValues) > 0)",
    "needs `values` or `notValues`; `*` is any value",
)]))]
pub struct HeaderValues {
    /// One of them must match.
    #[serde(default)]
    #[schemars(schema_with = "schema::header_values")]
    pub values: Vec<String>,
    /// None of them may match.
    #[serde(default)]
    #[schemars(schema_with = "schema::header_values")]
    pub not_values: Vec<String>,
    #[serde(flatten)]
    pub other: Unsupported,
}
