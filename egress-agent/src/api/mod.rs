//! The objects that Sallyport reads.
//!
//! `EgressLockdown` is its own. `VirtualGateway`, `ExternalService` and `AccessPolicy` have the
//! `spec` of Gloo Mesh's v2 objects of the same name, so the same types serve both groups.
#![forbid(unsafe_code)]

pub mod access_policy;
pub mod crds;
pub mod external_service;
pub mod lockdown;
mod schema;
pub mod selector;
pub mod status;
pub mod virtual_gateway;

pub use access_policy::{AccessPolicy, AccessPolicySpec};
pub use external_service::{ExternalService, ExternalServiceSpec};
pub use lockdown::{EgressLockdown, EgressLockdownSpec};
pub use status::{EgressNode, EgressNodeSpec, GatewayStatus, LockdownStatus, PolicyStatus};
pub use virtual_gateway::{VirtualGateway, VirtualGatewaySpec};

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// API group of Sallyport's own objects.
pub const GROUP: &str = "sallyport.dev";
/// Version of Sallyport's own objects.
pub const VERSION: &str = "v1alpha1";
/// Gloo Mesh's group of `VirtualGateway` and `ExternalService`; version `v2`.
pub const GLOO_NETWORKING_GROUP: &str = "networking.gloo.solo.io";
/// Gloo Mesh's group of `AccessPolicy`; version `v2`.
pub const GLOO_SECURITY_GROUP: &str = "security.policy.gloo.solo.io";

/// Selects objects by name, namespace, labels and cluster; every field that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectSelector {
    /// Name of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub name: Option<String>,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub namespace: Option<String>,
    /// Labels that it must all have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels")]
    pub labels: BTreeMap<String, String>,
    /// Its cluster; any without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub cluster: Option<String>,
    /// Fields that are not supported; see [`Unsupported`].
    #[serde(flatten)]
    pub other: Unsupported,
}

/// Names an object, possibly of another namespace or cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace; the referring object's without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub namespace: Option<String>,
    /// Its cluster; any without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub cluster: Option<String>,
    /// Fields that are not supported; see [`Unsupported`].
    #[serde(flatten)]
    pub other: Unsupported,
}

/// A port by number, by name, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortRef {
    /// Number of the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::port")]
    pub number: Option<u16>,
    /// Its name in the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub name: Option<String>,
    /// Fields that are not supported; see [`Unsupported`].
    #[serde(flatten)]
    pub other: Unsupported,
}

/// Fields of an object that no type of ours names. They are kept so that they can be reported,
/// and refused where ignoring them would allow more.
pub type Unsupported = BTreeMap<String, serde_json::Value>;
