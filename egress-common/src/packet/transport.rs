//! TCP, UDP, SCTP and ICMP headers, and the packet that an ICMP error quotes.

use super::wire::{Aligned4, Aligned6};
use super::{Headers, ICMP, ICMPV6, Packet, SCTP, TCP, UDP, icmp, mapped};
use crate::reason::Reason;

/// Bytes of a transport header that must be there, in the first fragment too.
pub const fn header_len(proto: u8) -> usize {
    match proto {
        TCP => 20,
        UDP | ICMP | ICMPV6 => 8,
        // With the first chunk's type.
        SCTP => 13,
        _ => 0,
    }
}

/// Reads the transport header; `len` bytes of it belong to the packet.
#[inline(always)]
pub(super) fn transport<P: Packet>(
    packet: &P,
    headers: &mut Headers,
    len: usize,
    position: usize,
) -> Option<Reason> {
    if headers.is_later_fragment() {
        // It would write over the header that the verdict of the first fragment rests on. In IPv6 what a
        // later fragment says of the protocol binds nobody: the longest of them counts.
        let header = if headers.v6 {
            header_len(TCP)
        } else {
            header_len(headers.proto)
        };
        return (position < header).then_some(Reason::FragmentTiny);
    }
    if len < header_len(headers.proto) {
        return Some(if headers.is_first_fragment() {
            Reason::FragmentTiny
        } else {
            Reason::Malformed
        });
    }
    let at = headers.at();
    match headers.proto {
        TCP => {
            let Some([ports, _, _, fourth]) = packet.load::<[u32; 4]>(at) else {
                return Some(Reason::Malformed);
            };
            let [offset, flags, _, _] = fourth.to_ne_bytes();
            let tcp_len = usize::from(offset >> 4) * 4;
            if tcp_len < 20 || (tcp_len > len && !headers.is_first_fragment()) {
                return Some(Reason::Malformed);
            }
            set_ports(headers, ports);
            headers.flags = flags;
        }
        UDP => match packet.load::<u32>(at) {
            Some(ports) => set_ports(headers, ports),
            None => return Some(Reason::Malformed),
        },
        SCTP => {
            let (Some(ports), Some(chunk)) = (packet.load::<u32>(at), packet.load::<u8>(at + 12))
            else {
                return Some(Reason::Malformed);
            };
            set_ports(headers, ports);
            headers.flags = chunk;
        }
        ICMP | ICMPV6 => {
            let Some([head, rest]) = packet.load::<[u32; 2]>(at) else {
                return Some(Reason::Malformed);
            };
            let [kind, code, _, _] = head.to_ne_bytes();
            headers.flags = kind;
            headers.code = code;
            if is_echo(headers.proto, kind) {
                set_identifier(headers, rest);
            }
        }
        _ => {}
    }
    None
}

const fn is_echo(proto: u8, kind: u8) -> bool {
    match proto {
        ICMP => matches!(kind, icmp::ECHO | icmp::ECHO_REPLY),
        _ => matches!(kind, icmp::ECHO_V6 | icmp::ECHO_REPLY_V6),
    }
}

#[inline(always)]
const fn set_ports(headers: &mut Headers, ports: u32) {
    let [s0, s1, d0, d1] = ports.to_ne_bytes();
    headers.src_port_be = u16::from_ne_bytes([s0, s1]);
    headers.dst_port_be = u16::from_ne_bytes([d0, d1]);
}

#[inline(always)]
const fn set_identifier(headers: &mut Headers, rest: u32) {
    let [id_hi, id_lo, _, _] = rest.to_ne_bytes();
    headers.src_port_be = u16::from_ne_bytes([id_hi, id_lo]);
    headers.dst_port_be = headers.src_port_be;
}

/// Reads the packet that the ICMP error `about` quotes, that is, what somebody had sent to the pod,
/// into `headers`, which must be [`Headers::default`]. False if it is of another family, a later
/// fragment, has extension headers, or ends before its ports.
#[inline(always)]
pub fn quoted<P: Packet>(packet: &P, about: &Headers, headers: &mut Headers) -> bool {
    let start = about.at() + 8;
    let ports_at = if about.v6 {
        let Some(header) = packet.load::<Aligned6>(start) else {
            return false;
        };
        let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = header.words;
        if first.to_ne_bytes()[0] >> 4 != 6 {
            return false;
        }
        headers.src = [s0, s1, s2, s3];
        headers.dst = [d0, d1, d2, d3];
        headers.proto = second.to_ne_bytes()[2];
        start + 40
    } else {
        let Some(header) = packet.load::<Aligned4>(start) else {
            return false;
        };
        let [first, second, third, src, dst] = header.words;
        let version_ihl = first.to_ne_bytes()[0];
        let header_len = usize::from(version_ihl & 0x0f) * 4;
        let [_, _, frag_hi, frag_lo] = second.to_ne_bytes();
        if version_ihl >> 4 != 4 || header_len < 20 || (frag_hi & 0x1f) | frag_lo != 0 {
            return false;
        }
        headers.src = mapped(src);
        headers.dst = mapped(dst);
        headers.proto = third.to_ne_bytes()[1];
        start + header_len
    };
    headers.v6 = about.v6;
    let Some([head, rest]) = packet.load::<[u32; 2]>(ports_at) else {
        return false;
    };
    match headers.proto {
        TCP | UDP | SCTP => set_ports(headers, head),
        ICMP | ICMPV6 if is_echo(headers.proto, head.to_ne_bytes()[0]) => {
            set_identifier(headers, rest);
        }
        _ => return false,
    }
    true
}
