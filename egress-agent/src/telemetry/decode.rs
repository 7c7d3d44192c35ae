//! From the kernel's event to [`FlowEvent`]: numbers become names where something knows them.

use std::net::{IpAddr, Ipv6Addr};

use egress_common::event::{Event, HOOK_CGROUP, HOOK_DEVICE};
use egress_common::maps::{NO_RULE, Origin, OriginKey, PodInfo, RuleInfo, RuleKey, name};
use egress_common::packet::{ICMP, ICMPV6, SCTP, TCP, UDP};
use egress_common::{Reason, Verdict};

use super::clock::Clock;
use super::flow::{FlowEvent, Icmp, PodRef, Process, Side};
use crate::datapath::pinned::{Hash, Pinned, PinnedError};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// What knows the names of things. A name that can't be had is none, never an error: the event
/// is told all the same.
pub trait Names {
    fn pod(&self, slot: u32) -> Option<PodInfo>;
    fn rule(&self, policy: u32, rule: u16) -> Option<String>;
    fn origin(&self, key: &OriginKey) -> Option<Origin>;
}

/// The names in the pinned maps.
#[derive(Debug)]
pub struct PinnedNames {
    pods: Hash<u32, PodInfo>,
    rules: Hash<RuleKey, RuleInfo>,
    origins: Hash<OriginKey, Origin>,
}

impl PinnedNames {
    pub fn open(pinned: &Pinned) -> Result<Self, PinnedError> {
        Ok(Self {
            pods: pinned.hash(name::POD_INFO)?,
            rules: pinned.hash(name::RULE_INFO)?,
            origins: pinned.hash(name::ORIGINS)?,
        })
    }
}

impl Names for PinnedNames {
    fn pod(&self, slot: u32) -> Option<PodInfo> {
        self.pods.get(&slot).ok().flatten()
    }

    fn rule(&self, policy: u32, rule: u16) -> Option<String> {
        let key = RuleKey {
            policy,
            rule,
            pad: [0; 2],
        };
        let info = self.rules.get(&key).ok().flatten()?;
        Some(text(&info.text))
    }

    fn origin(&self, key: &OriginKey) -> Option<Origin> {
        self.origins.get(key).ok().flatten()
    }
}

/// Decodes an event.
pub fn decode(event: &Event, names: &impl Names, clock: &Clock) -> FlowEvent {
    let pod = pod(event, names);
    let ethertype = u16::from_be_bytes(event.ethertype_be);
    let is_ip = matches!(ethertype, ETHERTYPE_IPV4 | ETHERTYPE_IPV6);
    let is_icmp = is_ip && matches!(event.proto, ICMP | ICMPV6);
    let has_ports = is_ip && matches!(event.proto, TCP | UDP | SCTP);
    let side = |address: [u8; 16], port: [u8; 2]| {
        let port = u16::from_be_bytes(port);
        Side {
            address: address_text(address),
            port: (has_ports && port != 0).then_some(port),
        }
    };
    let [kind, code] = event.dst_port_be;
    FlowEvent {
        time: clock.text_of(event.time_ns),
        verdict: Verdict::from_u8(event.verdict)
            .map_or_else(|| event.verdict.to_string(), |it| it.as_str().to_owned()),
        reason: Reason::from_u8(event.reason)
            .map_or_else(|| event.reason.to_string(), |it| it.as_str().to_owned()),
        rule: (event.rule != NO_RULE).then(|| {
            names
                .rule(event.policy, event.rule)
                .unwrap_or_else(|| format!("policy {} rule {}", event.policy, event.rule))
        }),
        hook: match event.hook {
            HOOK_DEVICE => "device".to_owned(),
            HOOK_CGROUP => "cgroup".to_owned(),
            other => other.to_string(),
        },
        process: process(event, pod.cgroup, has_ports, names),
        pod,
        source: side(event.src_be, event.src_port_be),
        destination: side(event.dst_be, event.dst_port_be),
        protocol: if is_ip {
            protocol_name(event.proto)
        } else {
            format!("ether {ethertype:#06x}")
        },
        icmp: is_icmp.then_some(Icmp { kind, code }),
        length: event.len,
        ifindex: event.ifindex,
    }
}

fn pod(event: &Event, names: &impl Names) -> PodRef {
    let unknown = PodRef {
        slot: event.slot,
        cgroup: event.pod_cgroup,
        ..PodRef::default()
    };
    if event.slot == 0 {
        return unknown;
    }
    match names.pod(event.slot) {
        // A slot that changed hands since names the wrong pod, so it names none.
        Some(info) if info.since_ns <= event.time_ns => PodRef {
            namespace: text(&info.namespace),
            name: text(&info.name),
            uid: text(&info.uid),
            slot: event.slot,
            cgroup: info.cgroup,
        },
        _ => unknown,
    }
}

fn process(event: &Event, pod_cgroup: u64, has_ports: bool, names: &impl Names) -> Option<Process> {
    if pod_cgroup == 0 || event.dst_be == [0; 16] {
        return None;
    }
    let key = OriginKey {
        pod_cgroup,
        dst_be: event.dst_be,
        // Other protocols' sockets have no port: it is 0 there.
        port_be: if has_ports { event.dst_port_be } else { [0; 2] },
        proto: event.proto,
        pad: [0; 5],
    };
    let origin = names.origin(&key)?;
    Some(Process {
        pid: origin.pid,
        comm: text(&origin.comm),
        uid: origin.uid,
    })
}

/// Text of a field that is padded with zeros.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

/// Text of an address; IPv4 where it is mapped, empty if it is all zero.
pub fn address_text(address: [u8; 16]) -> String {
    if address == [0; 16] {
        return String::new();
    }
    IpAddr::V6(Ipv6Addr::from(address))
        .to_canonical()
        .to_string()
}

/// Name of an IP protocol, or its number.
pub fn protocol_name(proto: u8) -> String {
    let name = match proto {
        ICMP => "icmp",
        2 => "igmp",
        4 => "ipip",
        TCP => "tcp",
        UDP => "udp",
        41 => "ipv6",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        ICMPV6 => "icmpv6",
        SCTP => "sctp",
        other => return other.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
