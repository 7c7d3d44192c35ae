//! What is told about the objects: their `status`, and each node's own report.
//!
//! Thousands of agents would fight over one `status`. So each agent writes one [`EgressNode`] of its
//! own, and the agent that holds the Lease [`LEASE_NAME`] reads these and writes the statuses of
//! Sallyport's own objects (`agent::status`). The `status` of Gloo Mesh's objects is Gloo Mesh's.
//! `deploy/README.md` has what it costs the API server.
//!
//! [`GatewayStatus::envoys`] is written by each agent by itself (`agent::gateway_status`): a list that
//! is a map, in which each applies entries of its own.
//!
//! An `EgressNode` does not grow with the number of objects: a node tells a digest for each kind
//! ([`Realized`]), of the name and generation of all objects that its kernel holds. Watches deliver
//! the changes of a kind in the same order to everyone, so the aggregating agent has had the same
//! digest at some time, and remembers what the kind's objects were then. Status is not in the
//! digest: otherwise writing it would make every node report again.

#![allow(
    clippy::duplicated_attributes,
    reason = "columns of a table are of the same type"
)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};

use super::schema;

/// The Lease of the agent that writes statuses, in the agents' namespace.
pub const LEASE_NAME: &str = "sallyport-status";
/// Type of the condition that tells whether the object was taken: `False` with the reason
/// `Refused` where its last good version stands, if there is one.
pub const ACCEPTED: &str = "Accepted";
/// Type of the condition that tells whether every node's kernel holds this generation.
pub const REALIZED: &str = "Realized";
/// Type of the condition that tells whether nothing in the object is ignored.
pub const SUPPORTED: &str = "Supported";
/// Type of a lockdown's condition that tells whether every pod it selects is held.
pub const COVERED: &str = "Covered";
/// Type of a gateway's condition that tells whether all of its Envoys took their configuration; its
/// message says what one refused.
pub const PROGRAMMED: &str = "Programmed";

/// Status of an `EgressLockdown`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(default)]
pub struct LockdownStatus {
    /// The generation that this status tells of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`, `Realized`, `Supported`, `Covered`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    pub nodes: NodeCounts,
    pub pods: PodCounts,
    /// What of it is refused or ignored, the first few.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = MAX_FINDINGS))]
    pub unsupported: Vec<Finding>,
}

/// Status of an `ExternalService` or `AccessPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(default)]
pub struct PolicyStatus {
    /// The generation that this status tells of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`, `Realized`, `Supported`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    pub nodes: NodeCounts,
    /// What of it is refused or ignored, the first few.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = MAX_FINDINGS))]
    pub unsupported: Vec<Finding>,
}

/// Status of a `VirtualGateway`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(default)]
pub struct GatewayStatus {
    /// The generation that this status tells of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`, `Realized`, `Supported`; `Programmed` if Envoys are configured from here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    pub nodes: NodeCounts,
    /// What of it is refused or ignored, the first few.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = MAX_FINDINGS))]
    pub unsupported: Vec<Finding>,
    /// The Envoys that get their configuration from Sallyport. Each is written by the agent that it
    /// is connected to, and by no other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "maxItems" = 256,
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["name"],
    ))]
    pub envoys: Vec<Envoy>,
}

/// An Envoy, and what it made of its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Envoy {
    /// As Envoy names itself; the name of its pod.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Node whose agent it is connected to.
    #[serde(default)]
    pub agent: String,
    /// It took everything it was sent.
    #[serde(default)]
    pub programmed: bool,
    /// State of policy that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What it refused; what it had before stands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 8))]
    pub rejected: Vec<RejectedConfiguration>,
}

/// Configuration that an Envoy refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RejectedConfiguration {
    /// `Listener`, `Cluster`, `RouteConfiguration` or `Secret`.
    pub kind: String,
    /// State of policy that was refused.
    pub revision: String,
    /// Envoy's words.
    pub message: String,
}

/// As many findings as a status tells.
pub const MAX_FINDINGS: usize = 32;

/// How far the object has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCounts {
    /// Nodes whose agent reports.
    pub total: u32,
    /// Nodes whose kernel holds this generation.
    pub realized: u32,
    /// When the last of them came to hold it; absent while some don't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Nodes that run Linux and from which no agent reports: their pods may not be held.
    #[serde(skip_serializing_if = "is_none")]
    pub without_agent: u32,
    /// Names of nodes that don't, the first few.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = MAX_BEHIND))]
    pub behind: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_none(count: &u32) -> bool {
    *count == 0
}

/// As many nodes as a status names.
pub const MAX_BEHIND: usize = 10;

/// Pods by what becomes of their egress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodCounts {
    /// Held: what is not allowed is dropped.
    pub enforced: u32,
    /// Seen: what is not allowed passes and is reported.
    pub audited: u32,
    /// Selected, but not held by all hooks they need.
    pub uncovered: u32,
}

impl std::ops::AddAssign for PodCounts {
    fn add_assign(&mut self, other: Self) {
        self.enforced += other.enforced;
        self.audited += other.audited;
        self.uncovered += other.uncovered;
    }
}

/// A field that is refused or ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Finding {
    /// Such as `spec.allow.cidrs[2].ports[0].endPort`; empty for the object as a whole.
    pub field: String,
    /// Says what to do.
    pub reason: String,
    /// `Refused`: the object is not taken. `PartRefused`: what holds the field serves and admits
    /// nothing. `Ignored`: the field has no effect.
    pub effect: String,
}

