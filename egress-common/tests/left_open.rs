//! What a pod could have left open for later: bytes that are written after the verdict, flows that it
//! began with itself in another's name, and flows that are over.

use egress_common::limits::{FORGED_NS, TCP_RESET_NS};
use egress_common::maps::{Endpoint, ExactKey4, ExactRule, MODE_AUDIT, MODE_ENFORCE, network4};
use egress_common::memory::{Bytes, MemoryTables, Unsummed};
use egress_common::offload::Unwritten;
use egress_common::packet::Headers;
use egress_common::{Reason, Side, Verdict, decide};

const OWN: [u8; 4] = [10, 0, 0, 1];
const GATEWAY: [u8; 4] = [10, 0, 0, 9];
const OTHER: [u8; 4] = [192, 0, 2, 1];
const SECOND: u64 = 1_000_000_000;
const UDP: u8 = 17;
const TCP: u8 = 6;
const SYN: u8 = 2;
const ACK: u8 = 16;
const RST: u8 = 4;
/// Where the transport header begins.
const HERE: u32 = 34;

const fn pod(mode: u8) -> Endpoint {
    Endpoint {
        slot: 1,
        policy: 3,
        v4_be: OWN,
        exact_networks: 1 << network4(GATEWAY),
        ..Endpoint::nobodys(mode)
    }
}

fn tables() -> MemoryTables {
    let mut tables = MemoryTables::default();
    let key = ExactKey4 {
        policy: 3,
        addr_be: GATEWAY,
        port_be: 8443_u16.to_be_bytes(),
        proto: TCP,
        pad: 0,
    };
    let rule = ExactRule {
        rule: 0,
        reason: Reason::Gateway as u8,
        pad: 0,
    };
    tables.exact4.insert(key, rule);
    tables.now_ns.set(1000 * SECOND);
    tables
}

fn frame(proto: u8, ends: ([u8; 4], [u8; 4]), ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut body = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    if proto == TCP {
        body.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    } else {
        body.extend([0, 8, 0, 0]);
    }
    let total = u16::try_from(20 + body.len()).unwrap();
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0, 0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 7, 0, 0, 64, proto, 0, 0]);
    frame.extend(ends.0);
    frame.extend(ends.1);
    frame.extend(body);
    frame
}

fn sent(side: Side, mode: u8, frame: &[u8], checksum: Unwritten) -> (Verdict, Reason) {
    let packet = Unsummed {
        bytes: Bytes(frame),
        checksum,
    };
    let mut headers = Headers::default();
    let outcome = decide::from_pod(side, &packet, &pod(mode), &tables(), &mut headers);
    (outcome.verdict, outcome.reason)
}

fn sends(tables: &MemoryTables, mode: u8, frame: &[u8]) -> Reason {
    let mut headers = Headers::default();
    let endpoint = pod(mode);
    decide::from_pod(Side::Device, &Bytes(frame), &endpoint, tables, &mut headers).reason
}

fn gets(tables: &MemoryTables, mode: u8, frame: &[u8]) {
    decide::to_pod(Side::Device, &Bytes(frame), &pod(mode), tables);
}

#[test]
fn nothing_is_written_over_what_was_judged() {
    let allowed = frame(TCP, (OWN, GATEWAY), (40_000, 8443), SYN);
    let at = |at: u32| Unwritten {
        start: HERE.min(at),
        at,
    };
    for mode in [MODE_ENFORCE, MODE_AUDIT] {
        let own = sent(Side::Device, mode, &allowed, at(HERE + 16));
        assert_eq!(own, (Verdict::Pass, Reason::Gateway));
    }
    // The link address, the address, the port, the flags.
    for place in [0, 30, HERE + 2, HERE + 13] {
        let held = sent(Side::Device, MODE_ENFORCE, &allowed, at(place));
        assert_eq!(held, (Verdict::Drop, Reason::Malformed), "{place}");
        let audited = sent(Side::Device, MODE_AUDIT, &allowed, at(place));
        assert_eq!(audited, (Verdict::Audit, Reason::Malformed), "{place}");
    }
}

#[test]
fn a_packet_in_anothers_name_opens_no_flow_when_it_comes_back() {
    let hello = frame(UDP, (OTHER, OWN), (7777, 7001), 0);
    let answer = frame(UDP, (OWN, OTHER), (7001, 7777), 0);
    let tables = tables();
    assert_eq!(sends(&tables, MODE_AUDIT, &hello), Reason::Spoofed);
    gets(&tables, MODE_AUDIT, &hello);
    // From other addresses and ports, too: the node may have translated them.
    let translated = frame(UDP, (GATEWAY, OWN), (999, 7001), 0);
    gets(&tables, MODE_ENFORCE, &translated);
    for refused in [&answer, &frame(UDP, (OWN, GATEWAY), (7001, 999), 0)] {
        assert_eq!(sends(&tables, MODE_ENFORCE, refused), Reason::NotAllowed);
    }
    // What comes from outside does again afterwards.
    tables.now_ns.set(tables.now_ns.get() + FORGED_NS + 1);
    gets(&tables, MODE_ENFORCE, &translated);
    let reply = frame(UDP, (OWN, GATEWAY), (7001, 999), 0);
    assert_eq!(sends(&tables, MODE_ENFORCE, &reply), Reason::Reply);
}

#[test]
fn one_that_is_refused_for_its_checksum_opens_none_either() {
    let hello = frame(UDP, (OTHER, OWN), (7777, 7001), 0);
    let packet = Unsummed {
        bytes: Bytes(&hello),
        checksum: Unwritten { start: 30, at: 30 },
    };
    let tables = tables();
    let mut headers = Headers::default();
    let audited = pod(MODE_AUDIT);
    let outcome = decide::from_pod(Side::Device, &packet, &audited, &tables, &mut headers);
    assert_eq!(outcome.reason, Reason::Malformed);
    gets(&tables, MODE_AUDIT, &hello);
    let answer = frame(UDP, (OWN, OTHER), (7001, 7777), 0);
    assert_eq!(sends(&tables, MODE_ENFORCE, &answer), Reason::NotAllowed);
}

#[test]
fn a_flow_that_was_reset_ends_though_the_pod_goes_on() {
    let tables = tables();
    let answer = frame(TCP, (OWN, OTHER), (80, 7777), ACK);
    gets(
        &tables,
        MODE_ENFORCE,
        &frame(TCP, (OTHER, OWN), (7777, 80), SYN),
    );
    assert_eq!(sends(&tables, MODE_ENFORCE, &answer), Reason::Reply);
    gets(
        &tables,
        MODE_ENFORCE,
        &frame(TCP, (OTHER, OWN), (7777, 80), RST),
    );
    let mut ends = Vec::new();
    for _ in 0..TCP_RESET_NS / SECOND + 2 {
        ends.push(sends(&tables, MODE_ENFORCE, &answer));
        tables.now_ns.set(tables.now_ns.get() + SECOND + 1);
    }
    assert_eq!(ends[1], Reason::Reply);
    assert_eq!(ends.last(), Some(&Reason::NotAllowed));
}
