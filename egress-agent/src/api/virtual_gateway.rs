//! `VirtualGateway`: which pods are egress gateways, and what they listen for.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ObjectSelector, Unsupported};

/// An egress gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "sallyport.dev",
    version = "v1alpha1",
    kind = "VirtualGateway",
    namespaced
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualGatewaySpec {
    /// The gateway's pods.
    #[serde(default)]
    pub workloads: Vec<Workload>,
    /// What it listens for.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Pods by label; `namespace` is the gateway's own unless it is given. `name` is not used.
    #[serde(default)]
    pub selector: ObjectSelector,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Port of the gateway's Service, or of its pods where there is no Service.
    #[serde(default)]
    pub port: ListenerPort,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// Hosts that this listener serves; `*.example.com` serves every name below it.
    #[serde(default)]
    pub exposed_external_services: Vec<ExposedService>,
    #[serde(flatten)]
    pub other: Unsupported,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerPort {
    #[serde(default)]
    pub number: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerTls {
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
    pub host: String,
    #[serde(flatten)]
    pub other: Unsupported,
}
