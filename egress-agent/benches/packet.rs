//! Nanoseconds that each way through the kernel programs costs, beside an empty program, in one
//! run. `cargo xtask bench` builds what it needs and runs it; `-- --json` prints it for machines.

#[path = "../tests/support/mod.rs"]
mod support;

use egress_common::limits::MAX_PREFIXES;
use egress_common::maps::{
    DENY_DROP, Endpoint, FLAG_COVERED, FLOW_PAD, Flow, MODE_AUDIT, MODE_OFF, NO_RULE, PrefixKey4,
};
use egress_common::memory::{MemoryTables, POLICY_BITS};
use egress_common::packet::{TCP, TCP_ACK, TCP_SYN, UDP, mapped};
use egress_common::{Reason, flow};
use support::kernel::{Kernel, now_ns};
use support::policy::{
    self, DNS4, EXCEPTION4, GATEWAY4, GATEWAY6, OUTSIDE4, OUTSIDE6, OWN4, OWN6, POD4,
};

/// Runs of one measurement; the kernel reports their average.
const REPEAT: u32 = 100_000;
/// Rounds through all cases. What is printed is the median, so that a disturbed round is left out.
const ROUNDS: usize = 21;

/// Slot of a pod that has had a connection from outside.
const WITH_CLIENTS: u32 = 9;

struct Case {
    name: &'static str,
    program: &'static str,
    frame: Vec<u8>,
    endpoint: Endpoint,
    /// Target of the project, nanoseconds over the empty program.
    target: Option<f64>,
}

/// An Ethernet frame with 32 bytes of payload behind its transport header.
fn frame(dst: &[u8], proto: u8, port: u16, flags: u8) -> Vec<u8> {
    let mut transport = 40_000_u16.to_be_bytes().to_vec();
    transport.extend(port.to_be_bytes());
    if proto == TCP {
        transport.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        transport.extend([0, 40, 0, 0]);
    }
    transport.extend([0x55; 32]);
    let len = u16::try_from(transport.len()).expect("small");
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if dst.len() == 4 {
        frame.extend([0x08, 0, 0x45, 0]);
        frame.extend((len + 20).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, proto, 0, 0]);
        frame.extend(OWN4);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(len.to_be_bytes());
        frame.extend([proto, 64]);
        frame.extend(OWN6);
    }
    frame.extend(dst);
    frame.extend(transport);
    frame
}

