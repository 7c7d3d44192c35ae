//! Source addresses that are not the pod's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::Reason::Spoofed;

use super::{pod, sockets};
use crate::case::{BOTH, Case, Group, Need, Trouble, V4, V6};
use crate::craft;
use crate::ground::{Ground, ends};

pub(super) const CASES: [Case; 9] = [
    pod(
        (220, Group::Spoofed),
        "another pod's address, from a raw socket",
        BOTH,
        &[Spoofed],
        |g| {
            let other = wanted(g.order.other)?;
            sockets::raw(g, &g.udp(ends(other, g.order.aim), 9999))
        },
    )
    .with(&[Need::OtherPod]),
    pod(
        (221, Group::Spoofed),
        "another pod's address, UDP and TCP from a packet socket",
        BOTH,
        &[Spoofed],
        |g| from(g, wanted(g.order.other)?),
    )
    .with(&[Need::OtherPod]),
    pod(
        (222, Group::Spoofed),
        "a gateway's address",
        BOTH,
        &[Spoofed],
        |g| {
            let gateway = g.order.gateway.map(|gateway| gateway.ip());
            from(g, wanted(gateway)?)
        },
    )
    .with(&[Need::Gateway]),
    pod(
        (223, Group::Spoofed),
        "the node's address",
        BOTH,
        &[Spoofed],
        |g| from(g, wanted(g.order.node)?),
    )
    .with(&[Need::Node]),
    pod(
        (224, Group::Spoofed),
        "an address of nobody",
        BOTH,
        &[Spoofed],
        |g| {
            from(
                g,
                if g.is_v6() {
                    v6("2001:db8:5::5")
                } else {
                    v4(198, 18, 5, 5)
                },
            )
        },
    ),
    pod(
        (225, Group::Spoofed),
        "the outside's own address",
        BOTH,
        &[Spoofed],
        |g| from(g, g.order.aim),
    ),
    pod(
        (226, Group::Spoofed),
        "loopback, unspecified, multicast and broadcast addresses",
        V4,
        &[Spoofed],
        |g| {
            [
                v4(127, 0, 0, 1),
                v4(0, 0, 0, 0),
                v4(224, 0, 0, 1),
                v4(255, 255, 255, 255),
            ]
            .into_iter()
            .try_for_each(|source| from(g, source))
        },
    ),
    pod(
        (227, Group::Spoofed),
        "loopback, unspecified, multicast, link and IPv4-mapped addresses",
        V6,
        &[Spoofed],
        |g| {
            ["::1", "::", "ff02::1", "fe80::5a11", "::ffff:10.0.0.1"]
                .into_iter()
                .try_for_each(|source| from(g, v6(source)))
        },
    ),
    pod(
        (228, Group::Spoofed),
        "another pod's address, given to the pod's own device",
        BOTH,
        &[Spoofed],
        owned,
    )
    .with(&[Need::Intrusive, Need::OtherPod]),
];

fn wanted(address: Option<IpAddr>) -> Result<IpAddr, Trouble> {
    address.ok_or_else(|| Trouble::Absent("no such address is known".to_owned()))
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

fn v6(text: &str) -> IpAddr {
    IpAddr::V6(text.parse::<Ipv6Addr>().expect("an address"))
}

fn from(ground: &Ground, source: IpAddr) -> Result<(), Trouble> {
    let ends = ends(source, ground.order.aim);
    let echo = craft::echo(ends, ground.token());
    ground.send_ip(&[ground.udp(ends, 9999), ground.syn(ends, 80), echo])?;
    let other = craft::packet(ends, 47, ground.token());
    ground.send_ip(&[other])
}

/// The kernel itself then takes it for the pod's.
fn owned(ground: &Ground) -> Result<(), Trouble> {
    let other = wanted(ground.order.other)?;
    let length = if ground.is_v6() { "128" } else { "32" };
    let change = |verb| {
        let nodad = if ground.is_v6() { " nodad" } else { "" };
        let line = format!(
            "addr {verb} {other}/{length} dev {}{nodad}\n",
            ground.device
        );
        super::devices::ip(&line)
    };
    change("add")?;
    let attempted = bound(ground, other);
    change("del")?;
    attempted
}

fn bound(ground: &Ground, source: IpAddr) -> Result<(), Trouble> {
    let socket =
        std::net::UdpSocket::bind((source, 0)).map_err(crate::case::failed("bind the address"))?;
    socket
        .send_to(ground.token(), (ground.order.aim, 9999))
        .map(drop)
        .map_err(crate::case::failed("send"))
}
