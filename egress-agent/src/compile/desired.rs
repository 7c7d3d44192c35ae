//! What the kernel of this node should hold.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use egress_common::maps::{ExactRule, PrefixRule};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::api::lockdown::OnDeny;

/// SHA-256 of a policy's content.
pub type Digest = [u8; 32];

/// The whole of it. Two equal values need no write between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredState {
    /// Every pod of this node that is not finished, by UID.
    pub pods: BTreeMap<String, DesiredPod>,
    /// The policies that those pods name.
    pub policies: BTreeMap<Digest, Policy>,
}

/// One pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPod {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    /// Addresses of `status.podIPs`; none while the pod has none yet.
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    pub host_network: bool,
    /// By which it gets at its node, in words; empty for most pods.
    pub node_access: Vec<String>,
    /// It is a Ready pod of a gateway, and so is not held.
    pub gateway: bool,
    pub hold: Hold,
    pub on_deny: OnDeny,
    /// Names one of `DesiredState::policies`; none if it is not held.
    pub policy: Option<Digest>,
    /// Lockdowns that hold it, sorted; for status.
    pub lockdowns: Vec<String>,
}

/// How a pod is held; the strictest of its lockdowns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    #[default]
    Off,
    Audit,
    Enforce,
}

/// All that a pod may reach; shared by the pods for which it is the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What `rule` in the tables means, such as `EgressLockdown/web allow.cidrs[2]`.
    pub rules: Vec<String>,
    /// (address, port in host byte order, IP protocol number) to rule.
    pub exact4: BTreeMap<(Ipv4Addr, u16, u8), ExactRule>,
    pub exact6: BTreeMap<(Ipv6Addr, u16, u8), ExactRule>,
    /// The longest prefix alone decides.
    pub prefix4: BTreeMap<Ipv4Net, PrefixRule>,
    pub prefix6: BTreeMap<Ipv6Net, PrefixRule>,
}
