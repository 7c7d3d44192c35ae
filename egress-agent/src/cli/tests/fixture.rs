//! Nodes in memory.

use std::collections::BTreeMap;

use egress_common::Reason;
use egress_common::maps::{
    DENY_DROP, DENY_REJECT, Endpoint, FLAG_COVERED, FLAG_HOST_NETWORK, MODE_AUDIT, MODE_ENFORCE,
    MODE_OFF, NEAR4, NEAR6, Near4, Near6, PodInfo,
};

use crate::cli::agent::{AgentPod, AgentState, Ready};
use crate::cli::cgroups::Place;
use crate::cli::snapshot::Snapshot;
use crate::datapath::DeviceHooks;
use crate::datapath::pinned::{HookTarget, HookedDevice, PinnedHook};
use crate::fence::{Facts, Family};
use crate::policy_server::xds::NodeState;
use crate::telemetry::FlowEvent;
use crate::telemetry::flow::{Icmp, PodRef, Process, Side};

const KUBEPODS: u64 = 40;

pub fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

fn endpoint(slot: u32, mode: u8, flags: u8) -> Endpoint {
    let last = u8::try_from(slot).expect("few slots");
    let mut v6_be = [0; 16];
    v6_be[0] = 0xfd;
    v6_be[15] = last;
    let mut near4 = [Near4::default(); NEAR4];
    if mode != MODE_OFF {
        near4[0] = Near4 {
            addr_be: [10, 244, 1, 9],
            port_be: 8443_u16.to_be_bytes(),
            rule: 0,
        };
    }
    Endpoint {
        slot,
        policy: if mode == MODE_OFF { 0 } else { 7 },
        v4_be: [10, 244, 1, last],
        mode,
        on_deny: if slot == 2 { DENY_REJECT } else { DENY_DROP },
        flags,
        zero: 0,
        v6_be,
        since_ns: 40_000_000_000,
        exact_networks: 1,
        near4,
        near6: [Near6::default(); NEAR6],
        ways: 0,
    }
}

fn hook(pin: &str, target: HookTarget) -> PinnedHook {
    PinnedHook {
        pin: pin.to_owned(),
        program_id: 5,
        program_tag: "00aa11bb22cc33dd".to_owned(),
        way: pin.starts_with("dev-").then_some(DeviceHooks::Tcx),
        target,
    }
}

/// A pod's slot, namespace, name, mode, flags and device.
type Row = (u32, &'static str, &'static str, u8, u8, Option<u32>);

/// A node with pods in every state that is well.
pub fn well() -> Snapshot {
    let mut snapshot = Snapshot {
        pins: "/sys/fs/bpf/sallyport/layout-1a2b3c4d".into(),
        kernel: "6.18.1".to_owned(),
        fence: Some(Facts {
            families: Family::ALL.into(),
            devices: [11].into(),
            dropped: [(Family::Inet, 3)].into(),
        }),
        gate: Some(Facts {
            families: Family::ALL.into(),
            devices: [11, 12].into(),
            dropped: [(Family::Bridge, 5)].into(),
        }),
        ..Snapshot::default()
    };
    let mut places = BTreeMap::new();
    let place = |path: &str, populated| Place {
        path: path.into(),
        populated,
    };
    places.insert(KUBEPODS, place("/sys/fs/cgroup/kubepods.slice", true));
    let rows: [Row; 5] = [
        (
            1,
            "bookinfo",
            "reviews-v1",
            MODE_ENFORCE,
            FLAG_COVERED,
            Some(11),
        ),
        (
            2,
            "bookinfo",
            "ratings-v1",
            MODE_AUDIT,
            FLAG_COVERED,
            Some(12),
        ),
        (3, "bookinfo", "starting", MODE_ENFORCE, 0, None),
        (
            4,
            "infra",
            "exporter",
            MODE_ENFORCE,
            FLAG_HOST_NETWORK,
            None,
        ),
        (5, "gateways", "egress-0", MODE_OFF, 0, None),
    ];
    for (slot, namespace, name, mode, flags, device) in rows {
        let cgroup = 1000 + u64::from(slot);
        let info = PodInfo {
            uid: padded(&format!("0d3e5a54-7c6f-4b3c-9a55-0000000000{slot:02}")),
            namespace: padded(namespace),
            name: padded(name),
            pad: [0; 4],
            cgroup,
            since_ns: 40_000_000_000,
        };
        snapshot.pods.insert(slot, info);
        let entry = endpoint(slot, mode, flags);
        snapshot.cgroups.insert(cgroup, entry);
        let path = format!("/sys/fs/cgroup/kubepods.slice/pod{slot}");
        places.insert(cgroup, place(&path, name != "starting"));
        if let Some(ifindex) = device {
            snapshot.devices.insert(ifindex, entry);
            for direction in ["ingress", "egress"] {
                let pin = format!("dev-{ifindex}-{direction}");
                snapshot.hooks.push(hook(&pin, HookTarget::Device(ifindex)));
            }
            let name = format!("veth{ifindex}");
            let is_first = true;
            snapshot
                .hooked
                .insert(ifindex, HookedDevice { name, is_first });
        }
        snapshot.counters.insert(slot, Snapshot::default_counters());
    }
    snapshot.places = Some(places);
    for pin in [
        "egress", "ingress", "connect4", "connect6", "sendmsg4", "sendmsg6",
    ] {
        let pin = format!("cg-{pin}");
        snapshot
            .hooks
            .push(hook(&pin, HookTarget::Cgroup(KUBEPODS)));
    }
    count(&mut snapshot);
    let words = [
        "gateway egress/egress-gateway:8443",
        "EgressLockdown/web allow.cidrs[0]",
    ];
    for (rule, words) in (0..).zip(words) {
        snapshot.rules.insert((7, rule), words.to_owned());
    }
    snapshot.agent = agent();
    snapshot
}

