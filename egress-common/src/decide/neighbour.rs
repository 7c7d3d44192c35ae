//! Neighbour discovery and multicast listener reports.

use super::{is_own, words};
use crate::maps::Endpoint;
use crate::packet::{Address, Headers, Packet, Part, icmp};
use crate::reason::Reason;

pub(super) const fn is_link_local(address: Address) -> bool {
    let [a, b, ..] = address[0].to_ne_bytes();
    a == 0xfe && b & 0xc0 == 0x80
}

/// `ff02::/16`.
const fn is_link_multicast(address: Address) -> bool {
    let [a, b, ..] = address[0].to_ne_bytes();
    a == 0xff && b == 0x02
}

/// Neighbour discovery and multicast listener reports; `None` for what policy decides about.
///
/// A hop limit of 255 proves nothing on the way out, so only link scope passes without a rule.
#[inline(never)]
pub(super) fn neighbour<P: Packet>(
    packet: &P,
    headers: &Headers,
    endpoint: &Endpoint,
) -> Option<Reason> {
    let discovery = matches!(
        headers.flags,
        icmp::ROUTER_SOLICIT | icmp::NEIGHBOUR_SOLICIT | icmp::NEIGHBOUR_ADVERT
    );
    let report = matches!(
        headers.flags,
        icmp::LISTENER_REPORT | icmp::LISTENER_DONE | icmp::LISTENER_REPORT_2
    );
    if !discovery && !report {
        return match headers.flags {
            icmp::ROUTER_ADVERT | icmp::REDIRECT_V6 | icmp::LISTENER_QUERY => {
                Some(Reason::NeighbourForged)
            }
            _ => None,
        };
    }
    if !matches!(headers.part, Part::Whole) {
        // RFC 6980: neighbour discovery is never fragmented.
        return Some(Reason::NeighbourForged);
    }
    let unspecified = headers.src == [0; 4];
    if !(unspecified || is_link_local(headers.src) || is_own(headers, endpoint)) {
        return Some(Reason::Spoofed);
    }
    if headers.flags == icmp::NEIGHBOUR_ADVERT {
        // The advertised address follows the first 8 bytes of the message.
        let target: Address = packet.load(headers.offset as usize + 8)?;
        if !is_link_local(target) && target != words(endpoint.v6_be) {
            return Some(Reason::NeighbourForged);
        }
    }
    let hops = if discovery { 255 } else { 1 };
    if headers.hops == hops && (is_link_multicast(headers.dst) || is_link_local(headers.dst)) {
        return Some(Reason::Neighbour);
    }
    // To a global address: a reply to a solicitation, or a destination that policy allows.
    if report || unspecified || is_link_local(headers.src) {
        return Some(Reason::NeighbourForged);
    }
    None
}
