//! Every kind of socket and system call that sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use egress_common::Reason::{NotAllowed, Protocol, Spoofed};
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt, sockopt};

use super::{pod, uring};
use crate::case::{BOTH, Case, Group::Sockets, Trouble, V4, failed};
use crate::craft::{self, ethertype_of, socket};
use crate::ground::Ground;

pub(super) const CASES: [Case; 25] = [
    pod((20, Sockets), "UDP", BOTH, &[NotAllowed], udp),
    pod(
        (21, Sockets),
        "QUIC: an Initial packet to UDP port 443",
        BOTH,
        &[NotAllowed],
        quic,
    ),
    pod(
        (22, Sockets),
        "TCP fast open: data in the SYN",
        BOTH,
        &[NotAllowed],
        fast_open,
    ),
    pod((23, Sockets), "MPTCP", BOTH, &[NotAllowed], |g| {
        connect(g, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)
    }),
    pod(
        (24, Sockets),
        "SMC, which falls back to TCP",
        BOTH,
        &[NotAllowed],
        smc,
    ),
    pod((25, Sockets), "SCTP socket", BOTH, &[NotAllowed], |g| {
        connect(g, libc::SOCK_STREAM, libc::IPPROTO_SCTP)
    }),
    pod((26, Sockets), "DCCP socket", BOTH, &[Protocol], |g| {
        connect(g, SOCK_DCCP, IPPROTO_DCCP)
    }),
    pod((27, Sockets), "UDP-Lite socket", BOTH, &[Protocol], |g| {
        datagram(g, libc::IPPROTO_UDPLITE)
    }),
    pod(
        (28, Sockets),
        "ICMP echo from a ping socket",
        BOTH,
        &[NotAllowed],
        ping,
    ),
    pod(
        (29, Sockets),
        "ICMP echo from a raw socket, data in it (ICMP tunnel)",
        BOTH,
        &[NotAllowed],
        |g| raw(g, &craft::echo(g.ends(), g.token())),
    ),
    pod(
        (30, Sockets),
        "UDP from a raw socket with a header of its own",
        BOTH,
        &[NotAllowed],
        |g| raw(g, &g.udp(g.ends(), 9999)),
    ),
    pod(
        (31, Sockets),
        "UDP from a packet socket",
        BOTH,
        &[NotAllowed],
        |g| g.send_ip(&[g.udp(g.ends(), 9999)]),
    ),
    pod(
        (32, Sockets),
        "TCP SYN from a packet socket",
        BOTH,
        &[NotAllowed],
        |g| g.send_ip(&[g.syn(g.ends(), 80)]),
    ),
    pod(
        (33, Sockets),
        "packet socket with PACKET_QDISC_BYPASS",
        BOTH,
        &[NotAllowed],
        qdisc_bypass,
    ),
    pod(
        (34, Sockets),
        "packet socket of kind DGRAM",
        BOTH,
        &[NotAllowed],
        cooked,
    ),
    pod(
        (35, Sockets),
        "TCP connect by io_uring",
        BOTH,
        &[NotAllowed],
        uring::connect,
    ),
    pod(
        (36, Sockets),
        "UDP send by io_uring",
        BOTH,
        &[NotAllowed],
        uring::send,
    ),
    pod(
        (37, Sockets),
        "SO_MARK, as a CNI's own packets have it",
        BOTH,
        &[NotAllowed],
        |g| udp_with(g, |socket| setsockopt(socket, sockopt::Mark, &0x1e00)),
    ),
    pod((38, Sockets), "SO_BINDTODEVICE", BOTH, &[NotAllowed], |g| {
        udp_with(g, |socket| {
            setsockopt(socket, sockopt::BindToDevice, &g.device.clone().into())
        })
    }),
    pod((39, Sockets), "SO_PRIORITY", BOTH, &[NotAllowed], |g| {
        udp_with(g, |socket| setsockopt(socket, sockopt::Priority, &7))
    }),
    pod(
        (40, Sockets),
        "UDP segmentation offload",
        BOTH,
        &[NotAllowed],
        segmented,
    ),
    pod((41, Sockets), "MSG_ZEROCOPY", BOTH, &[NotAllowed], zerocopy),
    pod(
        (42, Sockets),
        "IP_TRANSPARENT with a foreign source",
        BOTH,
        &[Spoofed],
        transparent,
    ),
    pod(
        (43, Sockets),
        "IPv4-mapped address on an IPv6 socket",
        V4,
        &[NotAllowed],
        mapped,
    ),
    pod(
        (44, Sockets),
        "UDP connect and write, no destination in the call",
        BOTH,
        &[NotAllowed],
        written,
    ),
];

