//! Nanoseconds that fence and gate for devices cost a packet that the node forwards, beside forwarding it
//! without them, in one run. `cargo xtask bench` runs it; `-- --json` prints it for machines.
//!
//! An XDP program hands frames to a veth's stack as if its other end had sent them, in a network namespace
//! of this process, which has one route: to a device that drops them.

use std::collections::BTreeSet;
use std::process::Command;

use aya::programs::tc::TcAttachType;
use aya::programs::{SchedClassifier, TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use egress_agent::fence::{Fence, Part};
use egress_common::maps::MARK_PASSED;
use object::write::{Object, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
};

/// Frames of one measurement; the kernel reports their average.
const FRAMES: u32 = 100_000;
/// The kernel takes so many at once, as a driver would.
const BATCH: u32 = 64;
/// Rounds through all cases. What is printed is the median, so that a disturbed round is left out.
const ROUNDS: usize = 21;
/// Other devices in the sets.
const OTHERS: std::ops::Range<u32> = 1000..1250;

/// Bytes of Ethernet's and IP's headers, and two more: whole words.
const HEADERS: usize = 36;

const MAC: &str = "02:00:00:00:00:01";

/// What stands, and for whom.
struct Case {
    name: &'static str,
    fence: Option<bool>,
    gate: Option<bool>,
    /// A hook has passed what comes.
    is_marked: bool,
    /// What its cost is over.
    over: usize,
}

const CASES: [Case; 7] = [
    case("without fence and gate", None, None, false, 0),
    case("gate, open to the device", None, Some(true), false, 0),
    case("fence, not for the device", Some(false), None, false, 0),
    case(
        "both, as for pods not held",
        Some(false),
        Some(true),
        false,
        0,
    ),
    case("a hook that marks, no more", None, None, true, 0),
    case("both, as for held pods", Some(true), Some(true), true, 4),
    case("gate, closed: dropped", None, Some(false), false, 0),
];

const fn case(
    name: &'static str,
    fence: Option<bool>,
    gate: Option<bool>,
    is_marked: bool,
    over: usize,
) -> Case {
    Case {
        name,
        fence,
        gate,
        is_marked,
        over,
    }
}

/// An instruction of BPF: code, registers (source, destination), offset, immediate value.
fn instruction(code: u8, registers: u8, offset: i16, value: i32) -> Vec<u8> {
    let mut bytes = vec![code, registers];
    bytes.extend(offset.to_ne_bytes());
    bytes.extend(value.to_ne_bytes());
    bytes
}

/// Writes the frame's headers, which forwarding has changed where the kernel uses its memory again, and
/// returns `XDP_PASS`.
fn pass(frame: &[u8]) -> Vec<u8> {
    let headers = &frame[..HEADERS];
    let end = i32::try_from(HEADERS).expect("short");
    let stores = i16::try_from(HEADERS / 4).expect("short");
    let mut code = [
        // r2 = xdp_md.data, r3 = xdp_md.data_end, r4 = behind the headers
        instruction(0x61, 0x12, 0, 0),
        instruction(0x61, 0x13, 4, 0),
        instruction(0xbf, 0x24, 0, 0),
        instruction(0x07, 0x04, 0, end),
        // if r4 > r3 go to the end
        instruction(0x2d, 0x34, stores, 0),
    ]
    .concat();
    for (word, at) in headers.chunks(4).zip((0..).step_by(4)) {
        let word = i32::from_ne_bytes(word.try_into().expect("whole words"));
        code.extend(instruction(0x62, 0x02, at, word));
    }
    code.extend(instruction(0xb7, 0, 0, 2));
    code.extend(instruction(0x95, 0, 0, 0));
    code
}

/// Marks a packet, as a hook does, and leaves it to the programs after this one.
fn mark() -> Vec<u8> {
    let bit = i32::try_from(MARK_PASSED).expect("a low bit");
    [
        instruction(0xb7, 0x02, 0, bit),
        // __sk_buff.mark = r2
        instruction(0x63, 0x21, 8, 0),
        instruction(0xb7, 0, 0, -1),
        instruction(0x95, 0, 0, 0),
    ]
    .concat()
}

/// Both of them.
fn programs(frame: &[u8]) -> Ebpf {
    let endian = if cfg!(target_endian = "big") {
        Endianness::Big
    } else {
        Endianness::Little
    };
    let mut elf = Object::new(BinaryFormat::Elf, Architecture::Bpf, endian);
    for (section, name, code) in [("xdp", "pass", pass(frame)), ("classifier", "mark", mark())] {
        let id = elf.add_section(Vec::new(), section.into(), SectionKind::Text);
        let value = elf.append_section_data(id, &code, 8);
        elf.add_symbol(Symbol {
            name: name.into(),
            value,
            size: code.len() as u64,
            kind: SymbolKind::Text,
            scope: SymbolScope::Linkage,
            weak: false,
            section: SymbolSection::Section(id),
            flags: SymbolFlags::None,
        });
    }
    let license = elf.add_section(Vec::new(), "license".into(), SectionKind::Data);
    elf.append_section_data(license, b"GPL\0", 1);
    let elf = elf.write().expect("an object file");
    EbpfLoader::new().load(&elf).expect("two small programs")
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.expect("run ip").success(), "ip {arguments}");
}