fn agent() -> AgentState {
    AgentState {
        running: true,
        pid: Some(812),
        ready: Some(Ready {
            revision: "3f2a".to_owned(),
            writes: 42,
        }),
        pods: vec![AgentPod {
            uid: "0d3e5a54-7c6f-4b3c-9a55-000000000001".to_owned(),
            coverage: "covered".to_owned(),
            lockdowns: vec!["web".to_owned()],
            ..AgentPod::default()
        }],
        gateways: vec![NodeState {
            gateway: "gateways/egress".to_owned(),
            node: "egress-0".to_owned(),
            address: ([10, 244, 1, 9], 40112).into(),
            revision: Some("9d04c5a1b2e3f607".to_owned()),
            rejected: BTreeMap::new(),
        }],
    }
}

/// Traffic of the pods, and of one that is not known.
fn count(snapshot: &mut Snapshot) {
    for (slot, reason, packets) in [
        (0, Reason::UnknownPod, 2),
        (1, Reason::Gateway, 120),
        (1, Reason::Dns, 6),
        (1, Reason::NotAllowed, 9),
        (1, Reason::Spoofed, 1),
        (2, Reason::NotAllowed, 4),
    ] {
        let counters = snapshot.counters.entry(slot);
        let counters = counters.or_insert_with(Snapshot::default_counters);
        let count = &mut counters.reasons[reason as usize];
        (count.packets, count.bytes) = (packets, packets * 74);
    }
    let audited = snapshot.counters.get_mut(&2).expect("there");
    (audited.audited, audited.events_lost) = (4, 1);
}

/// The same, with all that can be wrong.
pub fn ill() -> Snapshot {
    let mut snapshot = well();
    snapshot
        .hooks
        .retain(|hook| hook.pin != "dev-11-ingress" && hook.pin != "cg-connect6");
    let gone = snapshot
        .hooks
        .iter_mut()
        .find(|hook| hook.pin == "cg-egress");
    gone.expect("there").target = HookTarget::Gone;
    snapshot.hooked.get_mut(&12).expect("there").is_first = false;
    snapshot.agent = AgentState::default();
    snapshot
}

pub fn event(reason: Reason, port: u16) -> FlowEvent {
    FlowEvent {
        time: "2026-11-23T06:00:00.000001Z".to_owned(),
        verdict: "drop".to_owned(),
        reason: reason.as_str().to_owned(),
        rule: None,
        hook: "device".to_owned(),
        pod: PodRef {
            namespace: "bookinfo".to_owned(),
            name: "reviews-v1".to_owned(),
            uid: "0d3e5a54-7c6f-4b3c-9a55-000000000001".to_owned(),
            slot: 1,
            cgroup: 1001,
        },
        process: Some(Process {
            pid: 4242,
            comm: "curl".to_owned(),
            uid: 1337,
        }),
        source: Side {
            address: "10.244.1.1".to_owned(),
            port: Some(40_000),
        },
        destination: Side {
            address: "203.0.113.10".to_owned(),
            port: Some(port),
        },
        protocol: "tcp".to_owned(),
        icmp: None,
        length: 74,
        ifindex: 11,
    }
}

pub fn events() -> Vec<FlowEvent> {
    let mut ping = event(Reason::NotAllowed, 0);
    ping.process = None;
    ping.protocol = "icmp".to_owned();
    (ping.source.port, ping.destination.port) = (None, None);
    ping.icmp = Some(Icmp { kind: 8, code: 0 });
    let mut stray = event(Reason::Excepted, 443);
    stray.pod = PodRef {
        cgroup: 991,
        ..PodRef::default()
    };
    stray.rule = Some("EgressLockdown/web allow.cidrs[0]".to_owned());
    stray.destination.address = "2001:db8::10".to_owned();
    vec![
        event(Reason::NotAllowed, 443),
        event(Reason::NotAllowed, 443),
        ping,
        stray,
    ]
}
