//! Below IP: tags, other types of frames, ARP, neighbour discovery, link addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::Reason::{
    ArpSpoofed, Malformed, NeighbourForged, NotAllowed, NotIp, Spoofed, Vlan,
};

use super::pod;
use crate::case::{BOTH, Case, Group::Link, LINK, Need, Trouble, V4, V6};
use crate::craft::{self, Ends, ethertype, ethertype_of, protocol};
use crate::ground::Ground;

pub(super) const CASES: [Case; 26] = [
    pod((70, Link), "VLAN tag", BOTH, &[Vlan], |g| {
        tagged(g, &[(ethertype::VLAN, 5)])
    }),
    pod((71, Link), "priority tag (VLAN 0)", BOTH, &[Vlan], |g| {
        tagged(g, &[(ethertype::VLAN, 0)])
    }),
    pod((72, Link), "QinQ: 802.1ad and 802.1Q", BOTH, &[Vlan], |g| {
        tagged(g, &[(ethertype::QINQ, 5), (ethertype::VLAN, 6)])
    }),
    pod((73, Link), "two VLAN tags", BOTH, &[Vlan], |g| {
        tagged(g, &[(ethertype::VLAN, 5), (ethertype::VLAN, 6)])
    }),
    pod(
        (74, Link),
        "QinQ with the EtherTypes from before the standard",
        BOTH,
        &[NotIp],
        |g| {
            tagged(g, &[(0x9100, 5)])?;
            tagged(g, &[(0x9200, 5)])
        },
    ),
    pod(
        (75, Link),
        "MPLS, unicast and multicast",
        BOTH,
        &[NotIp],
        |g| {
            let packet = g.udp(g.ends(), 9999);
            // Label 5, bottom of the stack.
            let body = [&[0, 0, 0x51, 64], &packet[..]].concat();
            g.send(&[g.frame(0x8847, &body), g.frame(0x8848, &body)])
        },
    ),
    pod(
        (76, Link),
        "PPPoE, discovery and session",
        BOTH,
        &[NotIp],
        |g| {
            let packet = g.udp(g.ends(), 9999);
            let body = [
                &[0x11, 0, 0, 1, 0, 60, 0, if g.is_v6() { 0x57 } else { 0x21 }],
                &packet[..],
            ]
            .concat();
            g.send(&[g.frame(0x8863, &body), g.frame(0x8864, &body)])
        },
    ),
    pod(
        (77, Link),
        "IP in an LLC/SNAP frame of 802.3",
        BOTH,
        &[NotIp],
        |g| {
            let packet = g.udp(g.ends(), 9999);
            let [hi, lo] = ethertype_of(&packet).to_be_bytes();
            let body = [&[0xaa, 0xaa, 3, 0, 0, 0, hi, lo], &packet[..]].concat();
            let length = u16::try_from(body.len()).expect("a short frame");
            g.send(&[g.frame(length, &body)])
        },
    ),
    pod(
        (78, Link),
        "unknown EtherTypes, one in 64 of all",
        LINK,
        &[NotIp],
        unknown,
    ),
    pod(
        (79, Link),
        "IP under the other family's EtherType",
        BOTH,
        &[Malformed],
        |g| {
            let packet = g.udp(g.ends(), 9999);
            let other = if g.is_v6() {
                ethertype::IPV4
            } else {
                ethertype::IPV6
            };
            g.send(&[g.frame(other, &packet)])
        },
    ),
    pod(
        (80, Link),
        "IP to the broadcast and to a multicast link address",
        BOTH,
        &[NotAllowed],
        |g| {
            let packet = g.udp(g.ends(), 9999);
            let kind = ethertype_of(&packet);
            let to = |mac| craft::frame(mac, g.own_mac, kind, &packet);
            g.send(&[
                to([0xff; 6]),
                to([1, 0, 0x5e, 0, 0, 1]),
                to([0x33, 0x33, 0, 0, 0, 1]),
            ])
        },
    ),
    pod(
        (81, Link),
        "forged source link address",
        BOTH,
        &[NotAllowed],
        |g| {
            let packet = g.udp(g.ends(), 9999);
            let kind = ethertype_of(&packet);
            let from = |mac| craft::frame(g.next_hop, mac, kind, &packet);
            g.send(&[
                from([2, 9, 9, 9, 9, 9]),
                from(g.next_hop),
                from([0xff; 6]),
                from([0; 6]),
            ])
        },
    ),
    pod(
        (82, Link),
        "a frame that ends with its Ethernet header",
        BOTH,
        &[Malformed],
        |g| {
            let kind = if g.is_v6() {
                ethertype::IPV6
            } else {
                ethertype::IPV4
            };
            g.send(&[g.marked_frame(kind, &[]), g.marked_frame(kind, &[0x45; 3])])
        },
    ),
    pod(
        (83, Link),
        "ARP reply in another pod's name",
        V4,
        &[ArpSpoofed],
        |g| {
            let other = g
                .order
                .other
                .ok_or_else(|| Trouble::Absent("no other pod".to_owned()))?;
            arp(g, 2, v4(other)?)
        },
    )
    .with(&[Need::OtherPod]),
    pod(
        (84, Link),
        "ARP reply and request in the router's name",
        V4,
        &[ArpSpoofed],
        |g| {
            arp(g, 2, Ipv4Addr::new(169, 254, 1, 1))?;
            arp(g, 1, Ipv4Addr::new(169, 254, 1, 1))
        },
    ),
    pod(
        (85, Link),
        "ARP of every operation in the outside's name",
        V4,
        &[ArpSpoofed],
        |g| (0..26).try_for_each(|operation| arp(g, operation, v4(g.order.aim)?)),
    ),
    pod(
        (86, Link),
        "ARP for other link and network layers",
        V4,
        &[ArpSpoofed],
        other_arp,
    ),
    pod(
        (87, Link),
        "ARP that ends too early",
        V4,
        &[Malformed],
        |g| g.send(&[g.marked_frame(ethertype::ARP, &[0, 1, 8, 0, 6, 4, 0, 2, 2, 0])]),
    ),
    pod((88, Link), "RARP", V4, &[NotIp], |g| {
        g.send(&[g.frame(0x8035, &arp_body(g, 3, v4(g.order.own)?))])
    }),
    pod(
        (89, Link),
        "neighbour advertisement for another pod's address",
        V6,
        &[NeighbourForged],
        |g| {
            let other = g
                .order
                .other
                .ok_or_else(|| Trouble::Absent("no other pod".to_owned()))?;
            advert(g, v6(other)?)
        },
    )
    .with(&[Need::OtherPod]),
    pod(
        (90, Link),
        "neighbour advertisement for the outside's address",
        V6,
        &[NeighbourForged],
        |g| advert(g, v6(g.order.aim)?),
    ),
    pod(
        (91, Link),
        "router advertisement",
        V6,
        &[NeighbourForged],
        |g| {
            // A router for half an hour, and the token as the link address it claims.
            discovery(
                g,
                g.order.own,
                ALL_NODES,
                [134, 0],
                [64, 0, 7, 8],
                &[&[0; 8][..], &[1, 2], g.token(), &[0; 2]].concat(),
            )
        },
    ),
    pod((92, Link), "redirect", BOTH, &[NeighbourForged], |g| {
        if g.is_v6() {
            let body = [
                &v6(g.order.aim)?.octets()[..],
                &v6(g.order.aim)?.octets(),
                g.token(),
                &[0; 4],
            ]
            .concat();
            discovery(g, g.order.own, ALL_NODES, [137, 0], [0; 4], &body)
        } else {
            let about = craft::quoting(g.ends(), g.token());
            let via = v4(g.order.own)?.octets();
            g.send_ip(&[craft::icmp(g.ends(), [5, 1], via, &about)])
        }
    }),
    pod(
        (93, Link),
        "neighbour solicitation from another's address",
        V6,
        &[Spoofed],
        |g| {
            let body = [&v6(g.order.aim)?.octets()[..], &[1, 2], g.token(), &[0; 2]].concat();
            discovery(g, g.order.aim, ALL_NODES, [135, 0], [0; 4], &body)
        },
    ),
    pod(
        (94, Link),
        "multicast listener query",
        V6,
        &[NeighbourForged],
        |g| {
            discovery(
                g,
                g.order.own,
                ALL_NODES,
                [130, 0],
                [0; 4],
                &[&[0; 16][..], g.token()].concat(),
            )
        },
    ),
    pod(
        (95, Link),
        "DHCP, from the unspecified address or the link's",
        BOTH,
        &[Spoofed],
        dhcp,
    ),
];

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

