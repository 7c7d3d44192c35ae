//! `VirtualGateway`: which pods are egress gateways, and what they listen for.

#![allow(
    clippy::duplicated_attributes,
    reason = "columns of a table are of the same type"
)]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{self, rule_at};
use super::status::GatewayStatus;
use super::{ObjectSelector, Unsupported};

/// An egress gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "sallyport.dev",
    version = "v1alpha1",
    kind = "VirtualGateway",
    namespaced,
    doc = "An egress gateway: which pods it is, and what it listens for.",
    shortname = "spvg",
    category = "sallyport",
    status = "GatewayStatus",
    printcolumn(
        name = "Ports",
        type_ = "string",
        json_path = ".spec.listeners[*].port.number"
    ),
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
        name = "Refused-By",
        type_ = "string",
        json_path = ".status.envoys[?(@.programmed==false)].name",
        description = "An Envoy that did not take everything"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualGatewaySpec {
    /// The gateway's pods.
    #[serde(default)]
    #[schemars(extend("maxItems" = 32))]
    pub workloads: Vec<Workload>,
    /// What it listens for.
    #[serde(default)]
    #[schemars(extend("maxItems" = 64))]
    pub listeners: Vec<Listener>,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [rule_at(
    "selector",
    "!has(self.selector) || !has(self.selector.name)",
    "pods are selected by labels; remove the name",
)]))]
pub struct Workload {
    /// Pods by label; `namespace` is the gateway's own unless it is given. `name` is not used.
    #[serde(default)]
    pub selector: ObjectSelector,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["port"]))]
pub struct Listener {
    /// Port of the gateway's Service, or of its pods where there is no Service.
    #[serde(default)]
    pub port: ListenerPort,
    /// How clients come to the listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// Hosts that this listener serves; `*.example.com` serves every name below it.
    #[serde(default)]
    #[schemars(extend("maxItems" = 256))]
    pub exposed_external_services: Vec<ExposedService>,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["number"]))]
pub struct ListenerPort {
    /// Number of the port.
    #[serde(default)]
    #[schemars(schema_with = "schema::port")]
    pub number: u16,
    /// Name for the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub name: Option<String>,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerTls {
    /// `ISTIO_MUTUAL`: mutual TLS with the mesh's certificates.
    #[serde(default)]
    pub mode: TlsMode,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// Mutual TLS with the mesh's certificates.
    #[default]
    IstioMutual,
    Mutual,
    Simple,
    Passthrough,
    AutoPassthrough,
    OptionalMutual,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExposedService {
    /// Host name; `*.example.com` is every name below it, `*` every name.
    #[schemars(schema_with = "schema::host")]
    pub host: String,
    #[serde(flatten)]
    pub other: Unsupported,
}