/// What one node's agent has brought into force. Named as its Node, which owns it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "sallyport.dev",
    version = "v1alpha1",
    kind = "EgressNode",
    no_spec,
    doc = "What one node's agent has brought into force; written by that agent alone.",
    shortname = "spn",
    category = "sallyport",
    printcolumn(name = "Version", type_ = "string", json_path = ".agentVersion"),
    printcolumn(name = "Enforced", type_ = "integer", json_path = ".pods.enforced"),
    printcolumn(name = "Audited", type_ = "integer", json_path = ".pods.audited"),
    printcolumn(name = "Uncovered", type_ = "integer", json_path = ".pods.uncovered"),
    printcolumn(name = "Reported", type_ = "date", json_path = ".reported"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase", default)]
pub struct EgressNodeSpec {
    /// Version of the agent.
    #[schemars(length(max = 64))]
    pub agent_version: String,
    /// When this was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reported: Option<Time>,
    /// What the node's kernel holds.
    pub realized: Realized,
    /// All pods of the node that some lockdown selects.
    pub pods: PodCounts,
    /// The same for each lockdown that selects pods of the node, by its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub lockdowns: BTreeMap<String, PodCounts>,
    /// Pods that are selected and not held by all hooks they need, the first few.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = MAX_UNCOVERED))]
    pub uncovered: Vec<UncoveredPod>,
    /// What this node could not bring into force, though others may: a map that is full, a hook
    /// that does not attach.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = MAX_FINDINGS))]
    pub failures: Vec<String>,
}

/// As many uncovered pods as a node names.
pub const MAX_UNCOVERED: usize = 32;

/// Digests of the objects that a node's kernel and gateways hold, by kind; see [`digest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Realized {
    /// Of the `EgressLockdown`s.
    #[schemars(length(max = 64))]
    pub egress_lockdowns: String,
    /// Of the `VirtualGateway`s.
    #[schemars(length(max = 64))]
    pub virtual_gateways: String,
    /// Of the `ExternalService`s.
    #[schemars(length(max = 64))]
    pub external_services: String,
    /// Of the `AccessPolicy`s.
    #[schemars(length(max = 64))]
    pub access_policies: String,
}

/// A pod that is not held though a lockdown selects it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UncoveredPod {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Says what stands in the way.
    pub reason: String,
}

/// Digest of the objects of one kind: namespace, name, UID and generation of each, in any order.
/// Short, because it only has to tell apart what one cluster's kind goes through.
pub fn digest<'a>(objects: impl IntoIterator<Item = (&'a str, &'a str, &'a str, i64)>) -> String {
    let mut all: Vec<_> = objects.into_iter().collect();
    all.sort_unstable();
    let mut hash = Sha256::new();
    for (namespace, name, uid, generation) in all {
        for text in [namespace, name, uid] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        hash.update(generation.to_be_bytes());
    }
    hash.finalize()[..8]
        .iter()
        .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// Statuses are read leniently: Gloo Mesh's objects have another one, which must not make them
/// unreadable.
macro_rules! read_leniently {
    ($status:ident, $read:ident { $($field:ident: $type:ty),* $(,)? }) => {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct $read { $($field: $type),* }

        impl<'de> Deserialize<'de> for $status {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = serde_json::Value::deserialize(deserializer)?;
                let $read { $($field),* } = serde_json::from_value(value).unwrap_or_default();
                Ok(Self { $($field),* })
            }
        }
    };
}

read_leniently!(LockdownStatus, ReadLockdownStatus {
    observed_generation: Option<i64>,
    conditions: Vec<Condition>,
    nodes: NodeCounts,
    pods: PodCounts,
    unsupported: Vec<Finding>,
});

read_leniently!(PolicyStatus, ReadPolicyStatus {
    observed_generation: Option<i64>,
    conditions: Vec<Condition>,
    nodes: NodeCounts,
    unsupported: Vec<Finding>,
});

read_leniently!(GatewayStatus, ReadGatewayStatus {
    observed_generation: Option<i64>,
    conditions: Vec<Condition>,
    nodes: NodeCounts,
    unsupported: Vec<Finding>,
    envoys: Vec<Envoy>,
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_tells_generations_and_not_order() {
        let a = ("bookinfo", "a", "1", 1);
        let b = ("bookinfo", "b", "2", 7);
        assert_eq!(digest([a, b]), digest([b, a]));
        let later = ("bookinfo", "b", "2", 8);
        assert_ne!(digest([a, b]), digest([a, later]));
        // Made anew under the same name it starts with generation 1 again.
        assert_ne!(digest([("n", "a", "1", 1)]), digest([("n", "a", "2", 1)]));
        // Where one text ends and the next begins counts.
        assert_ne!(digest([("n", "ab", "c", 1)]), digest([("n", "a", "bc", 1)]));
        assert_eq!(digest([]).len(), 16);
    }

    #[test]
    fn somebody_elses_status_does_not_make_an_object_unreadable() {
        for status in [
            serde_json::json!({ "common": { "State": { "approval": 2 } }, "conditions": { "a": 1 } }),
            serde_json::json!("OK"),
            serde_json::json!({ "nodes": "many" }),
        ] {
            let read: PolicyStatus = serde_json::from_value(status).expect("lenient");
            assert_eq!(read, PolicyStatus::default());
        }
        let ours = LockdownStatus {
            observed_generation: Some(3),
            nodes: NodeCounts {
                total: 5,
                realized: 4,
                behind: vec!["node-3".to_owned()],
                ..NodeCounts::default()
            },
            ..LockdownStatus::default()
        };
        let text = serde_json::to_value(&ours).expect("JSON");
        let read: LockdownStatus = serde_json::from_value(text).expect("ours");
        assert_eq!(read, ours);
    }
}
