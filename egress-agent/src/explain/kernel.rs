//! What the running kernel programs would do: the same decision over what their maps hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::Reason;
use egress_common::decide::{Outcome, Side, from_pod};
use egress_common::maps::{
    Endpoint, ExactKey4, ExactKey6, ExactRule, NO_RULE, PrefixKey4, PrefixKey6, PrefixRule, name,
};
use egress_common::memory::{Bytes, MemoryTables};
use egress_common::packet::Headers;

use super::frame::{self, Kind};
use crate::datapath::pinned::{Pinned, PinnedError};

/// A pod as the kernel holds it, with its policy.
#[derive(Clone, Debug)]
pub struct PodView {
    pub endpoint: Endpoint,
    /// It lives in the node's network: the cgroup hook decides.
    pub host_network: bool,
    tables: MemoryTables,
}

/// An end that leads to a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayEnd {
    pub address: IpAddr,
    pub port: u16,
    pub rule: u16,
}

impl PodView {
    /// Reads the policy of a pod from the pinned maps. Standing flows are left out: the question
    /// is about a new one.
    pub fn read(
        pinned: &Pinned,
        endpoint: Endpoint,
        host_network: bool,
    ) -> Result<Self, PinnedError> {
        let mut tables = MemoryTables::default();
        let policy = endpoint.policy;
        for (key, rule) in pinned.entries::<ExactKey4, ExactRule>(name::EXACT4)? {
            if key.policy == policy {
                tables.exact4.insert(key, rule);
            }
        }
        for (key, rule) in pinned.entries::<ExactKey6, ExactRule>(name::EXACT6)? {
            if key.policy == policy {
                tables.exact6.insert(key, rule);
            }
        }
        for (bits, key, rule) in pinned.prefixes::<PrefixKey4, PrefixRule>(name::PREFIX4)? {
            if key.policy_be == policy.to_be_bytes() {
                tables.prefix4.insert((key, bits), rule);
            }
        }
        for (bits, key, rule) in pinned.prefixes::<PrefixKey6, PrefixRule>(name::PREFIX6)? {
            if key.policy_be == policy.to_be_bytes() {
                tables.prefix6.insert((key, bits), rule);
            }
        }
        Ok(Self::new(endpoint, host_network, tables))
    }

    pub fn new(endpoint: Endpoint, host_network: bool, tables: MemoryTables) -> Self {
        Self {
            endpoint,
            host_network,
            tables,
        }
    }

    /// The pod's own address of the family of `destination`; none if it has none.
    pub fn source(&self, destination: IpAddr) -> Option<IpAddr> {
        let source = match destination {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(self.endpoint.v4_be)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(self.endpoint.v6_be)),
        };
        (!source.is_unspecified()).then_some(source)
    }

    /// The verdict on a first packet to there; none if the pod has no address of that family.
    pub fn verdict(&self, kind: Kind, destination: IpAddr, port: u16) -> Option<Outcome> {
        let (side, bytes) = if self.host_network {
            let source = match destination {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
            };
            (
                Side::Cgroup,
                frame::packet(kind, source, destination, port)?,
            )
        } else {
            let source = self.source(destination)?;
            (Side::Device, frame::frame(kind, source, destination, port)?)
        };
        // What the decision remembers, it remembers in these tables only.
        let mut headers = Headers::default();
        Some(from_pod(
            side,
            &Bytes(&bytes),
            &self.endpoint,
            &self.tables,
            &mut headers,
        ))
    }

    /// Where the policy lets the pod reach a gateway, sorted.
    pub fn gateways(&self) -> Vec<GatewayEnd> {
        let gateway = |rule: &ExactRule| rule.reason == Reason::Gateway as u8;
        let v4 = self.tables.exact4.iter().filter(|(_, rule)| gateway(rule));
        let v4 = v4.map(|(key, rule)| GatewayEnd {
            address: Ipv4Addr::from(key.addr_be).into(),
            port: u16::from_be_bytes(key.port_be),
            rule: rule.rule,
        });
        let v6 = self.tables.exact6.iter().filter(|(_, rule)| gateway(rule));
        let v6 = v6.map(|(key, rule)| GatewayEnd {
            address: Ipv6Addr::from(key.addr_be).into(),
            port: u16::from_be_bytes(key.port_be),
            rule: rule.rule,
        });
        let mut ends: Vec<GatewayEnd> = v4.chain(v6).collect();
        ends.sort();
        ends
    }
}

/// Whether a rule was named.
pub fn named_rule(outcome: Outcome) -> Option<u16> {
    (outcome.rule != NO_RULE).then_some(outcome.rule)
}
