//! `ExternalService`: hosts and ports outside the cluster.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ObjectRef, Unsupported};

/// A service outside the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "sallyport.dev",
    version = "v1alpha1",
    kind = "ExternalService",
    namespaced
)]
#[serde(rename_all = "camelCase")]
pub struct ExternalServiceSpec {
    /// Host names; `*.example.com` is every name below it. Either this or `addresses`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Addresses or CIDRs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    #[serde(default)]
    pub ports: Vec<ExternalPort>,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalPort {
    /// Port that the external service listens on.
    pub number: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default)]
    pub protocol: PortProtocol,
    /// The gateway originates TLS to the external service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clientside_tls: Option<ClientsideTls>,
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
    pub sni: Option<String>,
    /// Names that the server's certificate may bear; the host without it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressGatewayRoutes {
    /// Port that clients use in their request; 80 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_match: Option<u16>,
    #[serde(default)]
    pub virtual_gateway_refs: Vec<ObjectRef>,
    #[serde(flatten)]
    pub other: Unsupported,
}
