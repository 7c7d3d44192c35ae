//! The decision about a packet.
//!
//! Pure but for the flows it remembers through [`Tables`]. The order is that of the
//! design: what isn't IP, whose packet it is, fragments, allowed addresses with port, replies,
//! allowed prefixes, and what is left is denied. Allowed addresses come before replies because
//! they are the common case and a packet that passes both ways passes either way.

use crate::flow;
use crate::limits::{FRAGMENT_NS, MAX_RANGES};
use crate::maps::{
    DENY_REJECT, Endpoint, ExactKey4, ExactKey6, ExactRule, Fragment, FragmentKey, MODE_AUDIT,
    MODE_OFF, NEAR4, NEAR6, NO_RULE, PrefixRule, pair, word,
};
use crate::packet::{
    self, Address, Found, Headers, ICMP, ICMPV6, Packet, Part, SCTP, TCP, UDP, icmp,
};
use crate::reason::{Reason, Verdict};
use crate::tables::{Full, Tables};

/// Which hook asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The host side of the pod's device: Ethernet frames, and the source must be the pod's.
    Device,
    /// The cgroup: packets that begin with their IP header, from a pod in the node's own network.
    Cgroup,
}

/// How the decision ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub reason: Reason,
    /// Index into the policy's rules; `NO_RULE` if none decided.
    pub rule: u16,
}

/// A reason and the rule behind it in one word, because a BPF function returns one register:
/// the reason in the low 8 bits, the rule in the high 16.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
struct End(u32);

impl End {
    /// The function had nothing to say.
    const NONE: Self = Self(u32::MAX);

    #[inline(always)]
    const fn new(reason: Reason, rule: u16) -> Self {
        Self(((rule as u32) << 16) | reason as u32)
    }

    #[inline(always)]
    const fn bare(reason: Reason) -> Self {
        Self::new(reason, NO_RULE)
    }

    /// As [`Headers::forget_path`].
    #[inline(always)]
    const fn forget_path(self, zero: u8) -> Self {
        Self(self.0 ^ zero as u32)
    }

