//! The kernel's verdict about a frame is that of `decide()` run natively, reason by reason.
//!
//! 100,000 frames of a fixed seed; `SALLYPORT_SEED` and `SALLYPORT_FRAMES` choose others.

mod support;

use std::collections::BTreeMap;

use egress_common::frames::{Direction, Random};
use egress_common::maps::{Endpoint, PodCounters};
use egress_common::memory::Bytes;
use egress_common::packet::Headers;
use egress_common::{Reason, Side, Verdict, decide};
use support::kernel::{Kernel, now_ns};
use support::policy;

const UNSPEC: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

/// The reason that was counted between two looks at the counters, and how often.
fn counted(before: &[PodCounters], after: &[PodCounters]) -> Vec<(Reason, u64)> {
    Reason::ALL
        .iter()
        .filter_map(|reason| {
            let sum = |counters: &[PodCounters]| -> u64 {
                counters
                    .iter()
                    .map(|cpu| cpu.reasons[*reason as usize].packets)
                    .sum()
            };
            let packets = sum(after) - sum(before);
            (packets != 0).then_some((*reason, packets))
        })
        .collect()
}

#[test]
fn needs_root_kernel_and_native_decide_alike() {
    if !skipped("needs_root_kernel_and_native_decide_alike") {
        decide_alike(&mut Kernel::load());
    }
}

#[test]
fn needs_root_kernel_in_parts_and_native_decide_alike() {
    if !skipped("needs_root_kernel_in_parts_and_native_decide_alike") {
        decide_alike(&mut Kernel::load_in_parts());
    }
}

fn decide_alike(kernel: &mut Kernel) {
    let seed = setting("SALLYPORT_SEED", 20_261_123);
    let frames = setting("SALLYPORT_FRAMES", 100_000);
    println!("seed {seed}, {frames} frames");

    let mut random = Random::new(seed);
    let tables = policy::tables();
    kernel.fill(&tables);
    let pools = policy::pools();
    let endpoints = policy::endpoints();

    let mut ends: BTreeMap<(Verdict, Reason), u64> = BTreeMap::new();
    let mut refused = 0_u64;
    let mut endpoint = endpoints[0];
    for i in 0..frames {
        if i % 500 == 0 {
            endpoint = endpoints[usize::try_from(i / 500).expect("small") % endpoints.len()];
            kernel.set_device(&endpoint);
        }
        tables.now_ns.set(now_ns());
        if random.chance(25) {
            let frame = pools.frame(&mut random, Direction::ToPod);
            match kernel.run("sp_to_pod", &frame) {
                None => refused += 1,
                Some((code, _)) => {
                    assert_eq!(
                        code, UNSPEC,
                        "frame {i}: to the pod everything passes: {frame:02x?}"
                    );
                    decide::to_pod(Side::Device, &Bytes(&frame), &endpoint, &tables);
                }
            }
            continue;
        }
        let frame = pools.frame(&mut random, Direction::FromPod);
        let before = kernel.counters(endpoint.slot);
        let Some((code, out)) = kernel.run("sp_from_pod", &frame) else {
            refused += 1;
            continue;
        };
        let after = kernel.counters(endpoint.slot);
        let mut headers = Headers::default();
        let outcome = decide::from_pod(
            Side::Device,
            &Bytes(&frame),
            &endpoint,
            &tables,
            &mut headers,
        );
        let what = || format!("frame {i} of seed {seed}: native {outcome:?}, {frame:02x?}");
        assert_eq!(
            counted(&before, &after),
            [(outcome.reason, 1)],
            "{}",
            what()
        );
        check_code(code, outcome.verdict, &endpoint, &frame, &out, &what);
        *ends.entry((outcome.verdict, outcome.reason)).or_default() += 1;
    }
    for ((verdict, reason), count) in &ends {
        println!("{:>7} {:<22} {count}", verdict.as_str(), reason.as_str());
    }
    println!("{refused} frames that the kernel's test harness itself refuses");
    assert!(
        refused * 5 < frames,
        "too many frames never reached the program"
    );
    let not_here = [
        // The cgroup hook's own, pods that are not held, and full tables.
        Reason::NotHeld,
        Reason::Loopback,
        Reason::Covered,
        Reason::UnknownPod,
        Reason::TableFull,
    ];
    for reason in Reason::ALL
        .iter()
        .filter(|reason| !not_here.contains(reason))
    {
        assert!(
            frames < 50_000 || ends.keys().any(|(_, end)| end == reason),
            "no frame ended as {reason:?}: the generator has a gap"
        );
    }
}

