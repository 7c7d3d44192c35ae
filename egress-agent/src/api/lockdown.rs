//! `EgressLockdown`: which pods are held, and how.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Holds the pods it selects to the egress gateways.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(group = "sallyport.dev", version = "v1alpha1", kind = "EgressLockdown")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressLockdownSpec {
    /// Namespaces by label; without it every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Pods by label; without it every pod of the selected namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// What happens to egress that is not allowed. There is no default.
    pub mode: Mode,
    /// With `mode: Audit`: from this time on it enforces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_until: Option<Time>,
    /// What is allowed beside the gateways.
    #[serde(default)]
    pub allow: Allow,
    /// Whether a denied packet vanishes or is answered.
    #[serde(default)]
    pub on_deny: OnDeny,
    /// Who may reach the gateways at all.
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
pub struct Allow {
    /// Parts of the cluster.
    #[serde(default = "default_cluster")]
    pub cluster: Vec<ClusterPart>,
    /// Resolvers.
    #[serde(default)]
    pub dns: AllowDns,
    /// Exceptions by address.
    #[serde(default)]
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
pub struct AllowDns {
    /// The cluster's own DNS (`kube-dns`), found by itself.
    #[serde(default = "yes")]
    pub cluster: bool,
    /// Further resolvers by address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
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
pub struct AllowCidr {
    /// IPv4 or IPv6, such as `192.0.2.0/24`.
    #[schemars(with = "String")]
    pub cidr: ipnet::IpNet,
    /// Parts of it that stay closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub except: Vec<ipnet::IpNet>,
    /// Without it: TCP, UDP, SCTP and ICMP, every port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<AllowPort>,
}

/// One port, or a range of them. Host byte order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowPort {
    #[serde(default)]
    pub protocol: Protocol,
    /// Without it every port of the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Last port of a range that begins with `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