pub(super) fn v4(address: IpAddr) -> Result<Ipv4Addr, Trouble> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(Trouble::Absent("no IPv4 address".to_owned())),
    }
}

pub(super) fn v6(address: IpAddr) -> Result<Ipv6Addr, Trouble> {
    match address {
        IpAddr::V6(address) => Ok(address),
        IpAddr::V4(_) => Err(Trouble::Absent("no IPv6 address".to_owned())),
    }
}

fn tagged(ground: &Ground, tags: &[(u16, u16)]) -> Result<(), Trouble> {
    let packet = ground.udp(ground.ends(), 9999);
    let mut body = ethertype_of(&packet).to_be_bytes().to_vec();
    body.extend(&packet);
    for (place, (_, number)) in tags.iter().enumerate().rev() {
        body.splice(0..0, number.to_be_bytes());
        if place > 0 {
            body.splice(0..0, tags[place].0.to_be_bytes());
        }
    }
    ground.send(&[ground.frame(tags[0].0, &body)])
}

fn unknown(ground: &Ground) -> Result<(), Trouble> {
    let known = [
        ethertype::IPV4,
        ethertype::ARP,
        ethertype::IPV6,
        ethertype::VLAN,
        ethertype::QINQ,
    ];
    let common = [
        0x88a4, 0x88b5, 0x88b6, 0x88cc, 0x888e, 0x88e5, 0x8906, 0x8915, 0x892f, 0x894f, 0x9000,
        0xffff,
    ];
    let frames: Vec<_> = (0..=u16::MAX)
        .step_by(64)
        .chain(common)
        .filter(|kind| !known.contains(kind))
        .map(|kind| ground.frame(kind, &[ground.token(), &[0; 34]].concat()))
        .collect();
    ground.send(&frames)
}

