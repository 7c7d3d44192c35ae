//! The decoded entries of a map.

use anyhow::{Result, bail};
use egress_common::maps::{
    Endpoint, ExactKey4, ExactKey6, ExactRule, Flow, FlowKey, Fragment, FragmentKey, NO_RULE,
    Origin, OriginKey, PodInfo, PolicyInfo, PrefixKey4, PrefixKey6, PrefixRule, RuleInfo, RuleKey,
    name,
};
use serde_json::{Map, Value};

use super::cells::{ANY, Names, cell, either, v4, v6};
use super::output::{Part, Table, View};
use crate::datapath::pinned::Pinned;
use crate::telemetry::decode::text;

/// Bits of the policy's number in front of a prefix.
const POLICY_BITS: u32 = 32;

/// Entries under their fields; the titles of the table are the fields' names.
#[derive(Clone, Debug, PartialEq)]
pub struct Dump {
    pub fields: &'static [&'static str],
    pub rows: Vec<Vec<Value>>,
}

impl Dump {
    fn new<T>(
        fields: &'static [&'static str],
        entries: impl IntoIterator<Item = T>,
        row: impl Fn(T) -> Vec<Value>,
    ) -> Self {
        Self {
            fields,
            rows: entries.into_iter().map(row).collect(),
        }
    }

    /// For printing; items have the same fields as the table.
    pub fn view(&self) -> View {
        let mut table = Table::new(self.fields);
        let mut items = Vec::new();
        for row in &self.rows {
            table.row(row.iter().map(cell).collect());
            let fields = self.fields.iter().map(|field| (*field).to_owned());
            let item: Map<String, Value> = fields.zip(row.iter().cloned()).collect();
            items.push(Value::Object(item));
        }
        View {
            kind: "MapEntryList",
            items,
            page: vec![Part::Table(table)],
        }
    }
}

/// `maps dump`.
pub fn view(pinned: &Pinned, names: &Names<'_>, map: &str) -> Result<View> {
    let full = if map.starts_with("sp_") {
        map.to_owned()
    } else {
        format!("sp_{map}")
    };
    let dump = match full.as_str() {
        name::DEVICES => devices(names, sorted(pinned.entries(name::DEVICES)?, |it| it.0)),
        name::CGROUPS => cgroups(names, sorted(pinned.entries(name::CGROUPS)?, |it| it.0)),
        name::EXACT4 => exact4(names, sorted(pinned.entries(name::EXACT4)?, |it| it.0)),
        name::EXACT6 => exact6(names, sorted(pinned.entries(name::EXACT6)?, |it| it.0)),
        name::PREFIX4 => prefix4(names, pinned.prefixes(name::PREFIX4)?),
        name::PREFIX6 => prefix6(names, pinned.prefixes(name::PREFIX6)?),
        name::FLOWS_IN => flows(names, sorted(pinned.entries(name::FLOWS_IN)?, |it| it.0)),
        name::FLOWS_OUT => flows(names, sorted(pinned.entries(name::FLOWS_OUT)?, |it| it.0)),
        name::FRAGMENTS => fragments(names, sorted(pinned.entries(name::FRAGMENTS)?, |it| it.0)),
        name::ORIGINS => origins(names, sorted(pinned.entries(name::ORIGINS)?, |it| it.0)),
        name::COUNTERS => super::dump_node::counters(names),
        name::COVERED => super::dump_node::covered(pinned, names)?,
        name::WAYS => super::dump_node::ways(pinned, names)?,
        name::INBOUND => super::dump_node::inbound(pinned, names)?,
        name::CONFIG => super::dump_node::config(names, &pinned.config()?),
        name::POD_INFO => pod_info(names, sorted(pinned.entries(name::POD_INFO)?, |it| it.0)),
        name::POLICY_INFO => policy_info(sorted(pinned.entries(name::POLICY_INFO)?, |it| it.0)),
        name::RULE_INFO => rule_info(sorted(pinned.entries(name::RULE_INFO)?, |it| it.0)),
        name::EVENTS => bail!("{full} is a ring, not a table: see `egressctl events`"),
        _ => bail!("no map {map}; see `egressctl maps list`"),
    };
    Ok(dump.view())
}

fn sorted<T, K: Ord>(mut entries: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    entries.sort_by_key(key);
    entries
}

