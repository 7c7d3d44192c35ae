//! IPv6 headers: chains of extension headers, routing headers, jumbograms, lengths.

use egress_common::Reason::{ExtensionHeader, Malformed, NotAllowed, Protocol, SourceRoute};

use super::pod;
use crate::case::{Case, Group::HeadersV6, Trouble, V6};
use crate::craft::{self, ethertype, protocol};
use crate::ground::Ground;

pub(super) const CASES: [Case; 15] = [
    pod(
        (160, HeadersV6),
        "hop-by-hop and destination options",
        V6,
        &[NotAllowed],
        |g| {
            chained(g, &[&[0]])?;
            chained(g, &[&[60]])?;
            chained(g, &[&[0, 60]])
        },
    ),
    pod(
        (161, HeadersV6),
        "a chain of more headers than are looked at",
        V6,
        &[ExtensionHeader],
        |g| chained(g, &[&[60; 8], &[60; 20]]),
    ),
    pod(
        (162, HeadersV6),
        "routing headers of every type",
        V6,
        &[SourceRoute],
        |g| {
            let packets: Vec<_> = (0..=u8::MAX).map(|kind| routed(g, kind)).collect();
            g.send_ip(&packets)
        },
    ),
    pod(
        (163, HeadersV6),
        "a routing header behind options",
        V6,
        &[SourceRoute],
        |g| {
            let inner = routed(g, 0);
            let options = [&[43, 0, 1, 4, 0, 0, 0, 0][..], &inner[40..]].concat();
            g.send_ip(&[craft::packet(g.ends(), 60, &options)])
        },
    ),
    pod((164, HeadersV6), "jumbo payload", V6, &[Malformed], |g| {
        let datagram = craft::udp(g.ends(), (g.port(), 9999), g.token());
        let option = [protocol::UDP, 0, 0xc2, 4, 0, 1, 0, 0];
        let mut packet = craft::packet(g.ends(), 0, &[&option[..], &datagram].concat());
        packet[4..6].fill(0);
        g.send_ip(&[packet])
    }),
    pod(
        (165, HeadersV6),
        "hop-by-hop options that do not stand first",
        V6,
        &[ExtensionHeader],
        |g| chained(g, &[&[60, 0], &[0, 0]]),
    ),
    pod(
        (166, HeadersV6),
        "mobility, HIP and shim6",
        V6,
        &[ExtensionHeader],
        |g| chained(g, &[&[135], &[139], &[140], &[60, 135]]),
    ),
    pod(
        (167, HeadersV6),
        "authentication header before UDP",
        V6,
        &[Protocol],
        |g| {
            let datagram = craft::udp(g.ends(), (g.port(), 9999), g.token());
            let header = [protocol::UDP, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
            g.send_ip(&[craft::packet(
                g.ends(),
                51,
                &[&header[..], &datagram].concat(),
            )])
        },
    ),
    pod(
        (168, HeadersV6),
        "no next header, data behind it",
        V6,
        &[Protocol],
        |g| g.send_ip(&[craft::packet(g.ends(), 59, g.token())]),
    ),
    pod(
        (169, HeadersV6),
        "payload lengths of 0, too short, beyond the frame",
        V6,
        &[Malformed],
        |g| {
            let packets = [[0, 0], [0, 7], [0, 200], [0xff, 0xff]].map(|length: [u8; 2]| {
                let mut packet = g.udp(g.ends(), 9999);
                packet[4..6].copy_from_slice(&length);
                packet
            });
            g.send_ip(&packets)
        },
    ),
    pod(
        (170, HeadersV6),
        "IPv6, UDP, TCP, ICMP and SCTP headers that are cut",
        V6,
        &[Malformed],
        cut,
    ),
    pod(
        (171, HeadersV6),
        "extension headers that go beyond the packet",
        V6,
        &[Malformed],
        |g| {
            let packets = [0, 60].map(|next: u8| {
                let body = [&[protocol::UDP, 200, 1, 4, 0, 0, 0, 0][..], g.token()].concat();
                craft::packet(g.ends(), next, &body)
            });
            g.send_ip(&packets)
        },
    ),
    pod(
        (172, HeadersV6),
        "versions 0, 4 and 15",
        V6,
        &[Malformed],
        |g| {
            let frames = [0x00, 0x40, 0xf0].map(|version| {
                let mut packet = g.udp(g.ends(), 9999);
                packet[0] = version;
                g.frame(ethertype::IPV6, &packet)
            });
            g.send(&frames)
        },
    ),
    pod(
        (173, HeadersV6),
        "flow labels, traffic classes, hop limits of 0 and 1",
        V6,
        &[NotAllowed],
        |g| {
            let packets = [(0, 0x6f), (1, 0xff), (2, 0xff), (7, 0), (7, 1)].map(|(place, byte)| {
                let mut packet = g.udp(g.ends(), 9999);
                packet[place] = byte;
                packet
            });
            g.send_ip(&packets)
        },
    ),
    pod(
        (174, HeadersV6),
        "data behind the packet",
        V6,
        &[NotAllowed],
        |g| g.send_ip(&[[&g.udp_with(g.ends(), 9999, b"")[..], g.token()].concat()]),
    ),
];

/// UDP behind each of these chains of headers, all of eight bytes.
fn chained(ground: &Ground, chains: &[&[u8]]) -> Result<(), Trouble> {
    let datagram = craft::udp(ground.ends(), (ground.port(), 9999), ground.token());
    let packets: Vec<_> = chains
        .iter()
        .map(|chain| {
            let mut body = Vec::new();
            for next in chain.iter().skip(1).chain([&protocol::UDP]) {
                body.extend([*next, 0, 1, 4, 0, 0, 0, 0]);
            }
            body.extend(&datagram);
            craft::packet(ground.ends(), chain[0], &body)
        })
        .collect();
    ground.send_ip(&packets)
}

fn routed(ground: &Ground, kind: u8) -> Vec<u8> {
    let datagram = craft::udp(ground.ends(), (ground.port(), 9999), ground.token());
    let header = [protocol::UDP, 0, kind, 0, 0, 0, 0, 0];
    craft::packet(ground.ends(), 43, &[&header[..], &datagram].concat())
}

fn cut(ground: &Ground) -> Result<(), Trouble> {
    let whole = ground.udp(ground.ends(), 9999);
    let mut frames: Vec<_> = [1, 8, 39]
        .map(|length| ground.marked_frame(ethertype::IPV6, &whole[..length]))
        .into();
    let cuts = [
        (protocol::UDP, 7),
        (protocol::TCP, 19),
        (protocol::ICMPV6, 4),
        (protocol::SCTP, 12),
    ];
    frames.extend(cuts.map(|(number, length)| {
        let packet = craft::packet(ground.ends(), number, &vec![0; length]);
        ground.frame(ethertype::IPV6, &packet)
    }));
    ground.send(&frames)
}