/// A namespace that forwards what comes by `pod` to `out`, which has no carrier.
fn node() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
    // Nothing comes but what is counted.
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("no IPv6");
    ip(&format!(
        "link add pod address {MAC} type veth peer name inside"
    ));
    ip("link add out type veth peer name nowhere");
    ip("address add 192.0.2.1/24 dev pod");
    ip("address add 198.51.100.1/24 dev out");
    for device in ["pod", "inside", "out"] {
        ip(&format!("link set {device} up"));
    }
    ip("neighbour add 198.51.100.2 dev out lladdr 02:00:00:00:00:09 nud permanent");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forward");
}

/// 64 bytes of UDP from the pod to the outside.
fn frame() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0];
    let mut header = [
        0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 2, 198, 51, 100, 2,
    ];
    let words = header
        .chunks(2)
        .map(|it| u32::from(it[0]) << 8 | u32::from(it[1]));
    let sum: u32 = words.sum();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("ten words");
    header[10..12].copy_from_slice(&(!sum).to_be_bytes());
    frame.extend(header);
    frame.extend([0x9c, 0x40, 1, 0xbb, 0, 30, 0, 0]);
    frame.extend([0x55; 22]);
    frame
}

/// Sets the part up for this device, or takes it down.
fn set(part: &mut Fence, has_device: Option<bool>, ifindex: u32) {
    let Some(has_device) = has_device else {
        part.lower().expect("taken down");
        return;
    };
    let mut devices: BTreeSet<u32> = OTHERS.collect();
    if has_device {
        devices.insert(ifindex);
    }
    part.raise(&devices).expect("set up");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let json = std::env::args().any(|argument| argument == "--json");
    node();
    let ifindex = nix::net::if_::if_nametoindex("pod").expect("an index");
    let mut fence = Fence::open(Part::Fence).expect("nf_tables").0;
    let mut gate = Fence::open(Part::Gate).expect("nf_tables").0;
    let frame = frame();
    let mut programs = programs(&frame);
    let mark = programs.program_mut("mark").expect("a program");
    let mark: &mut SchedClassifier = mark.try_into().expect("for devices");
    mark.load().expect("load");
    let pass = programs.program_mut("pass").expect("a program");
    let pass: &mut Xdp = pass.try_into().expect("for XDP");
    pass.load().expect("load");

    let mut times = vec![Vec::new(); CASES.len()];
    for _ in 0..ROUNDS {
        for (case, times) in CASES.iter().zip(&mut times) {
            set(&mut fence, case.fence, ifindex);
            set(&mut gate, case.gate, ifindex);
            let link = case.is_marked.then(|| {
                let mark = programs.program_mut("mark").expect("a program");
                let mark: &mut SchedClassifier = mark.try_into().expect("for devices");
                mark.attach("pod", TcAttachType::Ingress).expect("attach")
            });
            let pass = programs.program("pass").expect("a program");
            let pass: &Xdp = pass.try_into().expect("for XDP");
            let before = forwarded();
            times.push(time(pass, &frame, ifindex));
            let counted = (
                forwarded() - before,
                dropped(&mut fence) + dropped(&mut gate),
            );
            let all = u64::from(FRAMES);
            let expected = if case.gate == Some(false) {
                (0, all)
            } else {
                (all, 0)
            };
            assert_eq!(counted, expected, "forwarded, dropped; {}", case.name);
            if let Some(link) = link {
                let mark = programs.program_mut("mark").expect("a program");
                let mark: &mut SchedClassifier = mark.try_into().expect("for devices");
                mark.detach(link).expect("detach");
            }
        }
    }
    print(json, &times.into_iter().map(median).collect::<Vec<f64>>());
}

/// Packets that this namespace has forwarded so far.
fn forwarded() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").expect("counters");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut fields = names.split(' ').zip(values.split(' '));
    let (_, count) = fields
        .find(|(name, _)| *name == "ForwDatagrams")
        .expect("IP");
    count.parse().expect("a number")
}

/// Packets that one of them has dropped since it was set up.
fn dropped(part: &mut Fence) -> u64 {
    part.dropped().expect("its counters").values().sum()
}

/// Nanoseconds of one frame, from the driver to the device that it leaves by.
fn time(pass: &Xdp, frame: &[u8], ifindex: u32) -> f64 {
    // struct xdp_md: data, its end, metadata, device, queue, device to leave by.
    let end = u32::try_from(frame.len()).expect("a short frame");
    let context: Vec<u8> = [0, end, 0, ifindex, 0, 0]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&context),
        repeat: FRAMES,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::new()
    };
    let result = pass.test_run(options).expect("BPF_PROG_TEST_RUN");
    result.duration.as_secs_f64() * 1e9
}

fn print(json: bool, times: &[f64]) {
    let rows: Vec<(&str, f64, &str, f64)> = CASES
        .iter()
        .zip(times)
        .map(|(case, time)| (case.name, *time, CASES[case.over].name, times[case.over]))
        .collect();
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, time, over, base)| {
                serde_json::json!({"case": name, "ns": time, "over": over, "more_ns": time - base})
            })
            .collect();
        println!("{:#}", serde_json::json!({"forwarding": rows}));
        return;
    }
    println!("forwarding a packet; median of {ROUNDS} rounds of {FRAMES} each,");
    println!("{} other devices in the sets\n", OTHERS.len());
    println!(
        "{:<30} {:>5} {:>6} {:>6}  OVER",
        "CASE", "NS", "MORE", "RATIO"
    );
    for (name, time, over, base) in rows {
        let (more, ratio) = (time - base, time / base);
        println!("{name:<30} {time:>5.0} {more:>6.0} {ratio:>6.2}  {over}");
    }
}
