//! Addresses that are nearly in the cluster, or stand for others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use egress_common::Reason::{Excepted, GatewayPort, NotAllowed};

use super::link::v4;
use super::pod;
use crate::case::{BOTH, Case, Group::Places, Need, Trouble, V4, V6};
use crate::craft::{self, protocol};
use crate::ground::Ground;

pub(super) const CASES: [Case; 19] = [
    pod(
        (240, Places),
        "metadata services of AWS, GCP, Azure, Alibaba, Oracle, ECS",
        V4,
        &[NotAllowed],
        |g| {
            to_all(
                g,
                80,
                &[
                    "169.254.169.254",
                    "169.254.170.2",
                    "169.254.169.253",
                    "168.63.129.16",
                    "100.100.100.200",
                    "192.0.0.192",
                ],
            )
        },
    ),
    pod(
        (241, Places),
        "metadata services by IPv6",
        V6,
        &[NotAllowed],
        |g| to_all(g, 80, &["fd00:ec2::254", "fd20:ce::254", "fe80::a9fe:a9fe"]),
    ),
    pod(
        (242, Places),
        "DNS by UDP to another resolver",
        BOTH,
        &[NotAllowed],
        dns,
    ),
    pod(
        (243, Places),
        "DNS by TCP, and over TLS, to another resolver",
        BOTH,
        &[NotAllowed],
        |g| {
            g.send_ip(&[
                g.syn(g.ends(), 53),
                g.syn(g.ends(), 853),
                g.udp(g.ends(), 853),
            ])
        },
    ),
    pod(
        (244, Places),
        "DNS to public resolvers",
        BOTH,
        &[NotAllowed],
        |g| {
            let resolvers: &[&str] = if g.is_v6() {
                &["2001:4860:4860::8888", "2606:4700:4700::1111"]
            } else {
                &["8.8.8.8", "1.1.1.1", "9.9.9.9"]
            };
            to_all(g, 53, resolvers)
        },
    ),
    pod(
        (245, Places),
        "multicast: all hosts, mDNS, wider scopes",
        BOTH,
        &[NotAllowed],
        |g| {
            let groups: &[&str] = if g.is_v6() {
                &["ff02::1", "ff02::fb", "ff05::2", "ff0e::5a11"]
            } else {
                &["224.0.0.1", "224.0.0.251", "239.1.1.1", "232.1.1.1"]
            };
            to_all(g, 5353, groups)
        },
    ),
    pod(
        (246, Places),
        "broadcast, unspecified, loopback and reserved addresses",
        V4,
        &[NotAllowed],
        |g| {
            to_all(
                g,
                9999,
                &["255.255.255.255", "0.0.0.0", "127.0.0.1", "240.0.0.1"],
            )
        },
    ),
    pod(
        (247, Places),
        "unspecified, loopback, site-local and discard addresses",
        V6,
        &[NotAllowed],
        |g| to_all(g, 9999, &["::", "::1", "fec0::1", "100::1"]),
    ),
    pod(
        (248, Places),
        "IPv4-mapped and IPv4-compatible addresses in an IPv6 header",
        V6,
        &[NotAllowed],
        |g| {
            to_all(
                g,
                9999,
                &[
                    "::ffff:203.0.113.10",
                    "::203.0.113.10",
                    "::ffff:0:203.0.113.10",
                ],
            )
        },
    ),
    pod(
        (249, Places),
        "NAT64: the well-known and the local prefix",
        V6,
        &[NotAllowed],
        |g| {
            to_all(
                g,
                9999,
                &["64:ff9b::203.0.113.10", "64:ff9b:1::203.0.113.10"],
            )
        },
    ),
    pod((250, Places), "6to4", V6, &[NotAllowed], |g| {
        to_all(g, 9999, &["2002:cb00:710a::1"])
    }),
    pod((251, Places), "Teredo", V6, &[NotAllowed], |g| {
        to_all(g, 9999, &["2001:0:cb00:710a::1"])
    }),
    pod(
        (252, Places),
        "ISATAP and other link-local addresses of the node's side",
        V6,
        &[NotAllowed],
        |g| to_all(g, 9999, &["fe80::5efe:203.0.113.10", "fe80::1"]),
    ),
    pod(
        (253, Places),
        "a gateway's other ports",
        BOTH,
        &[GatewayPort],
        |g| {
            let gateway = gateway(g)?;
            let ends = g.ends_to(gateway.ip());
            g.send_ip(&[
                g.syn(ends, 15_000),
                g.syn(ends, 15_021),
                g.syn(ends, 22),
                g.syn(ends, 0),
            ])
        },
    )
    .with(&[Need::Gateway]),
    pod(
        (254, Places),
        "UDP to a gateway's listener",
        BOTH,
        &[GatewayPort],
        |g| {
            let gateway = gateway(g)?;
            let ends = g.ends_to(gateway.ip());
            g.send_ip(&[g.udp(ends, gateway.port()), g.udp(ends, 53)])
        },
    )
    .with(&[Need::Gateway]),
    pod(
        (255, Places),
        "ICMP echo to a gateway",
        BOTH,
        &[GatewayPort],
        |g| {
            let gateway = gateway(g)?;
            g.send_ip(&[craft::echo(g.ends_to(gateway.ip()), g.token())])
        },
    )
    .with(&[Need::Gateway]),
    pod(
        (256, Places),
        "the node's SSH, kubelet, kube-proxy, NodePorts and hostPorts",
        BOTH,
        &[NotAllowed, Excepted],
        |g| {
            let node = g
                .order
                .node
                .ok_or_else(|| Trouble::Absent("no address of the node".to_owned()))?;
            let ends = g.ends_to(node);
            let mut packets: Vec<_> = [22, 80, 443, 2379, 10_250, 10_256, 30_000, 30_080, 32_767]
                .map(|port| g.syn(ends, port))
                .into();
            packets.push(g.udp(ends, 30_053));
            packets.push(craft::echo(ends, g.token()));
            g.send_ip(&packets)
        },
    )
    .with(&[Need::Node]),
    pod(
        (257, Places),
        "the router of the pod's device",
        V4,
        &[NotAllowed, Excepted],
        |g| {
            let routes = std::fs::read_to_string("/proc/net/route")
                .map_err(crate::case::failed("read the routes"))?;
            let router = crate::ground::default_route(&routes)
                .ok_or_else(|| Trouble::Absent("the pod has no default route".to_owned()))?;
            let ends = g.ends_to(router.into());
            g.send_ip(&[
                g.syn(ends, 22),
                g.udp(ends, 4789),
                craft::echo(ends, g.token()),
            ])
        },
    ),
    pod(
        (258, Places),
        "the neighbours of the outside's address",
        V4,
        &[NotAllowed],
        |g| {
            let [a, b, c, _] = v4(g.order.aim)?.octets();
            let packets =
                [0, 255].map(|d| g.udp(g.ends_to(Ipv4Addr::new(a, b, c, d).into()), 9999));
            g.send_ip(&packets)
        },
    ),
];

