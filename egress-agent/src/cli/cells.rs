//! Numbers as cells of a table: with their names, or bare with `--numeric`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use egress_common::maps::{
    DENY_DROP, DENY_REJECT, FLAG_COVERED, FLAG_FENCED, FLAG_HOST_NETWORK, FLAG_NODE_ACCESS,
    MODE_AUDIT, MODE_ENFORCE, MODE_OFF, NO_RULE, PodCounters,
};
use egress_common::{Reason, Verdict};
use serde_json::Value;

use super::snapshot::Snapshot;
use crate::telemetry::clock::monotonic_ns;
use crate::telemetry::decode::{address_text, protocol_name, text};

/// What any value stands for that matches everything.
pub const ANY: &str = "ANY";

/// Knows the names.
#[derive(Debug)]
pub struct Names<'a> {
    snapshot: &'a Snapshot,
    numeric: bool,
    now_ns: u64,
}

impl<'a> Names<'a> {
    pub fn new(snapshot: &'a Snapshot, numeric: bool) -> Self {
        Self {
            snapshot,
            numeric,
            now_ns: monotonic_ns(),
        }
    }

    /// For tests: as if it were this time.
    #[cfg(test)]
    pub fn at(snapshot: &'a Snapshot, numeric: bool, now_ns: u64) -> Self {
        Self {
            snapshot,
            numeric,
            now_ns,
        }
    }

    /// Counters by slot.
    pub fn counters(&self) -> &BTreeMap<u32, PodCounters> {
        &self.snapshot.counters
    }

    fn pick(&self, number: impl Into<Value>, name: Option<String>) -> Value {
        match name {
            Some(name) if !self.numeric => Value::String(name),
            _ => number.into(),
        }
    }

    /// The pod that has this slot.
    pub fn slot(&self, slot: u32) -> Value {
        let info = self.snapshot.pods.get(&slot);
        let name = info.map(|info| format!("{}/{}", text(&info.namespace), text(&info.name)));
        self.pick(slot, name)
    }

    /// The pod that has this cgroup.
    pub fn pod_cgroup(&self, cgroup: u64) -> Value {
        let mut pods = self.snapshot.pods.values();
        let info = pods.find(|info| info.cgroup == cgroup);
        let name = info.map(|info| format!("{}/{}", text(&info.namespace), text(&info.name)));
        self.pick(cgroup, name)
    }

    pub fn device(&self, ifindex: u32) -> Value {
        let name = self.snapshot.device_name(ifindex).map(str::to_owned);
        self.pick(ifindex, name)
    }

    /// `None` is a wildcard.
    pub fn protocol(&self, proto: Option<u8>) -> Value {
        match proto {
            None => Value::from(ANY),
            Some(proto) => self.pick(proto, Some(protocol_name(proto))),
        }
    }

    pub fn reason(&self, reason: u8) -> Value {
        let name = Reason::from_u8(reason).map(|reason| reason.as_str().to_owned());
        self.pick(reason, name)
    }

    pub fn verdict(&self, verdict: u8) -> Value {
        let name = Verdict::from_u8(verdict).map(|verdict| verdict.as_str().to_owned());
        self.pick(verdict, name)
    }

    pub fn mode(&self, mode: u8) -> Value {
        self.pick(mode, mode_name(mode).map(str::to_owned))
    }

    pub fn on_deny(&self, on_deny: u8) -> Value {
        self.pick(on_deny, on_deny_name(on_deny).map(str::to_owned))
    }

    pub fn flags(&self, flags: u8) -> Value {
        let mut names = Vec::new();
        for (flag, name) in [
            (FLAG_HOST_NETWORK, "host-network"),
            (FLAG_COVERED, "covered"),
            (FLAG_NODE_ACCESS, "node-access"),
            (FLAG_FENCED, "fenced"),
        ] {
            if flags & flag != 0 {
                names.push(name.to_owned());
            }
        }
        let rest = flags & !(FLAG_HOST_NETWORK | FLAG_COVERED | FLAG_NODE_ACCESS | FLAG_FENCED);
        if rest != 0 {
            names.push(format!("{rest:#x}"));
        }
        self.pick(flags, Some(names.join(",")))
    }

    /// A policy's rule in words.
    pub fn rule(&self, policy: u32, rule: u16) -> Value {
        if rule == NO_RULE {
            return Value::Null;
        }
        self.pick(rule, self.snapshot.rules.get(&(policy, rule)).cloned())
    }

    /// Seconds since a time of the monotonic clock, as the machine's people say it.
    pub fn age(&self, then_ns: u64) -> Value {
        let seconds = self.now_ns.saturating_sub(then_ns) / 1_000_000_000;
        self.pick(then_ns, Some(format!("{seconds}s ago")))
    }
}

/// As the object says it.
pub fn mode_name(mode: u8) -> Option<&'static str> {
    match mode {
        MODE_OFF => Some("Off"),
        MODE_AUDIT => Some("Audit"),
        MODE_ENFORCE => Some("Enforce"),
        _ => None,
    }
}

pub fn on_deny_name(on_deny: u8) -> Option<&'static str> {
    match on_deny {
        DENY_DROP => Some("Drop"),
        DENY_REJECT => Some("Reject"),
        _ => None,
    }
}

/// An IPv4 address; empty if it is all zero.
pub fn v4(address: [u8; 4]) -> String {
    if address == [0; 4] {
        String::new()
    } else {
        Ipv4Addr::from(address).to_string()
    }
}

/// An IPv6 address; empty if it is all zero.
pub fn v6(address: [u8; 16]) -> String {
    if address == [0; 16] {
        String::new()
    } else {
        Ipv6Addr::from(address).to_string()
    }
}

/// An address of either family in a 16-byte field; empty if it is all zero.
pub fn either(address: [u8; 16]) -> Value {
    Value::from(address_text(address))
}

/// A cell's text.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join("; "),
        other => other.to_string(),
    }
}
