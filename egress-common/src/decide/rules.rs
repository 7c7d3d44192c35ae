//! What the policy says of a destination.

use super::{End, words};
use crate::flow;
use crate::limits::MAX_RANGES;
use crate::maps::{Endpoint, ExactKey4, ExactKey6, ExactRule, NEAR4, NEAR6, PrefixRule, pair};
use crate::packet::{Headers, ICMP, ICMPV6};
use crate::reason::Reason;
use crate::tables::Tables;

/// A gateway that the endpoint itself names. Indexed, because the verifier can't follow a pointer
/// that runs over the stack.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "see above")]
pub(super) fn near(headers: &Headers, endpoint: &Endpoint) -> Option<u16> {
    let port = headers.dst_port_be;
    if headers.v6 {
        for i in 0..NEAR6 {
            let near = endpoint.near6[i];
            if words(near.addr_be) == headers.dst && is_port(near.port_be, port) {
                return Some(near.rule);
            }
        }
    } else {
        for i in 0..NEAR4 {
            let near = endpoint.near4[i];
            let same = u32::from_ne_bytes(near.addr_be) == headers.dst[3];
            if same && is_port(near.port_be, port) {
                return Some(near.rule);
            }
        }
    }
    None
}

/// An unused entry has port zero, and matches nothing.
#[inline(always)]
const fn is_port(near_be: [u8; 2], port_be: u16) -> bool {
    u16::from_ne_bytes(near_be) == port_be && port_be != 0
}

#[inline(always)]
pub(super) fn exact<T: Tables>(
    headers: &Headers,
    endpoint: &Endpoint,
    tables: &T,
) -> Option<ExactRule> {
    if endpoint.exact_networks & (1 << flow::network(headers.v6, headers.dst)) == 0 {
        return None;
    }
    let policy = endpoint.policy;
    let last = pair(headers.dst_port_be, u16::from_ne_bytes([headers.proto, 0]));
    if headers.v6 {
        let [a, b, c, d] = headers.dst;
        tables.exact6(&ExactKey6::from_words([policy, a, b, c, d, last]))
    } else {
        tables.exact4(&ExactKey4::from_words([policy, headers.dst[3], last]))
    }
}

#[inline(always)]
pub(super) fn prefix<T: Tables>(headers: &Headers, policy: u32, tables: &T) -> End {
    let found = if headers.v6 {
        tables.prefix6(policy, &headers.dst)
    } else {
        tables.prefix4(policy, headers.dst[3])
    };
    let port = match headers.proto {
        // What the port fields hold of these is no port.
        ICMP | ICMPV6 => 0,
        _ => u16::from_be(headers.dst_port_be),
    };
    match found {
        Some(rule) => ranges(rule, port, headers.proto),
        None => End::bare(Reason::NotAllowed),
    }
}

#[inline(always)]
fn ranges(rule: &PrefixRule, port: u16, proto: u8) -> End {
    for i in 0..MAX_RANGES {
        if i >= usize::from(rule.count) {
            break;
        }
        let range = &rule.ranges[i];
        if (range.proto == 0 || range.proto == proto) && range.first <= port && port <= range.last {
            return End::new(passing(range.reason), range.rule);
        }
    }
    End::new(dropping(rule.deny), rule.deny_rule)
}

/// The reason of a rule that allows; a number that is none of these is a bug of the writer and
/// allows nothing.
#[inline(always)]
pub(super) const fn passing(raw: u8) -> Reason {
    match raw {
        5 => Reason::Gateway,
        6 => Reason::Cluster,
        7 => Reason::Dns,
        8 => Reason::Exception,
        _ => Reason::NotAllowed,
    }
}

#[inline(always)]
const fn dropping(raw: u8) -> Reason {
    match raw {
        17 => Reason::GatewayPort,
        18 => Reason::Excepted,
        _ => Reason::NotAllowed,
    }
}

const _: () = assert!(
    Reason::Gateway as u8 == 5
        && Reason::Cluster as u8 == 6
        && Reason::Dns as u8 == 7
        && Reason::Exception as u8 == 8
        && Reason::GatewayPort as u8 == 17
        && Reason::Excepted as u8 == 18
);