fn endpoint(names: &Names<'_>, endpoint: &Endpoint) -> Vec<Value> {
    vec![
        names.slot(endpoint.slot),
        names.mode(endpoint.mode),
        names.on_deny(endpoint.on_deny),
        endpoint.policy.into(),
        v4(endpoint.v4_be).into(),
        v6(endpoint.v6_be).into(),
        names.flags(endpoint.flags),
        near(endpoint),
        endpoint.slot.into(),
        names.age(endpoint.since_ns),
    ]
}

/// Gateways that the entry names itself.
fn near(endpoint: &Endpoint) -> Value {
    let near4 = endpoint.near4.iter().map(|it| {
        let address = std::net::Ipv4Addr::from(it.addr_be).into();
        (address, u16::from_be_bytes(it.port_be))
    });
    let near6 = endpoint.near6.iter().map(|it| {
        let address = std::net::Ipv6Addr::from(it.addr_be).into();
        (address, u16::from_be_bytes(it.port_be))
    });
    let gateways: Vec<Value> = near4
        .chain(near6)
        .filter(|(_, port): &(std::net::IpAddr, u16)| *port != 0)
        .map(|place| std::net::SocketAddr::from(place).to_string().into())
        .collect();
    gateways.into()
}

pub fn devices(names: &Names<'_>, entries: Vec<(u32, Endpoint)>) -> Dump {
    let fields = &[
        "ifindex", "device", "pod", "mode", "onDeny", "policy", "v4", "v6", "flags", "near",
        "slot", "since",
    ];
    Dump::new(fields, entries, |(ifindex, entry)| {
        let mut row = vec![ifindex.into(), names.device(ifindex)];
        row.extend(endpoint(names, &entry));
        row
    })
}

pub fn cgroups(names: &Names<'_>, entries: Vec<(u64, Endpoint)>) -> Dump {
    let fields = &[
        "cgroup", "pod", "mode", "onDeny", "policy", "v4", "v6", "flags", "near", "slot", "since",
    ];
    Dump::new(fields, entries, |(cgroup, entry)| {
        let mut row = vec![cgroup.into()];
        row.extend(endpoint(names, &entry));
        row
    })
}

const EXACT: &[&str] = &["policy", "address", "protocol", "port", "reason", "rule"];

fn exact(
    names: &Names<'_>,
    policy: u32,
    address: Value,
    proto: u8,
    port: [u8; 2],
    rule: ExactRule,
) -> Vec<Value> {
    vec![
        policy.into(),
        address,
        names.protocol(Some(proto)),
        u16::from_be_bytes(port).into(),
        names.reason(rule.reason),
        names.rule(policy, rule.rule),
    ]
}

pub fn exact4(names: &Names<'_>, entries: Vec<(ExactKey4, ExactRule)>) -> Dump {
    Dump::new(EXACT, entries, |(key, rule)| {
        let address = std::net::Ipv4Addr::from(key.addr_be).to_string().into();
        exact(names, key.policy, address, key.proto, key.port_be, rule)
    })
}

pub fn exact6(names: &Names<'_>, entries: Vec<(ExactKey6, ExactRule)>) -> Dump {
    Dump::new(EXACT, entries, |(key, rule)| {
        let address = std::net::Ipv6Addr::from(key.addr_be).to_string().into();
        exact(names, key.policy, address, key.proto, key.port_be, rule)
    })
}

const PREFIX: &[&str] = &["policy", "prefix", "allow", "else", "elseRule"];

fn prefix(names: &Names<'_>, policy: u32, prefix: String, rule: &PrefixRule) -> Vec<Value> {
    let ranges = rule.ranges.iter().take(usize::from(rule.count));
    let allow: Vec<Value> = ranges
        .map(|range| {
            let proto = names.protocol((range.proto != 0).then_some(range.proto));
            let ports = match (range.first, range.last) {
                (0, u16::MAX) => ANY.to_owned(),
                (first, last) if first == last => first.to_string(),
                (first, last) => format!("{first}-{last}"),
            };
            let mut words = vec![cell(&proto), ports, cell(&names.reason(range.reason))];
            if range.rule != NO_RULE {
                words.push(format!("[{}]", cell(&names.rule(policy, range.rule))));
            }
            Value::String(words.join(" "))
        })
        .collect();
    vec![
        policy.into(),
        prefix.into(),
        allow.into(),
        names.reason(rule.deny),
        names.rule(policy, rule.deny_rule),
    ]
}

/// An address and how many of its bits count; `ANY` for none.
fn network(address: &str, bits: u32) -> String {
    match bits.checked_sub(POLICY_BITS) {
        Some(0) => ANY.to_owned(),
        Some(bits) => format!("{address}/{bits}"),
        // Less than the policy's number: no writer of ours.
        None => format!("{address}/{bits} of key"),
    }
}

