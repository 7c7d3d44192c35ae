//! A frame as a patient reader with the standards at hand reads it: slices, no tricks, and nothing
//! of what `egress_common::packet` does.

use egress_common::Side;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const OPTIONS: u8 = 60;
/// Extension headers that nobody walks through: mobility, HIP, shim6.
const OTHERS: [u8; 3] = [135, 139, 140];
/// Headers that are walked through at most.
const EXTENSIONS: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    First,
    Later,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip<'a> {
    pub v6: bool,
    /// IPv4 is mapped.
    pub src: [u8; 16],
    pub dst: [u8; 16],
    pub proto: u8,
    pub hops: u8,
    pub part: Part,
    pub id: [u8; 4],
    /// Zero without; of an echo its identifier, in both.
    pub src_port: u16,
    pub dst_port: u16,
    /// TCP's flags, ICMP's type, the type of SCTP's first chunk.
    pub kind: u8,
    /// From the transport header to the end of the frame.
    pub body: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading<'a> {
    Arp { sender: [u8; 4] },
    Ip(Ip<'a>),
}

/// None for what is to be refused whatever the rules.
pub fn read(side: Side, frame: &[u8]) -> Option<Reading<'_>> {
    if matches!(side, Side::Cgroup) {
        return match frame.first()? >> 4 {
            4 => ipv4(frame),
            6 => ipv6(frame),
            _ => None,
        }
        .map(Reading::Ip);
    }
    let packet = frame.get(14..)?;
    match u16_at(frame, 12)? {
        0x0800 => ipv4(packet).map(Reading::Ip),
        0x86dd => ipv6(packet).map(Reading::Ip),
        0x0806 => arp(packet),
        _ => None,
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

pub fn mapped(v4: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = v4;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn arp(packet: &[u8]) -> Option<Reading<'_>> {
    if packet.len() < 28 || packet[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    Some(Reading::Arp {
        sender: array(packet, 14)?,
    })
}

fn ipv4(packet: &[u8]) -> Option<Ip<'_>> {
    let fixed = packet.get(..20)?;
    let header = usize::from(fixed[0] & 0xf) * 4;
    let total = usize::from(u16_at(fixed, 2)?);
    if fixed[0] >> 4 != 4 || header < 20 || total < header || total > packet.len() {
        return None;
    }
    options(&packet[20..header])?;
    let word = u16_at(fixed, 6)?;
    let position = usize::from(word & 0x1fff) * 8;
    let part = match (position, word & 0x2000) {
        (0, 0) => Part::Whole,
        (0, _) => Part::First,
        _ => Part::Later,
    };
    let mut ip = Ip {
        v6: false,
        src: mapped(array(fixed, 12)?),
        dst: mapped(array(fixed, 16)?),
        proto: fixed[9],
        hops: fixed[8],
        part,
        id: match part {
            Part::Whole => [0; 4],
            _ => [fixed[4], fixed[5], 0, 0],
        },
        src_port: 0,
        dst_port: 0,
        kind: 0,
        body: &packet[header..],
    };
    transport(&mut ip, total - header, position)?;
    Some(ip)
}

/// None for source routes and for lists that don't parse.
fn options(mut list: &[u8]) -> Option<()> {
    while let Some((kind, rest)) = list.split_first() {
        match kind {
            0 => return Some(()),
            1 => list = rest,
            131 | 137 => return None,
            _ => {
                let length = usize::from(*rest.first()?);
                if length < 2 {
                    return None;
                }
                list = list.get(length..)?;
            }
        }
    }
    Some(())
}

fn ipv6(packet: &[u8]) -> Option<Ip<'_>> {
    let fixed = packet.get(..40)?;
    let payload = usize::from(u16_at(fixed, 4)?);
    if fixed[0] >> 4 != 6 || payload > packet.len() - 40 {
        return None;
    }
    let end = 40 + payload;
    let mut ip = Ip {
        v6: true,
        src: array(fixed, 8)?,
        dst: array(fixed, 24)?,
        proto: fixed[6],
        hops: fixed[7],
        part: Part::Whole,
        id: [0; 4],
        src_port: 0,
        dst_port: 0,
        kind: 0,
        body: &[],
    };
    let mut at = 40;
    let mut position = 0;
    let mut walked = 0;
    loop {
        let header = packet.get(at..end)?;
        match ip.proto {
            HOP_BY_HOP | OPTIONS if ip.proto == OPTIONS || at == 40 => {
                ip.proto = *header.first()?;
                at += (usize::from(*header.get(1)?) + 1) * 8;
            }
            FRAGMENT if ip.part == Part::Whole => {
                let word = u16_at(header, 2)?;
                position = usize::from(word & 0xfff8);
                ip.proto = *header.first()?;
                ip.id = array(header, 4)?;
                at += 8;
                if position != 0 {
                    ip.part = Part::Later;
                    break;
                }
                if word & 1 == 1 {
                    ip.part = Part::First;
                }
            }
            HOP_BY_HOP | FRAGMENT | ROUTING => return None,
            other if OTHERS.contains(&other) => return None,
            _ => break,
        }
        walked += 1;
        if walked > EXTENSIONS {
            return None;
        }
    }
    packet.get(at..end)?;
    ip.body = packet.get(at..)?;
    transport(&mut ip, end - at, position)?;
    Some(ip)
}

/// Bytes of a transport header that a verdict rests on.
fn needed(proto: u8) -> usize {
    match proto {
        TCP => 20,
        UDP | ICMP | ICMPV6 => 8,
        SCTP => 13,
        _ => 0,
    }
}

/// `len` bytes of the body belong to the packet.
fn transport(ip: &mut Ip<'_>, len: usize, position: usize) -> Option<()> {
    if ip.part == Part::Later {
        // It must not write over the header of the first, which in IPv6 may be of any protocol.
        let needed = needed(if ip.v6 { TCP } else { ip.proto });
        return (position >= needed).then_some(());
    }
    let header = &ip.body[..len];
    if len < needed(ip.proto) {
        return None;
    }
    match ip.proto {
        TCP => {
            let length = usize::from(header[12] >> 4) * 4;
            if length < 20 || (length > len && ip.part == Part::Whole) {
                return None;
            }
            ip.kind = header[13];
        }
        SCTP => ip.kind = header[12],
        ICMP | ICMPV6 => ip.kind = header[0],
        _ => {}
    }
    (ip.src_port, ip.dst_port) = ports(ip.proto, header);
    Some(())
}

/// Ports of a transport header, or an echo's identifier twice.
pub fn ports(proto: u8, header: &[u8]) -> (u16, u16) {
    let at = |at| u16_at(header, at).unwrap_or_default();
    match proto {
        TCP | UDP | SCTP => (at(0), at(2)),
        ICMP if matches!(header[0], 0 | 8) => (at(4), at(4)),
        ICMPV6 if matches!(header[0], 128 | 129) => (at(4), at(4)),
        _ => (0, 0),
    }
}
