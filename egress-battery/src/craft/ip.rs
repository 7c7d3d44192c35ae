//! IP packets and what is in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::protocol;

/// Sender and receiver, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Ends {
    /// None if the families differ.
    pub const fn new(source: IpAddr, destination: IpAddr) -> Option<Self> {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Some(Self::V4(source, destination)),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Some(Self::V6(source, destination)),
            _ => None,
        }
    }

    pub const fn destination(self) -> IpAddr {
        match self {
            Self::V4(_, it) => IpAddr::V4(it),
            Self::V6(_, it) => IpAddr::V6(it),
        }
    }

    /// The other way.
    #[must_use]
    pub const fn back(self) -> Self {
        match self {
            Self::V4(a, b) => Self::V4(b, a),
            Self::V6(a, b) => Self::V6(b, a),
        }
    }

    fn octets(self) -> Vec<u8> {
        match self {
            Self::V4(a, b) => [a.octets(), b.octets()].concat(),
            Self::V6(a, b) => [a.octets(), b.octets()].concat(),
        }
    }
}

/// What can be written into an IPv4 header.
#[derive(Clone, Debug)]
pub struct V4 {
    pub ends: (Ipv4Addr, Ipv4Addr),
    pub protocol: u8,
    pub id: u16,
    /// Flags and offset, as in the header.
    pub fragment: u16,
    pub ttl: u8,
    /// A multiple of four bytes.
    pub options: Vec<u8>,
}

impl V4 {
    pub const fn new(ends: (Ipv4Addr, Ipv4Addr), protocol: u8) -> Self {
        Self {
            ends,
            protocol,
            id: 0x5a11,
            fragment: 0,
            ttl: 64,
            options: Vec::new(),
        }
    }

    /// The packet, with lengths and checksum as they must be.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let mut packet = vec![0x40 | small(header / 4), 0];
        packet.extend(length(header + payload.len()).to_be_bytes());
        packet.extend(self.id.to_be_bytes());
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([self.ttl, self.protocol, 0, 0]);
        packet.extend(self.ends.0.octets());
        packet.extend(self.ends.1.octets());
        packet.extend(&self.options);
        sum_in(&mut packet, 10);
        packet.extend(payload);
        packet
    }
}

/// A packet of either family, its first header of this protocol.
pub fn packet(ends: Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match ends {
        Ends::V4(source, destination) => V4::new((source, destination), protocol).packet(payload),
        Ends::V6(..) => {
            // Link scope and a hop limit of 255 is what neighbour discovery asks for, and harms
            // nobody else.
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(length(payload.len()).to_be_bytes());
            packet.extend([protocol, 255]);
            packet.extend(ends.octets());
            packet.extend(payload);
            packet
        }
    }
}