fn gateway(ground: &Ground) -> Result<SocketAddr, Trouble> {
    ground
        .order
        .gateway
        .ok_or_else(|| Trouble::Absent("no gateway".to_owned()))
}

/// UDP and a SYN to each.
fn to_all(ground: &Ground, port: u16, addresses: &[&str]) -> Result<(), Trouble> {
    let mut packets = Vec::new();
    for address in addresses {
        let address: IpAddr = match address.parse::<Ipv4Addr>() {
            Ok(address) => address.into(),
            Err(_) => address.parse::<Ipv6Addr>().expect("an address").into(),
        };
        let ends = ground.ends_to(address);
        packets.extend([ground.udp(ends, port), ground.syn(ends, port)]);
    }
    ground.send_ip(&packets)
}

/// The token is the name that is asked for.
fn dns(ground: &Ground) -> Result<(), Trouble> {
    let mut query = vec![0x5a, 0x11, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 12];
    query.extend(ground.token());
    query.extend([7, b'e', b'x', b'a', b'm', b'p', b'l', b'e', 0, 0, 16, 0, 1]);
    let ends = ground.ends();
    let datagram = craft::udp(ends, (ground.port(), 53), &query);
    ground.send_ip(&[craft::packet(ends, protocol::UDP, &datagram)])
}
