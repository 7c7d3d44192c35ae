//! IPv4 headers: options, lengths, checksums, truncation.

use std::net::Ipv4Addr;

use egress_common::Reason::{Malformed, NotAllowed, SourceRoute};

use super::link::v4;
use super::pod;
use crate::case::{Case, Group::HeadersV4, Need, Trouble, V4};
use crate::craft::{self, Ends, ethertype, protocol};
use crate::ground::Ground;

pub(super) const CASES: [Case; 16] = [
    pod(
        (130, HeadersV4),
        "options: record route, timestamp, router alert, security, unknown",
        V4,
        &[NotAllowed],
        |g| {
            options(
                g,
                &[
                    &[7, 7, 4, 0, 0, 0, 0, 0],
                    &[68, 8, 5, 0, 0, 0, 0, 0],
                    &[148, 4, 0, 0],
                    &[130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                    &[1, 1, 222, 2, 0, 0, 0, 0],
                ],
            )
        },
    ),
    pod(
        (131, HeadersV4),
        "loose source route",
        V4,
        &[SourceRoute],
        |g| options(g, &[&[131, 7, 4, 192, 0, 2, 1, 0]]),
    ),
    pod(
        (132, HeadersV4),
        "strict source route",
        V4,
        &[SourceRoute],
        |g| options(g, &[&[137, 7, 4, 192, 0, 2, 1, 0]]),
    ),
    pod(
        (133, HeadersV4),
        "source route by an allowed pod to the outside",
        V4,
        &[SourceRoute],
        by_allowed,
    )
    .with(&[Need::OtherPod]),
    pod(
        (134, HeadersV4),
        "source route behind other options",
        V4,
        &[SourceRoute],
        |g| {
            options(
                g,
                &[&[1, 1, 148, 4, 0, 0, 131, 7, 4, 192, 0, 2, 1, 0, 0, 0]],
            )
        },
    ),
    pod(
        (135, HeadersV4),
        "options whose lengths are wrong",
        V4,
        &[Malformed],
        |g| {
            options(
                g,
                &[
                    &[7, 0, 0, 0],
                    &[7, 1, 0, 0],
                    &[7, 9, 4, 0],
                    &[1, 1, 1, 7],
                    &[148, 255, 0, 0],
                ],
            )
        },
    ),
    pod(
        (136, HeadersV4),
        "header lengths that are too small or beyond the packet",
        V4,
        &[Malformed],
        |g| changed(g, &[&[(0, 0x40)], &[(0, 0x44)], &[(0, 0x4f)]]),
    ),
    pod(
        (137, HeadersV4),
        "total lengths of 0, less than the header, beyond the frame",
        V4,
        &[Malformed],
        |g| {
            changed(
                g,
                &[
                    &[(2, 0), (3, 0)],
                    &[(2, 0), (3, 19)],
                    &[(2, 0xff), (3, 0xff)],
                    &[(2, 0), (3, 200)],
                ],
            )
        },
    ),
    pod(
        (138, HeadersV4),
        "wrong checksum of the header",
        V4,
        &[NotAllowed],
        |g| {
            let mut packet = g.udp(g.ends(), 9999);
            packet[10] ^= 0xff;
            g.send_ip(&[packet])
        },
    ),
    pod(
        (139, HeadersV4),
        "wrong and no checksum of the datagram",
        V4,
        &[NotAllowed],
        |g| {
            let (mut wrong, mut none) = (g.udp(g.ends(), 9999), g.udp(g.ends(), 9999));
            wrong[26] ^= 0xff;
            none[26..28].fill(0);
            g.send_ip(&[wrong, none])
        },
    ),
    pod(
        (140, HeadersV4),
        "UDP, TCP, ICMP and SCTP headers that are cut",
        V4,
        &[Malformed],
        cut,
    ),
    pod(
        (141, HeadersV4),
        "IPv4 headers that are cut",
        V4,
        &[Malformed],
        |g| {
            let packet = g.udp(g.ends(), 9999);
            let lengths = [1, 4, 10, 19];
            g.send(&lengths.map(|length| g.marked_frame(ethertype::IPV4, &packet[..length])))
        },
    ),
    pod(
        (142, HeadersV4),
        "versions 0, 5 and 15",
        V4,
        &[Malformed],
        |g| changed(g, &[&[(0, 0x05)], &[(0, 0x55)], &[(0, 0xf5)]]),
    ),
    pod(
        (143, HeadersV4),
        "time to live of 0, 1 and 255",
        V4,
        &[NotAllowed],
        |g| changed(g, &[&[(8, 0)], &[(8, 1)], &[(8, 255)]]),
    ),
    pod(
        (144, HeadersV4),
        "reserved flag, and every type of service",
        V4,
        &[NotAllowed],
        |g| changed(g, &[&[(6, 0x80)], &[(6, 0xc0)], &[(1, 0xff)], &[(1, 0xb8)]]),
    ),
    pod(
        (145, HeadersV4),
        "data behind the packet, TCP offset and UDP length that lie",
        V4,
        &[NotAllowed, Malformed],
        |g| {
            let trailer = [&g.udp_with(g.ends(), 9999, b"")[..], g.token()].concat();
            let mut segment = g.syn(g.ends(), 9999);
            segment[32] = 0x10;
            let mut datagram = g.udp(g.ends(), 9999);
            datagram[24..26].copy_from_slice(&[0xff, 0xff]);
            g.send_ip(&[trailer, segment, datagram])
        },
    ),
];

fn both(ground: &Ground) -> Result<(Ipv4Addr, Ipv4Addr), Trouble> {
    Ok((v4(ground.order.own)?, v4(ground.order.aim)?))
}

/// A packet with each of these options.
fn options(ground: &Ground, lists: &[&[u8]]) -> Result<(), Trouble> {
    let ends = both(ground)?;
    let datagram = craft::udp(ground.ends(), (ground.port(), 9999), ground.token());
    let packets: Vec<_> = lists
        .iter()
        .map(|options| {
            let mut header = craft::V4::new(ends, protocol::UDP);
            header.options = options.to_vec();
            header.packet(&datagram)
        })
        .collect();
    ground.send_ip(&packets)
}

/// What is addressed to an allowed pod shall go on from there.
fn by_allowed(ground: &Ground) -> Result<(), Trouble> {
    let (own, aim) = both(ground)?;
    let other = ground
        .order
        .other
        .ok_or_else(|| Trouble::Absent("no other pod".to_owned()))?;
    let other = v4(other)?;
    let ends = Ends::V4(own, other);
    let datagram = craft::udp(ends, (ground.port(), 9999), ground.token());
    let mut header = craft::V4::new((own, other), protocol::UDP);
    header.options = [&[131, 7, 4][..], &aim.octets(), &[0]].concat();
    ground.send_ip(&[header.packet(&datagram)])
}

/// A packet with these bytes of its header changed, and its checksum right again.
fn changed(ground: &Ground, changes: &[&[(usize, u8)]]) -> Result<(), Trouble> {
    let frames: Vec<_> = changes
        .iter()
        .map(|changes| {
            let mut packet = ground.udp(ground.ends(), 9999);
            for (place, byte) in *changes {
                packet[*place] = *byte;
            }
            packet[10..12].fill(0);
            let sum = craft::checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            ground.frame(ethertype::IPV4, &packet)
        })
        .collect();
    ground.send(&frames)
}

fn cut(ground: &Ground) -> Result<(), Trouble> {
    let packets: Vec<_> = [
        (protocol::UDP, 4),
        (protocol::UDP, 7),
        (protocol::TCP, 12),
        (protocol::TCP, 19),
        (protocol::ICMP, 4),
        (protocol::SCTP, 12),
    ]
    .map(|(number, length)| craft::packet(ground.ends(), number, &vec![0; length]))
    .into();
    ground.send_ip(&packets)
}