/// The token follows where frames are padded.
fn arp_body(ground: &Ground, operation: u16, sender: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4];
    body.extend(operation.to_be_bytes());
    body.extend(ground.own_mac);
    body.extend(sender.octets());
    body.extend([0; 6]);
    body.extend([169, 254, 1, 1]);
    body.extend(ground.token());
    body
}

fn arp(ground: &Ground, operation: u16, sender: Ipv4Addr) -> Result<(), Trouble> {
    let body = arp_body(ground, operation, sender);
    ground.send(&[craft::frame(
        [0xff; 6],
        ground.own_mac,
        ethertype::ARP,
        &body,
    )])
}

fn other_arp(ground: &Ground) -> Result<(), Trouble> {
    let own = v4(ground.order.own)?;
    // Hardware, protocol, lengths.
    let frames: Vec<_> = [
        [0, 6, 8, 0, 6, 4],
        [0, 1, 0x86, 0xdd, 6, 4],
        [0, 1, 8, 0, 8, 4],
        [0, 1, 8, 0, 6, 16],
    ]
    .iter()
    .map(|head| {
        let mut body = arp_body(ground, 2, own);
        body[..6].copy_from_slice(head);
        ground.frame(ethertype::ARP, &body)
    })
    .collect();
    ground.send(&frames)
}

fn advert(ground: &Ground, target: Ipv6Addr) -> Result<(), Trouble> {
    let body = [&target.octets()[..], &[2, 2], ground.token(), &[0; 2]].concat();
    discovery(
        ground,
        ground.order.own,
        ALL_NODES,
        [136, 0],
        [0x20, 0, 0, 0],
        &body,
    )
}

/// A message of neighbour discovery.
pub(super) fn discovery(
    ground: &Ground,
    from: IpAddr,
    to: Ipv6Addr,
    head: [u8; 2],
    rest: [u8; 4],
    body: &[u8],
) -> Result<(), Trouble> {
    let ends = Ends::V6(v6(from)?, to);
    let packet = craft::icmp(ends, head, rest, body);
    let [.., a, b, c, d] = to.octets();
    ground.send(&[craft::frame(
        [0x33, 0x33, a, b, c, d],
        ground.own_mac,
        ethertype::IPV6,
        &packet,
    )])
}

fn dhcp(ground: &Ground) -> Result<(), Trouble> {
    let (ends, ports) = if ground.is_v6() {
        let from = "fe80::5a11".parse().expect("an address");
        (
            Ends::V6(from, "ff02::1:2".parse().expect("an address")),
            (546, 547),
        )
    } else {
        (
            Ends::V4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST),
            (68, 67),
        )
    };
    let datagram = craft::udp(ends, ports, ground.token());
    let packet = craft::packet(ends, protocol::UDP, &datagram);
    ground.send(&[craft::frame(
        [0xff; 6],
        ground.own_mac,
        ethertype_of(&packet),
        &packet,
    )])
}
