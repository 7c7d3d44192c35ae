//! The maps by name, with their types.

use std::net::{Ipv4Addr, Ipv6Addr};

use egress_common::limits::MAX_WAYS;
use egress_common::maps::{
    Config, Covered, Endpoint, ExactKey4, ExactKey6, ExactRule, Flow, FlowKey, Inbound,
    PodCounters, PodInfo, PolicyInfo, PrefixKey4, PrefixKey6, PrefixRule, RuleInfo, RuleKey, Way,
    name, way_place,
};
use ipnet::{Ipv4Net, Ipv6Net};

use super::DatapathError;
use super::pins::Pins;
use super::table::{PerCpuTable, Table, TrieKey};
use crate::compile::Policy;

/// Bits of the policy's number in front of a prefix.
const POLICY_BITS: u32 = 32;

/// The maps that user space reads and writes.
#[derive(Debug)]
pub struct Maps {
    pub devices: Table<u32, Endpoint>,
    pub cgroups: Table<u64, Endpoint>,
    pub covered: Table<u32, Covered>,
    pub ways: Table<u32, Way>,
    pub exact4: Table<ExactKey4, ExactRule>,
    pub exact6: Table<ExactKey6, ExactRule>,
    pub prefix4: Table<TrieKey<PrefixKey4>, PrefixRule>,
    pub prefix6: Table<TrieKey<PrefixKey6>, PrefixRule>,
    pub flows_in: Table<FlowKey, Flow>,
    pub inbound: Table<u32, Inbound>,
    pub flows_out: Table<FlowKey, Flow>,
    pub counters: PerCpuTable<PodCounters>,
    pub config: Table<u32, Config>,
    pub pod_info: Table<u32, PodInfo>,
    pub policy_info: Table<u32, PolicyInfo>,
    pub rule_info: Table<RuleKey, RuleInfo>,
}