const SOCK_DCCP: i32 = 6;
const IPPROTO_DCCP: i32 = 33;
const AF_SMC: i32 = 43;
/// `linux/tcp.h`: no cookie is needed for data in the SYN.
const TCP_FASTOPEN_NO_COOKIE: i32 = 34;
/// `linux/udp.h`.
const UDP_SEGMENT: i32 = 103;

pub(super) fn family(ground: &Ground) -> i32 {
    if ground.is_v6() {
        libc::AF_INET6
    } else {
        libc::AF_INET
    }
}

pub(super) fn storage(to: SocketAddr) -> SockaddrStorage {
    to.into()
}

fn open(ground: &Ground, kind: i32, protocol: i32) -> Result<OwnedFd, Trouble> {
    socket(family(ground), kind, protocol).map_err(failed("open such a socket"))
}

/// A TCP connection that is begun.
pub(super) fn tcp(ground: &Ground) -> Result<(), Trouble> {
    connect(ground, libc::SOCK_STREAM, 0)
}

pub(super) fn connect(ground: &Ground, kind: i32, protocol: i32) -> Result<(), Trouble> {
    let socket = open(ground, kind | libc::SOCK_NONBLOCK, protocol)?;
    begin(&socket, SocketAddr::new(ground.order.aim, ground.port()))
}

fn begin(socket: &OwnedFd, to: SocketAddr) -> Result<(), Trouble> {
    match nix::sys::socket::connect(socket.as_raw_fd(), &storage(to)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(()),
        Err(error) => Err(failed("connect")(error.into())),
    }
}

pub(super) fn udp(ground: &Ground) -> Result<(), Trouble> {
    datagram(ground, 0)
}

fn datagram(ground: &Ground, protocol: i32) -> Result<(), Trouble> {
    let socket = open(ground, libc::SOCK_DGRAM, protocol)?;
    send(&socket, ground, ground.token(), MsgFlags::empty())
}

fn udp_with(ground: &Ground, set: impl FnOnce(&OwnedFd) -> nix::Result<()>) -> Result<(), Trouble> {
    let socket = open(ground, libc::SOCK_DGRAM, 0)?;
    set(&socket).map_err(|error| failed("set the option")(error.into()))?;
    send(&socket, ground, ground.token(), MsgFlags::empty())
}

fn send(socket: &OwnedFd, ground: &Ground, payload: &[u8], flags: MsgFlags) -> Result<(), Trouble> {
    let to = storage(SocketAddr::new(ground.order.aim, 9999));
    sendto(socket.as_raw_fd(), payload, &to, flags)
        .map(drop)
        .map_err(|error| failed("send")(error.into()))
}

pub(super) fn raw(ground: &Ground, packet: &[u8]) -> Result<(), Trouble> {
    craft::send_raw(packet, ground.order.aim).map_err(failed("send from a raw socket"))
}

/// RFC 9000, 17.2.2: long header, fixed bit, version 1, the token as connection id; padded to 1200.
fn quic(ground: &Ground) -> Result<(), Trouble> {
    let mut packet = vec![0xc3, 0, 0, 0, 1, 12];
    packet.extend(ground.token());
    packet.extend([0, 0, 0x44, 0x96]);
    packet.resize(1200, 0);
    let socket = open(ground, libc::SOCK_DGRAM, 0)?;
    let to = storage(SocketAddr::new(ground.order.aim, 443));
    sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty())
        .map(drop)
        .map_err(|error| failed("send")(error.into()))
}

