//! What the kernel of this node should hold.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::Reason;
use egress_common::maps::{ExactRule, PrefixRule};
use ipnet::{Ipv4Net, Ipv6Net};

use super::Inside;
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
    /// Where Services may lead; for connections that stand, not for the kernel.
    pub inside: Inside,
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

impl DesiredPod {
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.v4.map(IpAddr::from);
        v4.into_iter().chain(self.v6.map(IpAddr::from))
    }
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

impl Policy {
    /// Whether a packet to there may leave, as the kernel reads the tables; `port` counts for protocols
    /// that have some.
    pub fn allows(&self, to: IpAddr, proto: u8, port: u16) -> bool {
        let passes = |reason| Reason::from_u8(reason).is_some_and(Reason::passes);
        let exact = match to {
            IpAddr::V4(to) => self.exact4.get(&(to, port, proto)),
            IpAddr::V6(to) => self.exact6.get(&(to, port, proto)),
        };
        if let Some(exact) = exact {
            return passes(exact.reason);
        }
        let Some(rule) = self.longest(to) else {
            return false;
        };
        let port = if matches!(proto, 6 | 17 | 132) {
            port
        } else {
            0
        };
        rule.ranges[..usize::from(rule.count)]
            .iter()
            .find(|range| {
                (range.proto == 0 || range.proto == proto)
                    && (range.first..=range.last).contains(&port)
            })
            .is_some_and(|range| passes(range.reason))
    }

    fn longest(&self, to: IpAddr) -> Option<&PrefixRule> {
        match to {
            IpAddr::V4(to) => (0..=32).rev().find_map(|bits| {
                let net = Ipv4Net::new(to, bits).ok()?.trunc();
                self.prefix4.get(&net)
            }),
            IpAddr::V6(to) => (0..=128).rev().find_map(|bits| {
                let net = Ipv6Net::new(to, bits).ok()?.trunc();
                self.prefix6.get(&net)
            }),
        }
    }
}
