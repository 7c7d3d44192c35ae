//! What must go on working.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use egress_common::Reason::{Arp, Cluster, Dns, Exception, Gateway, IcmpError, Neighbour, Reply};

use super::link::{v4, v6};
use super::{cluster, pod};
use crate::case::{BOTH, By, Case, Client, Family, Group::Works, Need, Trouble, V4, V6, failed};
use crate::craft::{self, Ends, ethertype};
use crate::ground::{Ground, default_route};

pub(super) const CASES: [Case; 26] = [
    pod((350, Works), "the router answers to ARP", V4, &[Arp], arp),
    pod(
        (351, Works),
        "the router answers to neighbour discovery",
        V6,
        &[Neighbour],
        solicit,
    ),
    client(
        352,
        "kubelet probe: TCP from the node",
        &[Reply],
        Client::Tcp,
    ),
    client(353, "UDP from the node is answered", &[Reply], Client::Udp),
    client(
        354,
        "UDP from the node to a closed port: the pod's ICMP error comes back",
        &[IcmpError],
        Client::Nobody,
    ),
    client(
        355,
        "ICMP echo from the node is answered",
        &[Reply],
        Client::Echo,
    ),
    pod((356, Works), "the resolver answers", BOTH, &[Dns], resolve).with(&[Need::Dns]),
    pod(
        (357, Works),
        "a gateway's listener is reached",
        BOTH,
        &[Gateway],
        |g| {
            let gateway = g
                .order
                .gateway
                .ok_or_else(|| Trouble::Absent("no gateway".to_owned()))?;
            g.send_ip(&[g.syn(g.ends_to(gateway.ip()), gateway.port())])
        },
    )
    .with(&[Need::Gateway]),
    cluster(
        (370, Works),
        "clients of a NodePort outside: TCP",
        BOTH,
        &[Reply],
    ),
    cluster(
        (371, Works),
        "clients of a NodePort outside: UDP",
        BOTH,
        &[Reply],
    ),
    cluster(
        (372, Works),
        "clients of a NodePort outside: a large answer over a small path MTU",
        BOTH,
        &[Reply],
    ),
    cluster(
        (373, Works),
        "clients of a hostPort outside",
        BOTH,
        &[Reply],
    ),
    cluster(
        (374, Works),
        "a client's connection that stands at installation",
        BOTH,
        &[Reply],
    ),
    cluster(
        (375, Works),
        "pods and Services of the cluster",
        BOTH,
        &[Cluster],
    ),
    cluster(
        (376, Works),
        "a pod that nobody holds reaches the outside",
        BOTH,
        &[Reply],
    ),
    cluster(
        (377, Works),
        "clients of a NodePort in the node's name (Cluster): TCP, UDP",
        BOTH,
        &[Reply],
    ),
    cluster(
        (378, Works),
        "clients of another node's NodePort, in its name: TCP, UDP",
        BOTH,
        &[Reply],
    ),
    cluster(
        (379, Works),
        "the node itself as client of a NodePort: TCP, UDP",
        BOTH,
        &[Reply],
    ),
    cluster(
        (380, Works),
        "a pod that nobody holds as client of a NodePort: TCP, UDP",
        BOTH,
        &[Reply],
    ),
    cluster(
        (381, Works),
        "a held pod as client of a held pod's Service: TCP, UDP",
        BOTH,
        &[Reply],
    ),
    cluster(
        (382, Works),
        "a held pod as client of its own Service (hairpin): TCP, UDP",
        BOTH,
        &[Reply],
    ),
    cluster(
        (383, Works),
        "clients of a load balancer's address: TCP, UDP",
        BOTH,
        &[Reply],
    ),
    cluster(
        (384, Works),
        "a load balancer's health check, answered in the node's network",
        BOTH,
        &[Reply],
    ),
    cluster(
        (385, Works),
        "clients outside of a held pod in the node's network: TCP, UDP",
        BOTH,
        &[Reply],
    ),
    cluster(
        (386, Works),
        "a held pod as client of an excepted NodePort: TCP, UDP",
        BOTH,
        &[Exception],
    ),
    cluster(
        (387, Works),
        "a held pod at its own, excepted NodePort (hairpin): TCP, UDP",
        BOTH,
        &[Exception],
    ),
];

