//! Sets of ports, each part with the rule that allows it.

use egress_common::limits::MAX_RANGES;
use egress_common::maps::PortRange;
use egress_common::reason::Reason;

use crate::api::lockdown::AllowPort;

const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
/// Every protocol that a held pod may send at all.
const ANY: u8 = 0;

/// Ports of one prefix. ICMP is kept under its IPv4 number until [`PortSet::emit`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<PortRange>);

impl PortSet {
    /// Every port of every protocol.
    pub fn any(rule: u16, reason: Reason) -> Self {
        Self(vec![full(ANY, rule, reason)])
    }

    /// Every port, but UDP only beside those in `closed`, which must be sorted.
    pub fn without_udp(closed: &[u16], rule: u16, reason: Reason) -> Self {
        let mut set = Self::any(rule, reason);
        for port in closed {
            set.close(UDP, *port);
        }
        set
    }

    /// Adds the ports of an exception; none given is all of them.
    pub fn allow(&mut self, ports: &[AllowPort], rule: u16) {
        if ports.is_empty() {
            self.0.push(full(ANY, rule, Reason::Exception));
        }
        for port in ports {
            let mut range = full(port.protocol.number(), rule, Reason::Exception);
            if let Some(first) = port.port {
                range.first = first;
                range.last = port.end_port.unwrap_or(first);
            }
            self.0.push(range);
        }
    }

    pub fn extend(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes one port out.
    pub fn close(&mut self, proto: u8, port: u16) {
        self.close_range(proto, port, port);
    }

    /// Takes a protocol out.
    pub fn close_all(&mut self, proto: u8) {
        self.close_range(proto, 0, u16::MAX);
    }

    fn close_range(&mut self, proto: u8, first: u16, last: u16) {
        let mut left = Vec::with_capacity(self.0.len() + 4);
        for range in self.0.drain(..) {
            if range.first > last
                || range.last < first
                || (range.proto != ANY && range.proto != proto)
            {
                left.push(range);
                continue;
            }
            if range.proto == ANY {
                let others = [TCP, UDP, SCTP, ICMP]
                    .into_iter()
                    .filter(|other| *other != proto);
                left.extend(others.map(|other| PortRange {
                    proto: other,
                    ..range
                }));
            }
            if range.first < first {
                left.push(PortRange {
                    proto,
                    last: first - 1,
                    ..range
                });
            }
            if last < range.last {
                left.push(PortRange {
                    proto,
                    first: last + 1,
                    ..range
                });
            }
        }
        self.0 = left;
    }

    /// The ranges as the kernel takes them, sorted; none if they are more than it has room for.
    pub fn emit(&self, v6: bool) -> Option<Vec<PortRange>> {
        let mut ranges: Vec<PortRange> = self.0.clone();
        // Wide ones first, so that what a range covers comes after it.
        ranges.sort_unstable_by_key(|r| (r.proto, r.first, u16::MAX - r.last, r.rule, r.reason));
        let mut kept: Vec<PortRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            if !kept.iter().any(|wide| covers(*wide, range)) {
                kept.push(range);
            }
        }
        if kept.len() > MAX_RANGES {
            kept = coalesce(kept);
        }
        if kept.len() > MAX_RANGES {
            return None;
        }
        if v6 {
            for range in &mut kept {
                if range.proto == ICMP {
                    range.proto = ICMP6;
                }
            }
        }
        Some(kept)
    }
}

/// Joins ranges that overlap or touch, at the cost that one rule is named for all of them.
fn coalesce(sorted: Vec<PortRange>) -> Vec<PortRange> {
    let mut joined: Vec<PortRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match joined.last_mut() {
            Some(last)
                if last.proto == range.proto && range.first <= last.last.saturating_add(1) =>
            {
                last.last = last.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    joined
}

fn covers(wide: PortRange, range: PortRange) -> bool {
    (wide.proto == ANY || wide.proto == range.proto)
        && wide.first <= range.first
        && range.last <= wide.last
}

fn full(proto: u8, rule: u16, reason: Reason) -> PortRange {
    PortRange {
        first: 0,
        last: u16::MAX,
        rule,
        proto,
        reason: reason as u8,
    }
}