    #[inline(always)]
    const fn rule(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Only of an `End` that is not `NONE`.
    #[inline(always)]
    const fn reason(self) -> Reason {
        match Reason::from_u8(self.0 as u8) {
            Some(reason) => reason,
            None => Reason::NotAllowed,
        }
    }
}

/// Decides about a packet that a pod sends. `headers` must be [`Headers::default`]; afterwards it
/// tells the packet, as far as it was parsed.
#[inline(always)]
pub fn from_pod<P: Packet, T: Tables>(
    side: Side,
    packet: &P,
    endpoint: &Endpoint,
    tables: &T,
    headers: &mut Headers,
) -> Outcome {
    if endpoint.mode == MODE_OFF {
        return Outcome {
            verdict: Verdict::Pass,
            reason: Reason::NotHeld,
            rule: NO_RULE,
        };
    }
    let found = match side {
        Side::Device => packet::frame(packet, headers, endpoint.zero),
        Side::Cgroup => packet::network(packet, headers, endpoint.zero),
    };
    let end = match found {
        Found::Ip => ip(side, packet, headers, endpoint, tables),
        Found::Arp => End::bare(arp(headers.src[3], endpoint)).forget_path(endpoint.zero),
        Found::Bad(reason) => End::bare(reason).forget_path(endpoint.zero),
    };
    let outcome = Outcome {
        verdict: verdict(end.reason(), endpoint),
        reason: end.reason(),
        rule: end.rule(),
    };
    if matches!(found, Found::Ip)
        && matches!(outcome.verdict, Verdict::Pass | Verdict::Audit)
        && remember(headers, &outcome, endpoint, tables).is_err()
    {
        let reason = Reason::TableFull;
        return Outcome {
            verdict: verdict(reason, endpoint),
            reason,
            rule: NO_RULE,
        };
    }
    outcome
}

/// Takes note of a packet to a held pod, so that its reply passes.
#[inline(always)]
pub fn to_pod<P: Packet, T: Tables>(side: Side, packet: &P, endpoint: &Endpoint, tables: &T) {
    if endpoint.mode == MODE_OFF {
        return;
    }
    let mut headers = Headers::default();
    let found = match side {
        Side::Device => packet::frame(packet, &mut headers, endpoint.zero),
        Side::Cgroup => packet::network(packet, &mut headers, endpoint.zero),
    };
    // Of a fragmented packet only the first fragment has ports; it is enough.
    if matches!(found, Found::Ip) && !headers.is_later_fragment() {
        flow::to_pod(tables, endpoint, &headers);
    }
}

/// What a reason means for a pod held like this.
#[inline(always)]
pub const fn verdict(reason: Reason, endpoint: &Endpoint) -> Verdict {
    if reason.passes() {
        Verdict::Pass
    } else if endpoint.mode == MODE_AUDIT {
        Verdict::Audit
    } else if endpoint.on_deny == DENY_REJECT {
        Verdict::Reject
    } else {
        Verdict::Drop
    }
}

/// Remembers what later packets depend on: the fragments to come, and who opened the flow.
#[inline(always)]
fn remember<T: Tables>(
    headers: &Headers,
    outcome: &Outcome,
    endpoint: &Endpoint,
    tables: &T,
) -> Result<(), Full> {
    match headers.part {
        Part::Later => return Ok(()),
        Part::First => first_fragment(headers, outcome.verdict, endpoint, tables)?,
        Part::Whole => {}
    }
    if matches!(headers.proto, TCP | UDP | SCTP)
        && headers.opens()
        && !matches!(outcome.reason, Reason::Reply)
    {
        flow::remember_opened_by_pod(tables, endpoint, headers)?;
    }
    Ok(())
}

#[inline(always)]
fn arp(sender: u32, endpoint: &Endpoint) -> Reason {
    // A probe for an address conflict has no sender yet (RFC 5227).
    if sender == 0 || sender == u32::from_ne_bytes(endpoint.v4_be) {
        Reason::Arp
    } else {
        Reason::ArpSpoofed
    }
}

#[inline(always)]
fn ip<P: Packet, T: Tables>(
    side: Side,
    packet: &P,
    headers: &Headers,
    endpoint: &Endpoint,
    tables: &T,
) -> End {
    let ported = matches!(headers.proto, TCP | UDP | SCTP);
    let own = matches!(side, Side::Cgroup) || is_own(headers, endpoint);
    if ported && own && !headers.is_later_fragment() {
        // The common ends come first, and are left early.
        if headers.proto == TCP
            && let Some(rule) = near(headers, endpoint)
        {
            return End::new(Reason::Gateway, rule);
        }
        if let Some(rule) = exact(headers, endpoint, tables) {
            return End::new(passing(rule.reason), rule.rule);
        }
    }
    uncommon(side, packet, headers, (own, ported), endpoint, tables).forget_path(endpoint.zero)
}

#[inline(always)]
fn uncommon<P: Packet, T: Tables>(
    side: Side,
    packet: &P,
    headers: &Headers,
    (own, ported): (bool, bool),
    endpoint: &Endpoint,
    tables: &T,
) -> End {
    if matches!(side, Side::Device)
        && headers.proto == ICMPV6
        && headers.v6
        && let Some(reason) = neighbour(packet, headers, endpoint)
    {
        return End::bare(reason);
    }
    if !own {
        return End::bare(Reason::Spoofed);
    }
    if headers.is_later_fragment() {
        return End::bare(later_fragment(headers, endpoint, tables));
    }
    if !ported {
        if !matches!((headers.proto, headers.v6), (ICMP, false) | (ICMPV6, true)) {
            return End::bare(Reason::Protocol);
        }
        let end = icmp_error(packet, headers, endpoint, tables);
        if end != End::NONE {
            return end;
        }
    }
    if flow::may_be_reply(tables, endpoint, headers) && flow::is_reply(tables, endpoint, headers) {
        return End::bare(Reason::Reply);
    }
    prefix(headers, endpoint.policy, tables)
}

#[inline(always)]
fn is_own(headers: &Headers, endpoint: &Endpoint) -> bool {
    if headers.v6 {
        let own = words(endpoint.v6_be);
        headers.src == own && own != [0; 4]
    } else {
        let own = u32::from_ne_bytes(endpoint.v4_be);
        headers.src[3] == own && own != 0
    }
}

#[inline(always)]
const fn words(b: [u8; 16]) -> Address {
    [
        u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
        u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
        u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
    ]
}

const fn is_link_local(address: Address) -> bool {
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
fn neighbour<P: Packet>(packet: &P, headers: &Headers, endpoint: &Endpoint) -> Option<Reason> {
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

#[inline(always)]
fn fragment_key(headers: &Headers, endpoint: &Endpoint) -> FragmentKey {
    let [a, b, c, d] = headers.dst;
    let proto = if headers.v6 { 0 } else { headers.proto };
    FragmentKey::from_words([endpoint.slot, headers.id, a, b, c, d, word(proto)])
}

#[inline(never)]
fn first_fragment<T: Tables>(
    headers: &Headers,
    verdict: Verdict,
    endpoint: &Endpoint,
    tables: &T,
) -> Result<(), Full> {
    let fragment = Fragment {
        seen_ns: tables.now_ns(),
        verdict: verdict as u8,
        pad: [0; 7],
    };
    tables.set_fragment(&fragment_key(headers, endpoint), &fragment)
}

#[inline(never)]
fn later_fragment<T: Tables>(headers: &Headers, endpoint: &Endpoint, tables: &T) -> Reason {
    match tables.fragment(&fragment_key(headers, endpoint)) {
        Some(first)
            if first.seen_ns >= endpoint.since_ns
                && tables.now_ns().saturating_sub(first.seen_ns) <= FRAGMENT_NS =>
        {
            // Audited once is not allowed: the pod may be held by now.
            if first.verdict == Verdict::Pass as u8 {
                Reason::Fragment
            } else {
                Reason::NotAllowed
            }
        }
        _ => Reason::FragmentUnknown,
    }
}

/// An ICMP error passes if it is about a flow that the pod may have; `NONE` if this is no error.
#[inline(never)]
fn icmp_error<P: Packet, T: Tables>(
    packet: &P,
    headers: &Headers,
    endpoint: &Endpoint,
    tables: &T,
) -> End {
    let error = if headers.v6 {
        matches!(headers.flags, icmp::UNREACHABLE_V6..=icmp::PARAMETER_V6)
    } else {
        match headers.flags {
            icmp::REDIRECT => return End::bare(Reason::NeighbourForged),
            icmp::UNREACHABLE | icmp::SOURCE_QUENCH | icmp::TIME_EXCEEDED | icmp::PARAMETER => true,
            _ => false,
        }
    };
    if !error {
        return End::NONE;
    }
    let mut quoted = Headers::default();
    // It goes back to the sender of a packet to the pod, and to nobody else.
    if !packet::quoted(packet, headers, &mut quoted)
        || quoted.src != headers.dst
        || quoted.dst != headers.src
    {
        return End::bare(Reason::IcmpErrorUnrelated);
    }
    // As the pod would answer what is quoted.
    (quoted.src, quoted.dst) = (quoted.dst, quoted.src);
    (quoted.src_port_be, quoted.dst_port_be) = (quoted.dst_port_be, quoted.src_port_be);
    if flow::opened_from_outside(tables, endpoint, &quoted) {
        return End::bare(Reason::IcmpError);
    }
    if let Some(rule) = exact(&quoted, endpoint, tables) {
        return End::new(Reason::IcmpError, rule.rule);
    }
    let end = prefix(&quoted, endpoint.policy, tables);
    if end.reason().passes() {
        End::new(Reason::IcmpError, end.rule())
    } else {
        End::bare(Reason::IcmpErrorUnrelated)
    }
}

/// A gateway that the endpoint itself names. Indexed, because the verifier can't follow a pointer
/// that runs over the stack.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "see above")]
fn near(headers: &Headers, endpoint: &Endpoint) -> Option<u16> {
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
fn exact<T: Tables>(headers: &Headers, endpoint: &Endpoint, tables: &T) -> Option<ExactRule> {
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
fn prefix<T: Tables>(headers: &Headers, policy: u32, tables: &T) -> End {
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
const fn passing(raw: u8) -> Reason {
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