/// `n` prefixes of 24 bits beside those of the policy.
fn many_prefixes(tables: &mut MemoryTables, n: u32) {
    let policy_be = policy::POLICY.to_be_bytes();
    let rule = policy::prefix(
        &[policy::range(TCP, 1, 1023, Reason::Exception, 4)],
        Reason::NotAllowed,
        NO_RULE,
    );
    for i in 0..n.min(MAX_PREFIXES / 2) {
        let [_, a, b, c] = (i << 8).to_be_bytes();
        let key = PrefixKey4 {
            policy_be,
            addr_be: [a.wrapping_add(100), b, c, 0],
        };
        tables.prefix4.insert((key, POLICY_BITS + 24), rule);
    }
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    let held = policy::endpoints()[0];
    let audited = Endpoint {
        mode: MODE_AUDIT,
        ..held
    };
    let with_clients = Endpoint {
        slot: WITH_CLIENTS,
        ..held
    };
    let off = Endpoint {
        mode: MODE_OFF,
        policy: 0,
        ..held
    };
    let case = |name, program, frame: &[u8], endpoint, target| Case {
        name,
        program,
        frame: frame.to_vec(),
        endpoint,
        target,
    };
    let from = "sp_from_pod";
    vec![
        case(
            "not held",
            from,
            &frame(&OUTSIDE4, TCP, 443, TCP_ACK),
            off,
            None,
        ),
        case(
            "gateway, IPv4",
            from,
            &frame(&GATEWAY4, TCP, 8443, TCP_ACK),
            held,
            Some(60.0),
        ),
        case(
            "gateway, IPv6",
            from,
            &frame(&GATEWAY6, TCP, 8443, TCP_ACK),
            held,
            Some(60.0),
        ),
        case(
            "gateway, SYN",
            from,
            &frame(&GATEWAY4, TCP, 8443, TCP_SYN),
            held,
            None,
        ),
        case("DNS, UDP", from, &frame(&DNS4, UDP, 53, 0), held, None),
        case(
            "pod of the cluster",
            from,
            &frame(&POD4, TCP, 8080, TCP_ACK),
            held,
            None,
        ),
        case(
            "exception by CIDR",
            from,
            &frame(&EXCEPTION4, TCP, 80, TCP_ACK),
            held,
            None,
        ),
        case(
            "reply to outside",
            from,
            &frame(&OUTSIDE4, TCP, 80, TCP_ACK),
            with_clients,
            None,
        ),
        case(
            "drop, IPv4",
            from,
            &frame(&OUTSIDE4, TCP, 443, TCP_ACK),
            held,
            Some(80.0),
        ),
        case(
            "drop, IPv6",
            from,
            &frame(&OUTSIDE6, TCP, 443, TCP_ACK),
            held,
            Some(80.0),
        ),
        case(
            "drop, UDP",
            from,
            &frame(&OUTSIDE4, UDP, 443, 0),
            held,
            Some(80.0),
        ),
        case(
            "audit, no event",
            from,
            &frame(&OUTSIDE4, TCP, 443, TCP_ACK),
            audited,
            None,
        ),
        case(
            "to the pod, TCP",
            "sp_to_pod",
            &frame(&OWN4, TCP, 80, TCP_ACK),
            held,
            None,
        ),
        case(
            "to the pod, UDP",
            "sp_to_pod",
            &frame(&OWN4, UDP, 80, 0),
            held,
            None,
        ),
    ]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let json = std::env::args().any(|argument| argument == "--json");
    let prefixes = 10_000;
    let mut kernel = Kernel::load();
    let mut tables = policy::tables();
    many_prefixes(&mut tables, prefixes);
    kernel.fill(&tables);
    // No events: what is measured is the way that a flood takes.
    kernel.configure(0, 0);
    let key = flow::key(
        WITH_CLIENTS,
        (false, TCP),
        mapped(u32::from_ne_bytes(OUTSIDE4)),
        80_u16.to_be(),
        40_000_u16.to_be(),
    );
    kernel.set_flow_in(
        &key,
        &Flow {
            seen_ns: now_ns(),
            state: 0,
            pad: [0; FLOW_PAD],
        },
    );
    // Test runs are of the root cgroup, whose id is 1.
    let covered = Endpoint {
        flags: FLAG_COVERED,
        ways: 1,
        on_deny: DENY_DROP,
        ..policy::endpoints()[0]
    };
    kernel.set_cgroup(1, &covered);

    let cases = cases();
    let mut empty = Vec::new();
    let mut cgroup = Vec::new();
    let mut times = vec![Vec::new(); cases.len()];
    let plain = frame(&GATEWAY4, TCP, 8443, TCP_ACK);
    for _ in 0..ROUNDS {
        let base = kernel.time("sp_empty", &plain, REPEAT);
        empty.push(base);
        cgroup.push(kernel.time_cgroup("sp_cg_egress", &plain, REPEAT) - base);
        for (case, times) in cases.iter().zip(&mut times) {
            kernel.set_device(&case.endpoint);
            times.push(kernel.time(case.program, &case.frame, REPEAT) - base);
        }
    }
    let mut rows: Vec<(&str, &str, f64, Option<f64>)> = cases
        .iter()
        .zip(times)
        .map(|(case, times)| (case.name, case.program, median(times), case.target))
        .collect();
    rows.push((
        "cgroup hook, device hook stands",
        "sp_cg_egress",
        median(cgroup),
        None,
    ));
    print(json, median(empty), prefixes, &rows, &instructions(&kernel));
}

fn instructions(kernel: &Kernel) -> Vec<(String, u32)> {
    let mut all: Vec<_> = kernel
        .programs()
        .map(|(name, program)| {
            let info = program.info().expect("information about a loaded program");
            (
                name.to_owned(),
                info.verified_instruction_count().unwrap_or(0),
            )
        })
        .collect();
    all.sort();
    all
}

fn print(
    json: bool,
    empty: f64,
    prefixes: u32,
    rows: &[(&str, &str, f64, Option<f64>)],
    instructions: &[(String, u32)],
) {
    if json {
        let ways: Vec<_> = rows
            .iter()
            .map(|(name, program, over, target)| {
                serde_json::json!({
                    "way": name, "program": program, "over_empty_ns": over, "target_ns": target,
                })
            })
            .collect();
        let verified: serde_json::Map<_, _> = instructions
            .iter()
            .map(|(name, n)| (name.clone(), (*n).into()))
            .collect();
        println!(
            "{:#}",
            serde_json::json!({
                "empty_ns": empty, "prefixes": prefixes, "ways": ways,
                "verified_instructions": verified,
            })
        );
        return;
    }
    println!(
        "an empty program: {empty:.0} ns; median of {ROUNDS} rounds of {REPEAT} packets each,"
    );
    println!("{prefixes} prefixes in the policy\n");
    println!(
        "{:<32} {:<13} {:>15} {:>7}",
        "WAY", "PROGRAM", "NS OVER EMPTY", "TARGET"
    );
    for (name, program, over, target) in rows {
        let target = match target {
            Some(target) if over <= target => format!("{target:.0} ok"),
            Some(target) => format!("{target:.0} MISSED"),
            None => String::new(),
        };
        println!("{name:<32} {program:<13} {over:>15.1} {target:>7}");
    }
    println!("\n{:<32} {:>15}", "PROGRAM", "VERIFIED INSNS");
    for (name, n) in instructions {
        println!("{name:<32} {n:>15}");
    }
}
