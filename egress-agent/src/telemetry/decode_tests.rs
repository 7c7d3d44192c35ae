use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use egress_common::maps::{Origin, OriginKey, PodInfo};

use super::*;

#[derive(Default)]
struct Memory {
    pods: BTreeMap<u32, PodInfo>,
    rules: BTreeMap<(u32, u16), String>,
    origins: BTreeMap<OriginKey, Origin>,
}

impl Names for Memory {
    fn pod(&self, slot: u32) -> Option<PodInfo> {
        self.pods.get(&slot).copied()
    }

    fn rule(&self, policy: u32, rule: u16) -> Option<String> {
        self.rules.get(&(policy, rule)).cloned()
    }

    fn origin(&self, key: &OriginKey) -> Option<Origin> {
        self.origins.get(key).copied()
    }
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

fn mapped(address: [u8; 4]) -> [u8; 16] {
    Ipv4Addr::from(address).to_ipv6_mapped().octets()
}

const CLOCK: Clock = Clock {
    monotonic_ns: 10_000_000_000,
    wall_ns: 1_700_000_010_000_000_000,
};

fn reviews(since_ns: u64) -> PodInfo {
    PodInfo {
        uid: padded("0d3e5a54-7c6f-4b3c-9a55-0f2a7f5f1b11"),
        namespace: padded("bookinfo"),
        name: padded("reviews-v1"),
        pad: [0; 4],
        cgroup: 77,
        since_ns,
    }
}

fn event() -> Event {
    Event {
        time_ns: 9_000_000_000,
        pod_cgroup: 0,
        slot: 3,
        policy: 9,
        ifindex: 12,
        len: 74,
        src_be: mapped([10, 244, 1, 5]),
        dst_be: mapped([203, 0, 113, 10]),
        src_port_be: 40_000_u16.to_be_bytes(),
        dst_port_be: 443_u16.to_be_bytes(),
        ethertype_be: 0x0800_u16.to_be_bytes(),
        rule: NO_RULE,
        proto: TCP,
        verdict: Verdict::Drop as u8,
        reason: Reason::NotAllowed as u8,
        hook: HOOK_DEVICE,
        pad: [0; 4],
    }
}

fn names() -> Memory {
    let mut names = Memory::default();
    names.pods.insert(3, reviews(1));
    names
}

#[test]
fn a_drop_says_who_where_to_and_why() {
    let mut names = names();
    let key = OriginKey {
        pod_cgroup: 77,
        dst_be: mapped([203, 0, 113, 10]),
        port_be: 443_u16.to_be_bytes(),
        proto: TCP,
        pad: [0; 5],
    };
    let origin = Origin {
        seen_ns: 5,
        cgroup: 78,
        pid: 4242,
        uid: 1337,
        comm: padded("curl"),
    };
    names.origins.insert(key, origin);
    let flow = decode(&event(), &names, &CLOCK);
    let json = serde_json::to_value(&flow).expect("JSON");
    assert_eq!(
        json,
        serde_json::json!({
            "time": "2023-11-14T22:13:29.000000Z",
            "verdict": "drop",
            "reason": "not-allowed",
            "hook": "device",
            "pod": {
                "namespace": "bookinfo",
                "name": "reviews-v1",
                "uid": "0d3e5a54-7c6f-4b3c-9a55-0f2a7f5f1b11",
                "slot": 3,
                "cgroup": 77,
            },
            "process": { "pid": 4242, "comm": "curl", "uid": 1337 },
            "source": { "address": "10.244.1.5", "port": 40_000 },
            "destination": { "address": "203.0.113.10", "port": 443 },
            "protocol": "tcp",
            "length": 74,
            "ifindex": 12,
        })
    );
    let back: FlowEvent = serde_json::from_value(json).expect("the same type");
    assert_eq!(back, flow);
}

#[test]
fn a_rule_is_told_in_words_or_by_number() {
    let mut names = names();
    let event = Event { rule: 2, ..event() };
    assert_eq!(
        decode(&event, &names, &CLOCK).rule.as_deref(),
        Some("policy 9 rule 2")
    );
    names
        .rules
        .insert((9, 2), "EgressLockdown/web allow.cidrs[0]".to_owned());
    assert_eq!(
        decode(&event, &names, &CLOCK).rule.as_deref(),
        Some("EgressLockdown/web allow.cidrs[0]")
    );
}

#[test]
fn a_slot_that_changed_hands_names_nobody() {
    let mut names = names();
    names.pods.insert(3, reviews(9_500_000_000));
    let flow = decode(&event(), &names, &CLOCK);
    assert_eq!(flow.pod.label(), "slot 3");
    assert_eq!(flow.process, None);
}

#[test]
fn an_unknown_pod_is_its_cgroup() {
    let event = Event {
        slot: 0,
        pod_cgroup: 991,
        hook: HOOK_CGROUP,
        reason: Reason::UnknownPod as u8,
        ..event()
    };
    let flow = decode(&event, &names(), &CLOCK);
    assert_eq!(flow.pod.label(), "cgroup 991");
    assert_eq!(
        (flow.hook.as_str(), flow.reason.as_str()),
        ("cgroup", "unknown-pod")
    );
}

#[test]
fn icmp_has_type_and_code_instead_of_ports() {
    let event = Event {
        proto: ICMP,
        src_port_be: [0; 2],
        dst_port_be: [8, 0],
        ..event()
    };
    let flow = decode(&event, &names(), &CLOCK);
    assert_eq!(flow.icmp, Some(Icmp { kind: 8, code: 0 }));
    assert_eq!(flow.destination.label(), "203.0.113.10");
}

#[test]
fn ipv6_is_written_with_brackets() {
    let mut dst = [0; 16];
    dst[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
    dst[15] = 0x10;
    let event = Event {
        dst_be: dst,
        ethertype_be: 0x86dd_u16.to_be_bytes(),
        ..event()
    };
    let flow = decode(&event, &names(), &CLOCK);
    assert_eq!(flow.destination.label(), "[2001:db8::10]:443");
}

#[test]
fn what_is_not_ip_and_not_known_is_a_number() {
    let event = Event {
        src_be: [0; 16],
        dst_be: [0; 16],
        dst_port_be: [0; 2],
        ethertype_be: 0x88cc_u16.to_be_bytes(),
        proto: 0,
        verdict: 9,
        reason: 200,
        ..event()
    };
    let flow = decode(&event, &names(), &CLOCK);
    assert_eq!(flow.protocol, "ether 0x88cc");
    assert_eq!((flow.verdict.as_str(), flow.reason.as_str()), ("9", "200"));
    assert_eq!(flow.destination.label(), "-");
}
