//! What `egressctl explain` says of the kernel is what the loaded programs do: the same pods, the
//! same packets, once by the pinned maps and once by `BPF_PROG_TEST_RUN`.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egress_agent::datapath::pinned::Pinned;
use egress_agent::explain::frame::{self, Kind};
use egress_agent::explain::kernel::PodView;
use egress_agent::explain::{self, Evidence, Result, Target};
use egress_common::frames::Random;
use egress_common::maps::{Endpoint, MODE_OFF, PodCounters, name};
use egress_common::{Reason, Verdict};
use support::kernel::Kernel;
use support::policy;

const UNSPEC: i32 = -1;
const PORTS: [u16; 8] = [8443, 8444, 53, 80, 90, 91, 443, 4789];
const KINDS: [Kind; 3] = [Kind::Tcp, Kind::Udp, Kind::Icmp];

/// Held, audited, rejecting, of one family and of both; one that no lockdown holds, and one whose
/// policy has no rules.
fn pods() -> Vec<Endpoint> {
    let mut pods = policy::endpoints();
    let exempt = Endpoint {
        slot: 11,
        mode: MODE_OFF,
        ..pods[0]
    };
    let bare = Endpoint {
        slot: 12,
        policy: policy::POLICY + 1,
        near4: Default::default(),
        near6: Default::default(),
        ..pods[0]
    };
    pods.extend([exempt, bare]);
    pods
}

/// Every address that the policy speaks of, and others beside them.
fn destinations() -> Vec<IpAddr> {
    let pools = policy::pools();
    let mut random = Random::new(20_261_123);
    let mut found: BTreeSet<IpAddr> = BTreeSet::new();
    for mut peer in pools.peers4 {
        found.insert(peer.into());
        for _ in 0..3 {
            peer[3] = random.byte();
            found.insert(peer.into());
        }
    }
    for mut peer in pools.peers6 {
        found.insert(peer.into());
        for _ in 0..3 {
            peer[15] = random.byte();
            found.insert(peer.into());
        }
    }
    for other in [
        "169.254.169.254",
        "127.0.0.1",
        "255.255.255.255",
        "ff02::1",
        "fe80::1",
    ] {
        found.insert(other.parse().expect("an address"));
    }
    found.into_iter().collect()
}

/// The reason that was counted between two looks at the counters.
fn counted(before: &[PodCounters], after: &[PodCounters]) -> Vec<Reason> {
    let sum = |counters: &[PodCounters], reason: Reason| -> u64 {
        let of_cpu = |cpu: &PodCounters| cpu.reasons[reason as usize].packets;
        counters.iter().map(of_cpu).sum()
    };
    let grown = |reason: &Reason| sum(after, *reason) != sum(before, *reason);
    Reason::ALL.iter().copied().filter(grown).collect()
}

fn target(kind: Kind, address: IpAddr, port: u16) -> Target {
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let text = match kind {
        Kind::Tcp => format!("tcp://{host}:{port}"),
        Kind::Udp => format!("udp://{host}:{port}"),
        Kind::Icmp => format!("icmp://{host}"),
    };
    text.parse().expect("a target")
}

#[test]
fn needs_root_explain_says_what_the_programs_do() {
    if skipped("needs_root_explain_says_what_the_programs_do") {
        return;
    }
    let mut kernel = Kernel::load();
    kernel.fill(&policy::tables());
    let pinned = Pinned::open(kernel.bpffs()).expect("pins");
    let mut ends: BTreeMap<(Verdict, Reason), u64> = BTreeMap::new();
    for pod in pods() {
        kernel.set_device(&pod);
        let view = PodView::read(&pinned, pod, false).expect("a view");
        for destination in destinations() {
            for kind in KINDS {
                for port in PORTS {
                    let Some(outcome) = view.verdict(kind, destination, port) else {
                        assert_eq!(view.source(destination), None, "{destination}");
                        continue;
                    };
                    let end = compare(&kernel, &pod, &view, (kind, destination, port), outcome);
                    *ends.entry(end).or_default() += 1;
                }
            }
        }
    }
    println!("{ends:#?}");
    for end in [
        (Verdict::Pass, Reason::Gateway),
        (Verdict::Pass, Reason::Dns),
        (Verdict::Pass, Reason::Cluster),
        (Verdict::Pass, Reason::Exception),
        (Verdict::Pass, Reason::NotHeld),
        (Verdict::Drop, Reason::NotAllowed),
        (Verdict::Drop, Reason::GatewayPort),
        (Verdict::Drop, Reason::Excepted),
        (Verdict::Reject, Reason::NotAllowed),
        (Verdict::Audit, Reason::NotAllowed),
    ] {
        assert!(ends.contains_key(&end), "no packet ended as {end:?}");
    }
}

