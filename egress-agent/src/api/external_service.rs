//! `ExternalService`: hosts and ports outside the cluster.

#![allow(
    clippy::duplicated_attributes,
    reason = "columns of a table are of the same type"
)]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{self, rule};
use super::status::PolicyStatus;
use super::{ObjectRef, Unsupported};

/// A service outside the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "sallyport.dev",
    version = "v1alpha1",
    kind = "ExternalService",
    namespaced,
    doc = "A service outside the cluster: its hosts or addresses, and its ports.",
    shortname = "spes",
    category = "sallyport",
    status = "PolicyStatus",
    printcolumn(name = "Hosts", type_ = "string", json_path = ".spec.hosts"),
    printcolumn(name = "Ports", type_ = "string", json_path = ".spec.ports[*].number"),
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
#[schemars(extend("x-kubernetes-validations" = [rule(
    "(has(self.hosts) && size(self.hosts) > 0) != (has(self.addresses) && size(self.addresses) > 0)",
    "needs either `hosts` or `addresses`",
)]))]
pub struct ExternalServiceSpec {
    /// Host names; `*.example.com` is every name below it. Either this or `addresses`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::hosts")]
    pub hosts: Vec<String>,
    /// Addresses or CIDRs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::addresses")]
    pub addresses: Vec<String>,
    /// Ports that the service listens on, and how they are reached.
    #[serde(default)]
    #[schemars(extend("maxItems" = 64))]
    pub ports: Vec<ExternalPort>,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalPort {
    /// Port that the external service listens on.
    #[schemars(schema_with = "schema::port")]
    pub number: u16,
    /// Name for the port, which access policies may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub name: Option<String>,
    /// What is spoken on the port.
    #[serde(default)]
    pub protocol: PortProtocol,
    /// The gateway originates TLS to the external service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clientside_tls: Option<ClientsideTls>,
    /// How clients reach the port through gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_gateway_routes: Option<EgressGatewayRoutes>,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum PortProtocol {
    #[default]
    Http,
    Http2,
    Https,
    Grpc,
    Tcp,
    Tls,
    Mongo,
}

/// TLS origination: the gateway's side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientsideTls {
    /// Server name to send; the request's host without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub sni: Option<String>,
    /// Names that the server's certificate may bear; the host without it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::alt_names")]
    pub subject_alt_names: Vec<String>,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressGatewayRoutes {
    /// Port that clients use in their request; 80 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::port")]
    pub port_match: Option<u16>,
    /// Gateways that the service is reached through.
    #[serde(default)]
    #[schemars(extend("maxItems" = 32))]
    pub virtual_gateway_refs: Vec<ObjectRef>,
    #[serde(flatten)]
    pub other: Unsupported,
}