fn check_code(
    code: i32,
    verdict: Verdict,
    endpoint: &Endpoint,
    frame: &[u8],
    out: &[u8],
    what: &dyn Fn() -> String,
) {
    match verdict {
        Verdict::Pass | Verdict::Audit => {
            assert_eq!(code, UNSPEC, "{}", what());
            assert_eq!(out, frame, "a passing frame is not touched: {}", what());
        }
        Verdict::Reject if code == REDIRECT => check_answer(endpoint, frame, out, what),
        Verdict::Drop | Verdict::Reject => assert_eq!(code, SHOT, "{}", what()),
    }
}

/// Ones' complement sum over big-endian 16-bit words (RFC 1071); 0xffff if a checksum is right.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

/// The answer to a rejected frame is a well-formed ICMP error to the pod.
fn check_answer(endpoint: &Endpoint, frame: &[u8], out: &[u8], what: &dyn Fn() -> String) {
    let what = format!("{}; answer {out:02x?}", what());
    assert_eq!(out[..6], frame[6..12], "to the sender: {what}");
    assert_eq!(out[6..12], frame[..6], "from the device: {what}");
    assert_eq!(out[12..14], frame[12..14], "{what}");
    if frame[12..14] == [0x08, 0] {
        // The whole header of TCP, 8 bytes of UDP.
        let quoted = if frame[23] == 6 { 40 } else { 28 };
        assert_eq!(out.len(), 14 + 20 + 8 + quoted, "{what}");
        assert_eq!(sum(&out[14..34]), 0xffff, "IP checksum: {what}");
        assert_eq!(sum(&out[34..]), 0xffff, "ICMP checksum: {what}");
        assert_eq!(out[23], 1, "{what}");
        assert_eq!(out[30..34], endpoint.v4_be, "{what}");
        assert_eq!(out[26..30], frame[30..34], "{what}");
        assert_eq!(out[34..36], [3, 13], "{what}");
        assert_eq!(
            out[42..],
            frame[14..14 + quoted],
            "quotes what was sent: {what}"
        );
    } else {
        let quoted = if frame[20] == 6 { 60 } else { 48 };
        assert_eq!(out.len(), 14 + 40 + 8 + quoted, "{what}");
        assert_eq!(out[20], 58, "{what}");
        assert_eq!(out[38..54], endpoint.v6_be, "{what}");
        assert_eq!(out[22..38], frame[38..54], "{what}");
        assert_eq!(out[54..56], [1, 1], "{what}");
        assert_eq!(
            out[62..],
            frame[14..14 + quoted],
            "quotes what was sent: {what}"
        );
        let mut pseudo = out[22..54].to_vec();
        pseudo.extend([
            0,
            0,
            0,
            u8::try_from(8 + quoted).expect("small"),
            0,
            0,
            0,
            58,
        ]);
        pseudo.extend(&out[54..]);
        assert_eq!(sum(&pseudo), 0xffff, "ICMPv6 checksum: {what}");
    }
}

#[test]
fn needs_root_the_kernel_accepts_every_program() {
    if !skipped("needs_root_the_kernel_accepts_every_program") {
        all_accepted(&Kernel::load());
    }
}

#[test]
fn needs_root_the_kernel_accepts_all_in_parts() {
    if !skipped("needs_root_the_kernel_accepts_all_in_parts") {
        all_accepted(&Kernel::load_in_parts());
    }
}

fn all_accepted(kernel: &Kernel) {
    for (name, program) in kernel.programs() {
        let info = program.info().expect("information about a loaded program");
        let instructions = info.verified_instruction_count().expect("since Linux 5.16");
        println!("{name}: {instructions} instructions verified");
        assert!(
            instructions < 500_000,
            "{name} is near the verifier's limit of a million"
        );
    }
}

/// Prints and returns true if tests that need root were switched off by name.
fn skipped(name: &str) -> bool {
    let off = std::env::var_os("SALLYPORT_SKIP_ROOT_TESTS").is_some_and(|value| value == "1");
    if off {
        println!("skipped: {name}: needs root");
    }
    off
}