impl Maps {
    /// Opens the pinned maps. Works while no agent runs.
    ///
    /// # Errors
    /// If one is not there, or is of another layout.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            devices: Table::new(name::DEVICES, pins.open_map(name::DEVICES)?)?,
            cgroups: Table::new(name::CGROUPS, pins.open_map(name::CGROUPS)?)?,
            covered: Table::new(name::COVERED, pins.open_map(name::COVERED)?)?,
            ways: Table::new(name::WAYS, pins.open_map(name::WAYS)?)?,
            exact4: Table::new(name::EXACT4, pins.open_map(name::EXACT4)?)?,
            exact6: Table::new(name::EXACT6, pins.open_map(name::EXACT6)?)?,
            prefix4: Table::new(name::PREFIX4, pins.open_map(name::PREFIX4)?)?,
            prefix6: Table::new(name::PREFIX6, pins.open_map(name::PREFIX6)?)?,
            flows_in: Table::new(name::FLOWS_IN, pins.open_map(name::FLOWS_IN)?)?,
            inbound: Table::new(name::INBOUND, pins.open_map(name::INBOUND)?)?,
            flows_out: Table::new(name::FLOWS_OUT, pins.open_map(name::FLOWS_OUT)?)?,
            counters: PerCpuTable::new(name::COUNTERS, pins.open_map(name::COUNTERS)?)?,
            config: Table::new(name::CONFIG, pins.open_map(name::CONFIG)?)?,
            pod_info: Table::new(name::POD_INFO, pins.open_map(name::POD_INFO)?)?,
            policy_info: Table::new(name::POLICY_INFO, pins.open_map(name::POLICY_INFO)?)?,
            rule_info: Table::new(name::RULE_INFO, pins.open_map(name::RULE_INFO)?)?,
        })
    }

    /// Devices of a slot's pod, by their indices, of its first so many ways; less where some have gone.
    pub fn ways_of(&self, slot: u32, ways: u32) -> Result<Vec<u32>, DatapathError> {
        let mut devices = Vec::new();
        for way in 0..ways.min(MAX_WAYS) {
            let found = self.ways.get(&(way_place(slot) + way))?;
            devices.extend(found.map(|way| way.ifindex));
        }
        Ok(devices)
    }

    /// Writes what a policy allows and its rules in words; returns the writes.
    pub fn write_policy(&self, number: u32, policy: &Policy) -> Result<u64, DatapathError> {
        let rules: Vec<_> = (0_u16..)
            .zip(&policy.rules)
            .map(|(rule, text)| (rule_key(number, rule), rule_info(text)))
            .collect();
        let exact4: Vec<_> = policy
            .exact4
            .iter()
            .map(|((addr, port, proto), rule)| (exact4(number, *addr, *port, *proto), *rule))
            .collect();
        let exact6: Vec<_> = policy
            .exact6
            .iter()
            .map(|((addr, port, proto), rule)| (exact6(number, *addr, *port, *proto), *rule))
            .collect();
        let prefix4: Vec<_> = policy
            .prefix4
            .iter()
            .map(|(net, rule)| (prefix4(number, *net), *rule))
            .collect();
        let prefix6: Vec<_> = policy
            .prefix6
            .iter()
            .map(|(net, rule)| (prefix6(number, *net), *rule))
            .collect();
        Ok(self.exact4.insert_all(&exact4)?
            + self.exact6.insert_all(&exact6)?
            + self.prefix4.insert_all(&prefix4)?
            + self.prefix6.insert_all(&prefix6)?
            + self.rule_info.insert_all(&rules)?)
    }

    /// Removes all that was written of a policy; returns the writes.
    pub fn clear_policy(&self, number: u32) -> Result<u64, DatapathError> {
        let number_be = number.to_be_bytes();
        Ok(self.exact4.remove_where(|key| key.policy == number)?
            + self.exact6.remove_where(|key| key.policy == number)?
            + self
                .prefix4
                .remove_where(|key| key.data.policy_be == number_be)?
            + self
                .prefix6
                .remove_where(|key| key.data.policy_be == number_be)?
            + self.rule_info.remove_where(|key| key.policy == number)?)
    }

    /// The whole of a policy, as the kernel has it.
    pub fn read_policy(&self, number: u32) -> Result<Policy, DatapathError> {
        let number_be = number.to_be_bytes();
        let mut rules: Vec<(u16, String)> = Vec::new();
        for (key, info) in self.rule_info.entries()? {
            if key.policy == number {
                rules.push((key.rule, text(&info.text)));
            }
        }
        rules.sort();
        let mut policy = Policy {
            rules: rules.into_iter().map(|(_, text)| text).collect(),
            ..Policy::default()
        };
        for (key, rule) in self.exact4.entries()? {
            if key.policy == number {
                let port = u16::from_be_bytes(key.port_be);
                let key = (Ipv4Addr::from(key.addr_be), port, key.proto);
                policy.exact4.insert(key, rule);
            }
        }
        for (key, rule) in self.exact6.entries()? {
            if key.policy == number {
                let port = u16::from_be_bytes(key.port_be);
                let key = (Ipv6Addr::from(key.addr_be), port, key.proto);
                policy.exact6.insert(key, rule);
            }
        }
        for (key, rule) in self.prefix4.entries()? {
            let length = key.prefix_len.saturating_sub(POLICY_BITS);
            if key.data.policy_be == number_be
                && let Ok(length) = u8::try_from(length)
                && let Ok(net) = Ipv4Net::new(key.data.addr_be.into(), length)
            {
                policy.prefix4.insert(net, rule);
            }
        }
        for (key, rule) in self.prefix6.entries()? {
            let length = key.prefix_len.saturating_sub(POLICY_BITS);
            if key.data.policy_be == number_be
                && let Ok(length) = u8::try_from(length)
                && let Ok(net) = Ipv6Net::new(key.data.addr_be.into(), length)
            {
                policy.prefix6.insert(net, rule);
            }
        }
        Ok(policy)
    }
}

fn rule_key(policy: u32, rule: u16) -> RuleKey {
    RuleKey {
        policy,
        rule,
        pad: [0; 2],
    }
}

fn rule_info(words: &str) -> RuleInfo {
    RuleInfo { text: fill(words) }
}

fn exact4(policy: u32, addr: Ipv4Addr, port: u16, proto: u8) -> ExactKey4 {
    ExactKey4 {
        policy,
        addr_be: addr.octets(),
        port_be: port.to_be_bytes(),
        proto,
        pad: 0,
    }
}

fn exact6(policy: u32, addr: Ipv6Addr, port: u16, proto: u8) -> ExactKey6 {
    ExactKey6 {
        policy,
        addr_be: addr.octets(),
        port_be: port.to_be_bytes(),
        proto,
        pad: 0,
    }
}

fn prefix4(policy: u32, net: Ipv4Net) -> TrieKey<PrefixKey4> {
    TrieKey {
        prefix_len: POLICY_BITS + u32::from(net.prefix_len()),
        data: PrefixKey4 {
            policy_be: policy.to_be_bytes(),
            addr_be: net.network().octets(),
        },
    }
}

fn prefix6(policy: u32, net: Ipv6Net) -> TrieKey<PrefixKey6> {
    TrieKey {
        prefix_len: POLICY_BITS + u32::from(net.prefix_len()),
        data: PrefixKey6 {
            policy_be: policy.to_be_bytes(),
            addr_be: net.network().octets(),
        },
    }
}

/// Text padded with zeros; longer text is cut at a character.
pub fn fill<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let end = text.floor_char_boundary(N);
    bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
    bytes
}

/// The other way round.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