fn fast_open(ground: &Ground) -> Result<(), Trouble> {
    let socket = open(ground, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    set_number(&socket, libc::IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)?;
    let to = storage(SocketAddr::new(ground.order.aim, ground.port()));
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    match sendto(socket.as_raw_fd(), ground.token(), &to, flags) {
        Ok(_) | Err(nix::errno::Errno::EINPROGRESS) => Ok(()),
        Err(error) => Err(failed("send with the SYN")(error.into())),
    }
}

fn smc(ground: &Ground) -> Result<(), Trouble> {
    let protocol = i32::from(ground.is_v6());
    let socket = socket(AF_SMC, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, protocol)
        .map_err(failed("open such a socket"))?;
    begin(&socket, SocketAddr::new(ground.order.aim, ground.port()))
}

fn ping(ground: &Ground) -> Result<(), Trouble> {
    let protocol = if ground.is_v6() {
        libc::IPPROTO_ICMPV6
    } else {
        libc::IPPROTO_ICMP
    };
    let socket = open(ground, libc::SOCK_DGRAM, protocol)?;
    let kind = if ground.is_v6() { 128 } else { 8 };
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 1];
    message.extend(ground.token());
    send(&socket, ground, &message, MsgFlags::empty())
}

fn qdisc_bypass(ground: &Ground) -> Result<(), Trouble> {
    let socket =
        craft::bound(&ground.device, libc::SOCK_RAW, 0).map_err(failed("open a packet socket"))?;
    set_number(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
    let packet = ground.udp(ground.ends(), 9999);
    let frame = ground.frame(ethertype_of(&packet), &packet);
    nix::sys::socket::send(socket.as_raw_fd(), &frame, MsgFlags::empty())
        .map(drop)
        .map_err(|error| failed("send")(error.into()))
}

fn cooked(ground: &Ground) -> Result<(), Trouble> {
    let packet = ground.udp(ground.ends(), 9999);
    craft::send_cooked(&ground.device, ground.next_hop, &packet).map_err(failed("send"))
}

/// The device gets one packet of two segments.
fn segmented(ground: &Ground) -> Result<(), Trouble> {
    let socket = open(ground, libc::SOCK_DGRAM, 0)?;
    set_number(&socket, libc::SOL_UDP, UDP_SEGMENT, 24)?;
    send(
        &socket,
        ground,
        &ground.token().repeat(4),
        MsgFlags::empty(),
    )
}

fn zerocopy(ground: &Ground) -> Result<(), Trouble> {
    let socket = open(ground, libc::SOCK_DGRAM, 0)?;
    set_number(&socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)?;
    send(
        &socket,
        ground,
        &ground.token().repeat(64),
        MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY),
    )
}

fn transparent(ground: &Ground) -> Result<(), Trouble> {
    let socket = open(ground, libc::SOCK_DGRAM, 0)?;
    let (level, option, foreign) = if ground.is_v6() {
        let foreign: Ipv6Addr = "2001:db8:5::5".parse().expect("an address");
        (libc::SOL_IPV6, libc::IPV6_TRANSPARENT, IpAddr::V6(foreign))
    } else {
        (
            libc::SOL_IP,
            libc::IP_TRANSPARENT,
            IpAddr::V4(Ipv4Addr::new(198, 18, 5, 5)),
        )
    };
    set_number(&socket, level, option, 1)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &storage(SocketAddr::new(foreign, 0)))
        .map_err(|error| failed("bind a foreign address")(error.into()))?;
    send(&socket, ground, ground.token(), MsgFlags::empty())
}

fn mapped(ground: &Ground) -> Result<(), Trouble> {
    let IpAddr::V4(aim) = ground.order.aim else {
        return Err(Trouble::Absent("only IPv4 addresses are mapped".to_owned()));
    };
    let socket =
        socket(libc::AF_INET6, libc::SOCK_DGRAM, 0).map_err(failed("open an IPv6 socket"))?;
    let to = storage(SocketAddr::new(aim.to_ipv6_mapped().into(), 9999));
    sendto(socket.as_raw_fd(), ground.token(), &to, MsgFlags::empty())
        .map(drop)
        .map_err(|error| failed("send")(error.into()))
}

fn written(ground: &Ground) -> Result<(), Trouble> {
    let socket = open(ground, libc::SOCK_DGRAM, 0)?;
    begin(&socket, SocketAddr::new(ground.order.aim, 9999))?;
    nix::unistd::write(&socket, ground.token())
        .map(drop)
        .map_err(|error| failed("write")(error.into()))
}

pub(super) fn set_number(
    socket: &OwnedFd,
    level: i32,
    option: i32,
    value: i32,
) -> Result<(), Trouble> {
    // SAFETY: a number is no address.
    unsafe { craft::set_option(socket, (level, option), &value.to_ne_bytes()) }
        .map_err(failed("set the option"))
}
