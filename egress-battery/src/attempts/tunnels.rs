//! Packets in packets: to an accomplice outside, and into the overlay of the node.

use std::net::IpAddr;

use egress_common::Reason::{Excepted, NotAllowed, Protocol};

use super::pod;
use crate::case::{BOTH, Case, Group::Tunnels, Need, Trouble};
use crate::craft::{self, ethertype_of, protocol};
use crate::ground::Ground;

pub(super) const CASES: [Case; 15] = [
    pod(
        (190, Tunnels),
        "IPv4 in IP (IPIP)",
        BOTH,
        &[Protocol],
        |g| in_ip(g, g.order.aim, 4, &[]),
    ),
    pod(
        (191, Tunnels),
        "IPv6 in IP (6in4)",
        BOTH,
        &[Protocol],
        |g| in_ip(g, g.order.aim, 41, &[]),
    ),
    pod((192, Tunnels), "GRE", BOTH, &[Protocol], |g| {
        in_ip(g, g.order.aim, 47, &gre(g))
    }),
    pod((193, Tunnels), "ESP and AH", BOTH, &[Protocol], |g| {
        in_ip(g, g.order.aim, 50, &[0, 0, 0, 1, 0, 0, 0, 1])?;
        in_ip(g, g.order.aim, 51, &[4, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1])
    }),
    pod(
        (194, Tunnels),
        "L2TPv3, EtherIP, IPComp, MPLS in IP, PIM",
        BOTH,
        &[Protocol],
        |g| {
            [115, 97, 108, 137, 103]
                .iter()
                .try_for_each(|number| in_ip(g, g.order.aim, *number, &[0x30, 0, 0, 0]))
        },
    ),
    pod((195, Tunnels), "WireGuard", BOTH, &[NotAllowed], |g| {
        in_udp(g, g.order.aim, 51_820, &[4, 0, 0, 0])
    }),
    pod(
        (196, Tunnels),
        "VXLAN on 4789 and 8472",
        BOTH,
        &[NotAllowed],
        |g| {
            vxlan(g, g.order.aim, 4789)?;
            vxlan(g, g.order.aim, 8472)
        },
    ),
    pod((197, Tunnels), "Geneve", BOTH, &[NotAllowed], |g| {
        geneve(g, g.order.aim)
    }),
    pod(
        (198, Tunnels),
        "ESP in UDP, L2TP, GTP-U, Teredo, OpenVPN",
        BOTH,
        &[NotAllowed],
        |g| {
            [4500, 1701, 2152, 3544, 1194]
                .iter()
                .try_for_each(|port| in_udp(g, g.order.aim, *port, &[0x30, 0, 0, 1]))
        },
    ),
    pod(
        (199, Tunnels),
        "VXLAN into the node's 4789",
        BOTH,
        &[NotAllowed, Excepted],
        |g| vxlan(g, node(g)?, 4789),
    )
    .with(&[Need::Node]),
    pod(
        (200, Tunnels),
        "VXLAN into the node's 8472 (Flannel, Cilium)",
        BOTH,
        &[NotAllowed, Excepted],
        |g| vxlan(g, node(g)?, 8472),
    )
    .with(&[Need::Node]),
    pod(
        (201, Tunnels),
        "Geneve into the node's 6081",
        BOTH,
        &[NotAllowed, Excepted],
        |g| geneve(g, node(g)?),
    )
    .with(&[Need::Node]),
    pod(
        (202, Tunnels),
        "IPIP and 6in4 into the node",
        BOTH,
        &[Protocol],
        |g| {
            in_ip(g, node(g)?, 4, &[])?;
            in_ip(g, node(g)?, 41, &[])
        },
    )
    .with(&[Need::Node]),
    pod(
        (203, Tunnels),
        "GRE and ESP into the node",
        BOTH,
        &[Protocol],
        |g| {
            in_ip(g, node(g)?, 47, &gre(g))?;
            in_ip(g, node(g)?, 50, &[0, 0, 0, 1, 0, 0, 0, 1])
        },
    )
    .with(&[Need::Node]),
    pod(
        (204, Tunnels),
        "WireGuard into the node's 51820 and 51871",
        BOTH,
        &[NotAllowed, Excepted],
        |g| {
            in_udp(g, node(g)?, 51_820, &[4, 0, 0, 0])?;
            in_udp(g, node(g)?, 51_871, &[4, 0, 0, 0])
        },
    )
    .with(&[Need::Node]),
];

fn node(ground: &Ground) -> Result<IpAddr, Trouble> {
    ground
        .order
        .node
        .ok_or_else(|| Trouble::Absent("no address of the node".to_owned()))
}

/// What is in the tunnels: a datagram to the outside.
fn inner(ground: &Ground) -> Vec<u8> {
    ground.udp(ground.ends(), 9999)
}

fn in_ip(ground: &Ground, to: IpAddr, number: u8, head: &[u8]) -> Result<(), Trouble> {
    let body = [head, &inner(ground)].concat();
    ground.send_ip(&[craft::packet(ground.ends_to(to), number, &body)])
}

fn gre(ground: &Ground) -> [u8; 4] {
    let [hi, lo] = ethertype_of(&inner(ground)).to_be_bytes();
    [0, 0, hi, lo]
}

fn in_udp(ground: &Ground, to: IpAddr, port: u16, head: &[u8]) -> Result<(), Trouble> {
    let body = [head, &inner(ground)].concat();
    let ends = ground.ends_to(to);
    let datagram = craft::udp(ends, (ground.port(), port), &body);
    ground.send_ip(&[craft::packet(ends, protocol::UDP, &datagram)])
}

fn vxlan(ground: &Ground, to: IpAddr, port: u16) -> Result<(), Trouble> {
    let inner = inner(ground);
    let frame = craft::frame([2; 6], ground.own_mac, ethertype_of(&inner), &inner);
    in_udp(
        ground,
        to,
        port,
        &[&[8, 0, 0, 0, 0, 0, 1, 0][..], &frame].concat(),
    )
}

fn geneve(ground: &Ground, to: IpAddr) -> Result<(), Trouble> {
    let inner = inner(ground);
    let frame = craft::frame([2; 6], ground.own_mac, ethertype_of(&inner), &inner);
    // Transparent Ethernet bridging.
    in_udp(
        ground,
        to,
        6081,
        &[&[0, 0, 0x65, 0x58, 0, 0, 1, 0][..], &frame].concat(),
    )
}