/// A UDP datagram with its checksum. Ports in host byte order.
pub fn udp(ends: Ends, (from, to): (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    for field in [from, to, length(8 + payload.len()), 0] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.extend(payload);
    let sum = pseudo_sum(ends, protocol::UDP, &datagram);
    // Zero means "no checksum" in UDP.
    let sum = if sum == 0 { 0xffff } else { sum };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// A TCP segment with its checksum.
pub fn tcp(ends: Ends, (from, to): (u16, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    let sum = pseudo_sum(ends, protocol::TCP, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// An ICMP message of the family's own protocol, with its checksum: type, code, the rest of the
/// first eight bytes, and what follows.
pub fn icmp(ends: Ends, head: [u8; 2], rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut message = vec![head[0], head[1], 0, 0];
    message.extend(rest);
    message.extend(payload);
    let sum = match ends {
        Ends::V4(..) => checksum(&message),
        Ends::V6(..) => pseudo_sum(ends, protocol::ICMPV6, &message),
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(ends, icmp_of(ends), &message)
}

/// An ICMP echo request.
pub fn echo(ends: Ends, payload: &[u8]) -> Vec<u8> {
    let kind = if matches!(ends, Ends::V4(..)) { 8 } else { 128 };
    icmp(ends, [kind, 0], [0x5a, 0x11, 0, 1], payload)
}

/// "Port unreachable", about this packet.
pub fn error(ends: Ends, about: &[u8]) -> Vec<u8> {
    let head = if matches!(ends, Ends::V4(..)) {
        [3, 3]
    } else {
        [1, 4]
    };
    icmp(ends, head, [0; 4], about)
}

/// A UDP packet that nobody sent, as an ICMP error would quote it.
pub fn quoting(ends: Ends, payload: &[u8]) -> Vec<u8> {
    let back = ends.back();
    packet(back, protocol::UDP, &udp(back, (9, 40_000), payload))
}

/// A fragment: `position` in bytes, a multiple of eight.
pub fn fragment(
    ends: Ends,
    protocol: u8,
    id: u16,
    (position, more): (u16, bool),
    part: &[u8],
) -> Vec<u8> {
    match ends {
        Ends::V4(source, destination) => V4 {
            id,
            fragment: (position / 8) | if more { 0x2000 } else { 0 },
            ..V4::new((source, destination), protocol)
        }
        .packet(part),
        Ends::V6(..) => {
            let [hi, lo] = (position | u16::from(more)).to_be_bytes();
            let [a, b] = id.to_be_bytes();
            let header = [protocol, 0, hi, lo, 0, 0, a, b];
            packet(ends, 44, &[&header, part].concat())
        }
    }
}

const fn icmp_of(ends: Ends) -> u8 {
    match ends {
        Ends::V4(..) => protocol::ICMP,
        Ends::V6(..) => protocol::ICMPV6,
    }
}

/// Writes the checksum of all bytes to `place`, which must be zero.
pub fn sum_in(bytes: &mut [u8], place: usize) {
    let sum = checksum(bytes);
    bytes[place..place + 2].copy_from_slice(&sum.to_be_bytes());
}

/// What is in the checksum's place where a device is to fill it in: the sum of the addresses, the
/// protocol and the length alone.
pub(crate) fn partial_sum(ends: Ends, protocol: u8, bytes: usize) -> u16 {
    !pseudo_sum(ends, protocol, &vec![0; bytes])
}

fn pseudo_sum(ends: Ends, protocol: u8, message: &[u8]) -> u16 {
    let mut bytes = ends.octets();
    bytes.extend(u32::from(length(message.len())).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes.extend(message);
    checksum(&bytes)
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("it was folded")
}

/// Lengths beyond a packet's are a mistake of ours.
fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("a packet's length")
}

fn small(number: usize) -> u8 {
    u8::try_from(number).expect("a header's length")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> [Ends; 2] {
        let new = |a: &str, b: &str| Ends::new(a.parse().unwrap(), b.parse().unwrap()).unwrap();
        [
            new("10.244.1.11", "203.0.113.10"),
            new("fd00::b", "2001:db8::10"),
        ]
    }

    #[test]
    fn checksums_sum_to_zero() {
        let [v4, v6] = ends();
        let whole = packet(v4, protocol::UDP, &udp(v4, (40_000, 9999), b"odd"));
        assert_eq!(checksum(&whole[..20]), 0);
        assert_eq!(whole.len(), 31);
        for ends in [v4, v6] {
            for (number, message) in [
                (protocol::UDP, udp(ends, (1, 2), b"odd")),
                (protocol::TCP, tcp(ends, (1, 2), 2, b"odd")),
            ] {
                assert_eq!(pseudo_sum(ends, number, &message), 0);
            }
        }
        assert_eq!(checksum(&echo(v4, b"odd")[20..]), 0);
        assert_eq!(pseudo_sum(v6, protocol::ICMPV6, &echo(v6, b"odd")[40..]), 0);
    }

    #[test]
    fn families_are_not_mixed() {
        let (v4, v6) = ("10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        assert_eq!(Ends::new(v4, v6), None);
    }

    #[test]
    fn fragments_say_where_they_belong() {
        let [v4, v6] = ends();
        let four = fragment(v4, protocol::UDP, 7, (64, true), b"12345678");
        assert_eq!(
            (&four[4..8], four[9]),
            (&[0, 7, 0x20, 8][..], protocol::UDP)
        );
        let six = fragment(v6, protocol::UDP, 7, (64, true), b"12345678");
        assert_eq!(
            (six[6], &six[40..48]),
            (44, &[17, 0, 0, 65, 0, 0, 0, 7][..])
        );
    }
}
