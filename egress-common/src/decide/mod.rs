//! The decision about a packet.
//!
//! Pure but for the flows it remembers through [`Tables`]. The order is that of the
//! design: what isn't IP, whose packet it is, fragments, allowed addresses with port, replies,
//! allowed prefixes, and what is left is denied. Allowed addresses come before replies because
//! they are the common case and a packet that passes both ways passes either way.
#![forbid(unsafe_code)]

mod fragment;
mod icmp_error;
mod neighbour;
pub mod parts;
mod rules;

use crate::flow;
use crate::maps::{DENY_REJECT, Endpoint, MODE_AUDIT, MODE_OFF, NO_RULE};
use crate::packet::{Address, Found, Headers, ICMP, ICMPV6, Packet, Part, SCTP, TCP, UDP, mapped};
use crate::reason::{Reason, Verdict};
use crate::tables::{Full, Tables};
use fragment::{first_fragment, later_fragment};
use icmp_error::icmp_error;
use neighbour::{is_link_local, neighbour};
use parts::Parts;
use rules::{exact, near, passing, prefix};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct End(u32);

impl End {
    /// The function had nothing to say.
    const NONE: Self = Self(u32::MAX);

    #[inline(always)]
    const fn new(reason: Reason, rule: u16) -> Self {
        Self(((rule as u32) << 16) | reason as u32)
    }

    /// That of no rule.
    #[inline(always)]
    pub const fn bare(reason: Reason) -> Self {
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
pub fn from_pod<P: Parts, T: Tables>(
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
    let mut found = packet.parse(side, headers, endpoint.zero);
    // At the cgroup hook the kernel's own protocols wrote the packet, and sources are not looked at.
    if matches!(side, Side::Device) {
        let routable = matches!(found, Found::Ip | Found::Bad(Reason::FragmentTiny));
        let stays = stays(packet, headers, endpoint, tables, routable);
        if matches!(found, Found::Ip | Found::Arp) && !stays {
            found = Found::Bad(Reason::Malformed);
        }
    }
    let end = match found {
        Found::Ip => packet.judge(side, headers, endpoint, tables),
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
pub fn to_pod<P: Parts, T: Tables>(side: Side, packet: &P, endpoint: &Endpoint, tables: &T) {
    if endpoint.mode == MODE_OFF {
        return;
    }
    let mut headers = Headers::default();
    let found = packet.parse(side, &mut headers, endpoint.zero);
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

/// Whether a packet stays what it is judged as: what is still to be written into it must not change that.
/// And if its pod is only audited, another's name in it is noted. In one function, so that the kernel
/// programs keep little on their stack meanwhile.
#[inline(never)]
fn stays<P: Packet, T: Tables>(
    packet: &P,
    headers: &Headers,
    endpoint: &Endpoint,
    tables: &T,
    routable: bool,
) -> bool {
    if routable && endpoint.mode == MODE_AUDIT {
        beware(headers, endpoint, tables);
    }
    packet.spares(headers)
}

/// Takes note of a packet in the name of somebody who is not on the pod's link: the node may route it, and
/// bring it back.
#[inline(never)]
fn beware<T: Tables>(headers: &Headers, endpoint: &Endpoint, tables: &T) {
    let local = headers.v6 && (headers.src == [0; 4] || is_link_local(headers.src));
    if !local && headers.src != mapped(0) && !is_own(headers, endpoint) {
        // Not written: the kernel has no memory, and the pod is only audited yet.
        let _ = flow::remember_forged(tables, endpoint);
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
