//! The maps by name, with their types.

use egress_common::limits::MAX_WAYS;
use egress_common::maps::{
    Config, Covered, Endpoint, ExactKey4, ExactKey6, ExactRule, Flow, FlowKey, Inbound,
    PodCounters, PodInfo, PolicyInfo, PrefixKey4, PrefixKey6, PrefixRule, RuleInfo, RuleKey, Way,
    name, way_place,
};

use super::DatapathError;
use super::pins::Pins;
use super::table::{PerCpuTable, Table, TrieKey};

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
