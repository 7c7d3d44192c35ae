//! The first packet of what somebody would try, as a pod's device would see it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A SYN.
    Tcp,
    /// An empty datagram.
    Udp,
    /// An echo request.
    Icmp,
}

const SOURCE_PORT: u16 = 40000;
const TTL: u8 = 64;
const ETHERNET: usize = 14;
const SYN: u8 = 2;

/// The Ethernet frame; none if source and destination are of different families.
pub fn frame(kind: Kind, source: IpAddr, destination: IpAddr, port: u16) -> Option<Vec<u8>> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00]);
            frame.extend(ipv4(kind, source, destination, port));
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd]);
            frame.extend(ipv6(kind, source, destination, port));
        }
        _ => return None,
    }
    Some(frame)
}

/// The same without its Ethernet header, as the hook of a host-network pod sees it.
pub fn packet(kind: Kind, source: IpAddr, destination: IpAddr, port: u16) -> Option<Vec<u8>> {
    frame(kind, source, destination, port).map(|mut frame| frame.split_off(ETHERNET))
}

fn ipv4(kind: Kind, source: Ipv4Addr, destination: Ipv4Addr, port: u16) -> Vec<u8> {
    let payload = transport(kind, port, false);
    let length = u16::try_from(20 + payload.len()).expect("a few bytes");
    let [high, low] = length.to_be_bytes();
    let mut packet = vec![
        0x45,
        0,
        high,
        low,
        0,
        1,
        0x40,
        0,
        TTL,
        protocol(kind, false),
        0,
        0,
    ];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

fn ipv6(kind: Kind, source: Ipv6Addr, destination: Ipv6Addr, port: u16) -> Vec<u8> {
    let payload = transport(kind, port, true);
    let length = u16::try_from(payload.len()).expect("a few bytes");
    let [high, low] = length.to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, high, low, protocol(kind, true), TTL];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

fn protocol(kind: Kind, v6: bool) -> u8 {
    match (kind, v6) {
        (Kind::Tcp, _) => 6,
        (Kind::Udp, _) => 17,
        (Kind::Icmp, false) => 1,
        (Kind::Icmp, true) => 58,
    }
}

/// The transport header; its checksum is left out, nobody on the way reads it.
fn transport(kind: Kind, port: u16, v6: bool) -> Vec<u8> {
    let (from, to) = (SOURCE_PORT.to_be_bytes(), port.to_be_bytes());
    match kind {
        Kind::Tcp => {
            let mut header = vec![from[0], from[1], to[0], to[1], 0, 0, 0, 1, 0, 0, 0, 0];
            header.extend([0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]);
            header
        }
        Kind::Udp => vec![from[0], from[1], to[0], to[1], 0, 8, 0, 0],
        Kind::Icmp => vec![if v6 { 128 } else { 8 }, 0, 0, 0, 0, 1, 0, 1],
    }
}

/// RFC 1071.
fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).expect("folded")
}
