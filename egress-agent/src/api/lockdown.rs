//! `EgressLockdown`: which pods are held, and how.

#![allow(
    clippy::duplicated_attributes,
    reason = "columns of a table are of the same type"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{self, rule_at};
use super::selector;
use super::status::LockdownStatus;

/// Holds the pods it selects to the egress gateways.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "sallyport.dev",
    version = "v1alpha1",
    kind = "EgressLockdown",
    doc = "Holds the pods it selects to the egress gateways.",
    shortname = "spl",
    category = "sallyport",
    status = "LockdownStatus",
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Nodes",
        type_ = "integer",
        json_path = ".status.nodes.total",
        description = "Nodes that run an agent"
    ),
    printcolumn(
        name = "Realized",
        type_ = "integer",
        json_path = ".status.nodes.realized",
        description = "Nodes whose kernel holds this generation"
    ),
    printcolumn(
        name = "Enforced",
        type_ = "integer",
        json_path = ".status.pods.enforced"
    ),
    printcolumn(
        name = "Audited",
        type_ = "integer",
        json_path = ".status.pods.audited"
    ),
    printcolumn(
        name = "Uncovered",
        type_ = "integer",
        json_path = ".status.pods.uncovered",
        description = "Pods that could not be held"
    ),
    printcolumn(
        name = "Audit-Until",
        type_ = "date",
        json_path = ".spec.auditUntil",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend(
    "x-kubernetes-preserve-unknown-fields" = true,
    "x-kubernetes-validations" = [rule_at(
        "auditUntil",
        "!has(self.auditUntil) || self.mode == 'Audit'",
        "goes with `mode: Audit` only; remove it or set that mode",
    )],
))]
pub struct EgressLockdownSpec {
    /// Namespaces by label; without it every namespace.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "selector::strict"
    )]
    #[schemars(schema_with = "schema::label_selector")]
    pub namespace_selector: Option<LabelSelector>,
    /// Pods by label; without it every pod of the selected namespaces.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "selector::strict"
    )]
    #[schemars(schema_with = "schema::label_selector")]
    pub pod_selector: Option<LabelSelector>,
    /// What happens to egress that is not allowed. `Enforce`: it is dropped. `Audit`: it passes and
    /// is reported. `Off`: nothing, the pods are not held by this object; in YAML write `"Off"` with
    /// quotes, without them it is the boolean `false`. There is no default.
    pub mode: Mode,
    /// With `mode: Audit`: from this time on it enforces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_until: Option<Time>,
    /// What is allowed beside the gateways.
    #[serde(default)]
    pub allow: Allow,
    /// `Drop`: a denied packet vanishes. `Reject`: the pod gets an ICMP "administratively
    /// prohibited" at once.
    #[serde(default)]
    pub on_deny: OnDeny,
    /// `Any`: every held pod reaches the gateways, which answer 403 where policy says no.
    /// `Policy`: only pods that an access policy admits to some host reach them at all.
    #[serde(default)]
    pub gateway_access: GatewayAccess,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum Mode {
    /// The pods are not held by this object.
    Off,
    /// What would be dropped passes and is reported.
    Audit,
    /// What is not allowed is dropped.
    Enforce,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnDeny {
    /// The packet vanishes.
    #[default]
    Drop,
    /// The pod gets an ICMP "administratively prohibited" at once.
    Reject,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GatewayAccess {
    /// Every held pod reaches the gateways; they answer 403 where policy says no.
    #[default]
    Any,
    /// Only pods that an access policy admits to some host reach the gateways.
    Policy,
}

/// What held pods may reach beside the gateways. Several lockdowns' lists add up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Allow {
    /// Parts of the cluster. `Pods`: the pod CIDRs, without the nodes' addresses in them.
    /// `Services`: `ClusterIP`s, as long as everything behind them is in the cluster. `Nodes`: the
    /// nodes' addresses. `APIServer`: the `kubernetes` Service and what is behind it.
    #[serde(default = "default_cluster")]
    #[schemars(extend("maxItems" = 4, "x-kubernetes-list-type" = "set"))]
    pub cluster: Vec<ClusterPart>,
    /// Resolvers.
    #[serde(default)]
    pub dns: AllowDns,
    /// Exceptions by address. More than fit here go into a lockdown of their own.
    #[serde(default)]
    #[schemars(extend("maxItems" = 1024))]
    pub cidrs: Vec<AllowCidr>,
}

impl Default for Allow {
    fn default() -> Self {
        Self {
            cluster: default_cluster(),
            dns: AllowDns::default(),
            cidrs: Vec::new(),
        }
    }
}

fn default_cluster() -> Vec<ClusterPart> {
    vec![
        ClusterPart::Pods,
        ClusterPart::Services,
        ClusterPart::APIServer,
    ]
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum ClusterPart {
    /// The pod CIDRs, without the nodes' addresses in them.
    Pods,
    /// `ClusterIP`s, as long as everything behind them is in the cluster.
    Services,
    /// The nodes' addresses.
    Nodes,
    /// The API server: the `kubernetes` Service and what is behind it.
    APIServer,
}

/// Which DNS resolvers held pods may ask (port 53, UDP and TCP).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct AllowDns {
    /// The cluster's own DNS (`kube-dns`), found by itself.
    #[serde(default = "yes")]
    pub cluster: bool,
    /// Further resolvers by address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::resolvers")]
    pub resolvers: Vec<std::net::IpAddr>,
}

impl Default for AllowDns {
    fn default() -> Self {
        Self {
            cluster: true,
            resolvers: Vec::new(),
        }
    }
}

const fn yes() -> bool {
    true
}

/// An exception: addresses, possibly only some ports of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend(
    "x-kubernetes-preserve-unknown-fields" = true,
    "x-kubernetes-validations" = [rule_at(
        "except",
        "!has(self.except) || !isCIDR(self.cidr) || \
         self.except.all(e, !isCIDR(e) || cidr(self.cidr).containsCIDR(e))",
        "every part that stays closed must be inside `cidr`",
    )],
))]
pub struct AllowCidr {
    /// IPv4 or IPv6, such as `192.0.2.0/24`.
    #[schemars(schema_with = "schema::cidr")]
    pub cidr: ipnet::IpNet,
    /// Parts of it that stay closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::except")]
    pub except: Vec<ipnet::IpNet>,
    /// Without it: TCP, UDP, SCTP and ICMP, every port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 32))]
    pub ports: Vec<AllowPort>,
}

/// One port, or a range of them. Host byte order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend(
    "x-kubernetes-preserve-unknown-fields" = true,
    "x-kubernetes-validations" = [rule_at(
        "endPort",
        "!has(self.endPort) || (has(self.port) && self.endPort >= self.port)",
        "needs `port`, the first port of the range, and must not be below it",
    )],
))]
pub struct AllowPort {
    /// `TCP`, `UDP` or `SCTP`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Without it every port of the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::port")]
    pub port: Option<u16>,
    /// Last port of a range that begins with `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::port")]
    pub end_port: Option<u16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}