const fn client(
    number: u16,
    name: &'static str,
    expect: &'static [egress_common::Reason],
    client: Client,
) -> Case {
    Case {
        number,
        group: Works,
        name,
        families: BOTH as &[Family],
        expect,
        needs: &[],
        by: By::Client(client),
    }
}

const PATIENCE: Duration = Duration::from_secs(2);

/// Reads frames until one is what is waited for.
fn await_frame(socket: &OwnedFd, is_it: impl Fn(&[u8]) -> bool) -> Result<(), Trouble> {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = vec![0; 1 << 16];
    while Instant::now() < deadline {
        match craft::receive(socket, &mut buffer) {
            Ok((_, false, frame)) if is_it(frame) => return Ok(()),
            _ => {}
        }
    }
    Err(failed("wait for an answer")(io::ErrorKind::TimedOut.into()))
}

fn arp(ground: &Ground) -> Result<(), Trouble> {
    let routes = std::fs::read_to_string("/proc/net/route").map_err(failed("read the routes"))?;
    let router: Ipv4Addr = default_route(&routes)
        .ok_or_else(|| Trouble::Absent("the pod has no default route".to_owned()))?;
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend(ground.own_mac);
    body.extend(v4(ground.order.own)?.octets());
    body.extend([0; 6]);
    body.extend(router.octets());
    body.extend(ground.token());
    let socket =
        craft::packet_socket(Some(&ground.device)).map_err(failed("open a packet socket"))?;
    ground.send(&[craft::frame(
        [0xff; 6],
        ground.own_mac,
        ethertype::ARP,
        &body,
    )])?;
    await_frame(&socket, |frame| {
        frame.get(12..14) == Some(&[8, 6]) && frame.get(28..32) == Some(&router.octets())
    })
}

fn solicit(ground: &Ground) -> Result<(), Trouble> {
    let routes =
        std::fs::read_to_string("/proc/net/ipv6_route").map_err(failed("read the routes"))?;
    let router = default_route6(&routes)
        .ok_or_else(|| Trouble::Absent("the pod has no default route".to_owned()))?;
    let [.., a, b, c] = router.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    );
    let mut body = router.octets().to_vec();
    body.extend([1, 1]);
    body.extend(ground.own_mac);
    let packet = craft::icmp(
        Ends::V6(v6(ground.order.own)?, group),
        [135, 0],
        [0; 4],
        &body,
    );
    let socket =
        craft::packet_socket(Some(&ground.device)).map_err(failed("open a packet socket"))?;
    let to = [0x33, 0x33, 0xff, a, b, c];
    ground.send(&[craft::frame(to, ground.own_mac, ethertype::IPV6, &packet)])?;
    await_frame(&socket, |frame| {
        frame.get(54) == Some(&136) && frame.get(62..78) == Some(&router.octets())
    })
}

/// Gateway in `/proc/net/ipv6_route`: destination, its length, source, its length, gateway.
fn default_route6(routes: &str) -> Option<Ipv6Addr> {
    routes.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let via = Ipv6Addr::from(u128::from_str_radix(fields.get(4)?, 16).ok()?);
        (fields[1] == "00" && !via.is_unspecified() && fields.last() != Some(&"lo")).then_some(via)
    })
}

/// Any answer will do: the token is no name that exists.
fn resolve(ground: &Ground) -> Result<(), Trouble> {
    let dns = ground
        .order
        .dns
        .ok_or_else(|| Trouble::Absent("no resolver".to_owned()))?;
    let any: IpAddr = if ground.is_v6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let socket = std::net::UdpSocket::bind((any, 0)).map_err(failed("open a socket"))?;
    socket
        .set_read_timeout(Some(PATIENCE))
        .map_err(failed("set a timeout"))?;
    let mut query = vec![0x5a, 0x11, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 12];
    query.extend(ground.token());
    query.extend([7, b'i', b'n', b'v', b'a', b'l', b'i', b'd', 0, 0, 1, 0, 1]);
    socket
        .send_to(&query, dns)
        .map_err(failed("ask the resolver"))?;
    socket
        .recv(&mut [0; 512])
        .map(drop)
        .map_err(failed("wait for the resolver"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_router_is_read_from_proc() {
        let none = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                    00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n";
        let line = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                    fe800000000000000000000000000001 00000400 00000002 00000000 00000003     eth0\n";
        assert_eq!(default_route6(none), None);
        assert_eq!(
            default_route6(&format!("{none}{line}")),
            Some("fe80::1".parse().unwrap())
        );
    }
}