pub fn prefix4(names: &Names<'_>, mut entries: Vec<(u32, PrefixKey4, PrefixRule)>) -> Dump {
    entries.sort_by_key(|(bits, key, _)| (*key, *bits));
    Dump::new(PREFIX, entries, |(bits, key, rule)| {
        let address = std::net::Ipv4Addr::from(key.addr_be).to_string();
        let policy = u32::from_be_bytes(key.policy_be);
        prefix(names, policy, network(&address, bits), &rule)
    })
}

pub fn prefix6(names: &Names<'_>, mut entries: Vec<(u32, PrefixKey6, PrefixRule)>) -> Dump {
    entries.sort_by_key(|(bits, key, _)| (*key, *bits));
    Dump::new(PREFIX, entries, |(bits, key, rule)| {
        let address = std::net::Ipv6Addr::from(key.addr_be).to_string();
        let policy = u32::from_be_bytes(key.policy_be);
        prefix(names, policy, network(&address, bits), &rule)
    })
}

pub fn flows(names: &Names<'_>, entries: Vec<(FlowKey, Flow)>) -> Dump {
    let fields = &[
        "pod", "protocol", "peer", "peerPort", "podPort", "state", "seen",
    ];
    Dump::new(fields, entries, |(key, flow)| {
        vec![
            names.slot(key.slot),
            names.protocol(Some(key.proto)),
            either(key.peer_be),
            u16::from_be_bytes(key.peer_port_be).into(),
            u16::from_be_bytes(key.pod_port_be).into(),
            flow.state.into(),
            names.age(flow.seen_ns),
        ]
    })
}

pub fn fragments(names: &Names<'_>, entries: Vec<(FragmentKey, Fragment)>) -> Dump {
    let fields = &["pod", "destination", "protocol", "id", "verdict", "seen"];
    Dump::new(fields, entries, |(key, fragment)| {
        vec![
            names.slot(key.slot),
            either(key.dst_be),
            // IPv6 binds later fragments to no protocol.
            names.protocol((key.proto != 0).then_some(key.proto)),
            format!("{:#010x}", u32::from_be_bytes(key.id_be)).into(),
            names.verdict(fragment.verdict),
            names.age(fragment.seen_ns),
        ]
    })
}

pub fn origins(names: &Names<'_>, entries: Vec<(OriginKey, Origin)>) -> Dump {
    let fields = &[
        "pod",
        "destination",
        "protocol",
        "port",
        "pid",
        "comm",
        "uid",
        "container",
        "seen",
    ];
    Dump::new(fields, entries, |(key, origin)| {
        vec![
            names.pod_cgroup(key.pod_cgroup),
            either(key.dst_be),
            names.protocol(Some(key.proto)),
            u16::from_be_bytes(key.port_be).into(),
            origin.pid.into(),
            text(&origin.comm).into(),
            origin.uid.into(),
            origin.cgroup.into(),
            names.age(origin.seen_ns),
        ]
    })
}

pub fn pod_info(names: &Names<'_>, entries: Vec<(u32, PodInfo)>) -> Dump {
    let fields = &["slot", "namespace", "name", "uid", "cgroup", "since"];
    Dump::new(fields, entries, |(slot, info)| {
        vec![
            slot.into(),
            text(&info.namespace).into(),
            text(&info.name).into(),
            text(&info.uid).into(),
            info.cgroup.into(),
            names.age(info.since_ns),
        ]
    })
}

pub fn policy_info(entries: Vec<(u32, PolicyInfo)>) -> Dump {
    let fields = &[
        "policy", "complete", "exact4", "exact6", "prefix4", "prefix6", "rules", "digest",
    ];
    Dump::new(fields, entries, |(number, info)| {
        let [exact4, exact6, prefix4, prefix6] = info.entries;
        let digest = info.digest.iter().map(|byte| format!("{byte:02x}"));
        vec![
            number.into(),
            (info.complete == 1).into(),
            exact4.into(),
            exact6.into(),
            prefix4.into(),
            prefix6.into(),
            info.rules.into(),
            digest.collect::<String>().into(),
        ]
    })
}

pub fn rule_info(entries: Vec<(RuleKey, RuleInfo)>) -> Dump {
    Dump::new(&["policy", "rule", "text"], entries, |(key, info)| {
        vec![key.policy.into(), key.rule.into(), text(&info.text).into()]
    })
}