/// Sends the packet through the loaded program, and asks `explain` about the same.
fn compare(
    kernel: &Kernel,
    pod: &Endpoint,
    view: &PodView,
    (kind, destination, port): (Kind, IpAddr, u16),
    outcome: egress_common::decide::Outcome,
) -> (Verdict, Reason) {
    let source = view.source(destination).expect("an address of that family");
    let frame = frame::frame(kind, source, destination, port).expect("of one family");
    let before = kernel.counters(pod.slot);
    let (code, _) = kernel
        .run("sp_from_pod", &frame)
        .expect("the kernel takes a sound frame");
    let what = format!("pod {pod:?}: {kind:?} to {destination} port {port}: {outcome:?}");
    let passes = code == UNSPEC;
    let said = matches!(outcome.verdict, Verdict::Pass | Verdict::Audit);
    assert_eq!(said, passes, "{what}");
    if pod.mode != MODE_OFF {
        let reasons = counted(&before, &kernel.counters(pod.slot));
        assert_eq!(reasons, [outcome.reason], "{what}");
    }
    let answer = explain::explain(&Evidence {
        pod: "n/p",
        target: &target(kind, destination, port),
        addresses: &[destination],
        view: Some(view),
        uncovered: None,
        rules: &BTreeMap::new(),
        policy: None,
    });
    let allowed = if passes {
        Result::Allowed
    } else {
        Result::Denied
    };
    assert_eq!(answer.result, allowed, "{what}: {answer:?}");
    assert_eq!(answer.kernel.direct[0].reason, outcome.reason.as_str());
    (outcome.verdict, outcome.reason)
}

#[test]
fn needs_root_explain_follows_the_maps_and_leaves_them_alone() {
    if skipped("needs_root_explain_follows_the_maps_and_leaves_them_alone") {
        return;
    }
    let mut kernel = Kernel::load();
    let pinned = Pinned::open(kernel.bpffs()).expect("pins");
    let pod = policy::endpoints()[0];
    kernel.set_device(&pod);
    let idle = kernel.counters(pod.slot);
    let gateway: IpAddr = policy::GATEWAY4.into();
    let dns: IpAddr = policy::DNS4.into();
    let ask = |kind, destination, port| {
        let view = PodView::read(&pinned, pod, false).expect("a view");
        let outcome = view.verdict(kind, destination, port).expect("IPv4");
        (outcome.verdict, outcome.reason, view.gateways().len())
    };
    // The pod's own entry names the gateway already; nothing else is known of its policy.
    assert_eq!(
        ask(Kind::Udp, dns, 53),
        (Verdict::Drop, Reason::NotAllowed, 0)
    );
    kernel.fill(&policy::tables());
    assert_eq!(ask(Kind::Udp, dns, 53), (Verdict::Pass, Reason::Dns, 2));
    assert_eq!(
        ask(Kind::Tcp, gateway, 8443),
        (Verdict::Pass, Reason::Gateway, 2)
    );
    for map in [name::FLOWS_IN, name::FLOWS_OUT, name::ORIGINS] {
        let used = pinned.used(map).expect("a map").unwrap_or(0);
        assert_eq!(used, 0, "asking left an entry in {map}");
    }
    assert_eq!(counted(&idle, &kernel.counters(pod.slot)), []);
}

fn skipped(name: &str) -> bool {
    let off = std::env::var_os("SALLYPORT_SKIP_ROOT_TESTS").is_some_and(|value| value == "1");
    if off {
        println!("skipped: {name}: needs root");
    }
    off
}
