//! IPv4 and IPv6 headers, with their options, extension headers and fragments.

use super::transport::transport;
use super::wire::{Aligned4, Aligned6};
use super::{Headers, Packet, Part, mapped};
use crate::limits::MAX_EXTENSION_HEADERS;
use crate::reason::Reason;

/// IPv4 option numbers of the two source routes (RFC 791).
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;

#[inline(always)]
pub(super) fn ipv4<P: Packet>(
    packet: &P,
    start: usize,
    header: &Aligned4,
    headers: &mut Headers,
    zero: u8,
) -> Option<Reason> {
    let [first, second, third, src, dst] = header.words;
    let [version_ihl, _, len_hi, len_lo] = first.to_ne_bytes();
    let [_, _, frag_hi, frag_lo] = second.to_ne_bytes();
    let [hops, proto, _, _] = third.to_ne_bytes();

    let header_len = usize::from(version_ihl & 0x0f) * 4;
    let present = packet.len() - start;
    let total = match usize::from(u16::from_be_bytes([len_hi, len_lo])) {
        // A segmentation offload of over 64 KiB ("BIG TCP") has no room for its length.
        0 if present > usize::from(u16::MAX) => present,
        total => total,
    };
    if version_ihl >> 4 != 4 || header_len < 20 || total < header_len || total > present {
        return Some(Reason::Malformed);
    }
    if header_len > 20
        && let Some(reason) = options(packet, start + 20, start + header_len)
    {
        return Some(reason);
    }
    headers.src = mapped(src);
    headers.dst = mapped(dst);
    headers.hops = hops;
    headers.proto = proto;
    headers.offset = (start + header_len) as u32;
    let fragment = u16::from_be_bytes([frag_hi, frag_lo]);
    let position = usize::from(fragment & 0x1fff) * 8;
    if fragment & 0x3fff != 0 {
        headers.part = if position == 0 {
            Part::First
        } else {
            Part::Later
        };
        headers.id = second & u32::from_ne_bytes([0xff, 0xff, 0, 0]);
        let failed = transport(packet, headers, total - header_len, position);
        headers.forget_path(zero);
        return failed;
    }
    transport(packet, headers, total - header_len, 0)
}

/// Refuses source routes, and option lists that don't parse. Other options may pass.
#[inline(never)]
fn options<P: Packet>(packet: &P, start: usize, end: usize) -> Option<Reason> {
    // Bytes of the present option that are still to be passed over. Going byte by byte instead of
    // option by option keeps the position a constant for the verifier.
    let mut skip = 0;
    // At most 40 bytes of options.
    for at in start..start + 40 {
        if at >= end {
            break;
        }
        if skip > 0 {
            skip -= 1;
            continue;
        }
        // The length of an option that has one; behind the last option stands the payload.
        let Some(head) = packet.load::<u16>(at) else {
            return Some(Reason::Malformed);
        };
        match head.to_ne_bytes() {
            [0, _] => return None,
            [1, _] => {}
            [OPTION_LSRR | OPTION_SSRR, _] => return Some(Reason::SourceRoute),
            [_, len] if len >= 2 => skip = len - 1,
            _ => return Some(Reason::Malformed),
        }
    }
    if skip == 0 {
        None
    } else {
        Some(Reason::Malformed)
    }
}

/// Whether this is the number of an extension header, one that is parsed or one that is not.
const fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 60 | 135 | 139 | 140)
}

#[inline(always)]
pub(super) fn ipv6<P: Packet>(
    packet: &P,
    start: usize,
    headers: &mut Headers,
    zero: u8,
) -> Option<Reason> {
    let Some(header) = packet.load::<Aligned6>(start) else {
        return Some(Reason::Malformed);
    };
    let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = header.words;
    let [len_hi, len_lo, next, hops] = second.to_ne_bytes();
    let present = packet.len() - start;
    let payload = match usize::from(u16::from_be_bytes([len_hi, len_lo])) {
        // As for IPv4; such a packet never reaches a wire as it is.
        0 if present > usize::from(u16::MAX) => present - 40,
        payload => payload,
    };
    if first.to_ne_bytes()[0] >> 4 != 6 || payload > present - 40 {
        return Some(Reason::Malformed);
    }
    headers.v6 = true;
    headers.src = [s0, s1, s2, s3];
    headers.dst = [d0, d1, d2, d3];
    headers.hops = hops;
    headers.proto = next;
    if is_extension(next) {
        return extensions(packet, start + 40, start + 40 + payload, headers, zero);
    }
    headers.offset = (start + 40) as u32;
    transport(packet, headers, payload, 0)
}

/// Walks the extension headers from `start` on, the first of which `headers.proto` names; the packet
/// goes to `end`.
#[inline(never)]
fn extensions<P: Packet>(
    packet: &P,
    start: usize,
    end: usize,
    headers: &mut Headers,
    zero: u8,
) -> Option<Reason> {
    let mut next = headers.proto;
    let mut at = start;
    let mut position = 0;
    for _ in 0..=MAX_EXTENSION_HEADERS {
        match next {
            // Hop-by-hop and destination options: length in units of 8 bytes, less the first.
            0 | 60 => {
                let Some(head) = packet.load::<u16>(at) else {
                    return Some(Reason::Malformed);
                };
                let [following, units] = head.to_ne_bytes();
                // Hop-by-hop options stand first or not at all (RFC 8200, 4.1).
                if next == 0 && at != start {
                    return Some(Reason::ExtensionHeader);
                }
                next = following;
                at += (usize::from(units) + 1) * 8;
            }
            44 => {
                if headers.is_first_fragment() {
                    return Some(Reason::ExtensionHeader);
                }
                let Some([head, id]) = packet.load::<[u32; 2]>(at) else {
                    return Some(Reason::Malformed);
                };
                let [following, _, frag_hi, frag_lo] = head.to_ne_bytes();
                let fragment = u16::from_be_bytes([frag_hi, frag_lo]);
                position = usize::from(fragment & 0xfff8);
                next = following;
                at += 8;
                headers.id = id;
                // Offset 0 and nothing to follow is a whole packet (RFC 6946).
                if position != 0 {
                    headers.part = Part::Later;
                    break;
                } else if fragment & 1 != 0 {
                    headers.part = Part::First;
                }
            }
            43 => return Some(Reason::SourceRoute),
            _ => break,
        }
        if at > end {
            return Some(Reason::Malformed);
        }
    }
    if at > end {
        return Some(Reason::Malformed);
    }
    // Options or fragments beyond the limit, mobility, HIP, shim6.
    if !headers.is_later_fragment() && is_extension(next) {
        return Some(Reason::ExtensionHeader);
    }
    headers.proto = next;
    headers.offset = at as u32;
    let failed = transport(packet, headers, end - at, position);
    headers.forget_path(zero);
    failed
}
