//! Every protocol above IP, and packets of the known ones that open nothing.

use egress_common::Reason::{IcmpErrorUnrelated, NeighbourForged, NotAllowed, Protocol};

use super::pod;
use crate::case::{BOTH, Case, Group::Protocols, Need, Trouble};
use crate::craft::{self, protocol};
use crate::ground::Ground;

pub(super) const CASES: [Case; 10] = [
    pod(
        (50, Protocols),
        "every IP protocol but TCP, UDP, SCTP and ICMP",
        BOTH,
        &[Protocol],
        every,
    ),
    pod((51, Protocols), "SCTP INIT", BOTH, &[NotAllowed], |g| {
        sctp(g, 1)
    }),
    pod((52, Protocols), "SCTP DATA", BOTH, &[NotAllowed], |g| {
        sctp(g, 0)
    }),
    pod(
        (53, Protocols),
        "TCP with every combination of flags",
        BOTH,
        &[NotAllowed],
        flags,
    ),
    pod(
        (54, Protocols),
        "ICMP echo reply that nobody asked for",
        BOTH,
        &[NotAllowed],
        |g| {
            let kind = if g.is_v6() { 129 } else { 0 };
            g.send_ip(&[craft::icmp(
                g.ends(),
                [kind, 0],
                [0x5a, 0x11, 0, 1],
                g.token(),
            )])
        },
    ),
    pod(
        (55, Protocols),
        "every type of ICMP",
        BOTH,
        &[NotAllowed, NeighbourForged, IcmpErrorUnrelated],
        types,
    ),
    pod(
        (56, Protocols),
        "ICMP error about a packet that nobody sent",
        BOTH,
        &[IcmpErrorUnrelated],
        |g| g.send_ip(&[craft::error(g.ends(), &craft::quoting(g.ends(), g.token()))]),
    ),
    pod(
        (57, Protocols),
        "ICMP error that carries data instead",
        BOTH,
        &[IcmpErrorUnrelated],
        |g| g.send_ip(&[craft::error(g.ends(), &g.token().repeat(8))]),
    ),
    pod(
        (58, Protocols),
        "ICMP error to the outside that quotes an allowed flow",
        BOTH,
        &[IcmpErrorUnrelated],
        |g| {
            let gateway = g
                .order
                .gateway
                .ok_or_else(|| Trouble::Absent("no gateway".to_owned()))?;
            let back = g.ends_to(gateway.ip()).back();
            let segment = craft::tcp(back, (gateway.port(), g.port()), 0x10, g.token());
            let about = craft::packet(back, protocol::TCP, &segment);
            g.send_ip(&[craft::error(g.ends(), &about)])
        },
    )
    .with(&[Need::Gateway]),
    pod(
        (59, Protocols),
        "TCP and UDP to port 0",
        BOTH,
        &[NotAllowed],
        |g| {
            let ends = g.ends();
            g.send_ip(&[g.udp(ends, 0), g.syn(ends, 0)])
        },
    ),
];

/// What IPv6 takes for an extension header has cases of its own.
const EXTENSIONS: [u8; 7] = [0, 43, 44, 60, 135, 139, 140];

fn every(ground: &Ground) -> Result<(), Trouble> {
    use protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};
    let known = |number: &u8| {
        [TCP, UDP, SCTP].contains(number)
            || *number == if ground.is_v6() { ICMPV6 } else { ICMP }
            || ground.is_v6() && EXTENSIONS.contains(number)
    };
    let packets: Vec<_> = (0..=u8::MAX)
        .filter(|number| !known(number))
        .map(|number| craft::packet(ground.ends(), number, ground.token()))
        .collect();
    ground.send_ip(&packets)
}

fn sctp(ground: &Ground, chunk: u8) -> Result<(), Trouble> {
    let mut packet = [ground.port().to_be_bytes(), 9999_u16.to_be_bytes()].concat();
    // Verification tag, a checksum that nobody on the way looks at, the chunk with its length.
    packet.extend([0, 0, 0, 0, 0, 0, 0, 0, chunk, 3, 0, 20]);
    packet.extend(ground.token());
    packet.extend([0; 4]);
    ground.send_ip(&[craft::packet(ground.ends(), protocol::SCTP, &packet)])
}

fn flags(ground: &Ground) -> Result<(), Trouble> {
    let packets: Vec<_> = (0..=u8::MAX)
        .map(|flags| {
            let segment = craft::tcp(ground.ends(), (ground.port(), 9999), flags, ground.token());
            craft::packet(ground.ends(), protocol::TCP, &segment)
        })
        .collect();
    ground.send_ip(&packets)
}

fn types(ground: &Ground) -> Result<(), Trouble> {
    let packets: Vec<_> = (0..=u8::MAX)
        .map(|kind| craft::icmp(ground.ends(), [kind, 0], [0; 4], &ground.token().repeat(2)))
        .collect();
    ground.send_ip(&packets)
}
