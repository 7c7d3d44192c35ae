//! Counting every packet, and telling user space of those that did not simply pass.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use egress_common::event::Event;
use egress_common::maps::{Config, Endpoint, PodCounters};
use egress_common::packet::{Headers, ICMP, ICMPV6, bytes};
use egress_common::{Outcome, Verdict};

use crate::maps::{COUNTERS, EVENTS, config, now_ns};

/// Where the packet was seen.
pub struct Place {
    pub hook: u8,
    pub ifindex: u32,
    pub pod_cgroup: u64,
    /// The slot may be counted here and elsewhere at once.
    pub shared: bool,
}

/// Counts the outcome, and reports it unless it is a plain pass or the pod is over its rate.
#[inline(always)]
pub fn outcome(outcome: &Outcome, headers: &Headers, endpoint: &Endpoint, len: u32, place: &Place) {
    let Some(counters) = COUNTERS.get_ptr_mut(endpoint.slot) else {
        return;
    };
    // SAFETY: the map's element of this CPU, valid while the program runs; `add` says what can come
    // in between.
    let counters = unsafe { &mut *counters };
    // The compiler knows that this is in bounds and would leave out the check; the verifier has
    // only seen a byte and wants it.
    let index = core::hint::black_box(outcome.reason as usize);
    if let Some(count) = counters.reasons.get_mut(index) {
        add(place, &mut count.packets, 1);
        add(place, &mut count.bytes, u64::from(len));
    }
    if outcome.verdict as u8 == Verdict::Pass as u8 {
        return;
    }
    if outcome.verdict as u8 == Verdict::Audit as u8 {
        add(place, &mut counters.audited, 1);
    }
    let Some(config) = config() else { return };
    if !take_token(counters, config) || !send(outcome, headers, endpoint, len, place) {
        add(place, &mut counters.events_lost, 1);
    }
}

/// Adds to a counter of this CPU, exactly. The hook on a pod's device runs in softirq, where nothing
/// else counts for the same slot; the cgroup hook runs in the sender's context too, where a softirq
/// (which may be the hook on a device that is not known to be the pod's) or another task may come in
/// between.
#[inline(always)]
fn add(place: &Place, counter: &mut u64, n: u64) {
    if place.shared {
        // SAFETY: aligned and valid as the reference it comes from.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, n) };
    } else {
        *counter += n;
    }
}

/// Of so many events left out, one looks at the clock: a flood of drops must not pay for it.
const LOOK_EVERY: u64 = 16;

/// Token bucket: a burst, and one event more for each interval. A function of its own, so that the stack of
/// the programs holds less.
#[inline(never)]
fn take_token(counters: &mut PodCounters, config: &Config) -> bool {
    if counters.tokens == 0 {
        let interval = u64::from(config.event_interval_ns);
        if !counters.events_lost.is_multiple_of(LOOK_EVERY) || interval == 0 {
            return false;
        }
        let now = now_ns();
        let earned = now.saturating_sub(counters.filled_ns) / interval;
        if earned == 0 {
            return false;
        }
        let burst = u64::from(config.event_burst);
        counters.tokens = if earned < burst { earned } else { burst };
        counters.filled_ns = now;
        if counters.tokens == 0 {
            return false;
        }
    }
    counters.tokens -= 1;
    true
}

#[inline(always)]
fn send(
    outcome: &Outcome,
    headers: &Headers,
    endpoint: &Endpoint,
    len: u32,
    place: &Place,
) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        return false;
    };
    let icmp = matches!(headers.proto, ICMP | ICMPV6);
    entry.write(Event {
        time_ns: now_ns(),
        pod_cgroup: place.pod_cgroup,
        slot: endpoint.slot,
        policy: endpoint.policy,
        ifindex: place.ifindex,
        len,
        src_be: bytes(headers.src),
        dst_be: bytes(headers.dst),
        src_port_be: if icmp {
            [0; 2]
        } else {
            headers.src_port_be.to_ne_bytes()
        },
        dst_port_be: if icmp {
            [headers.flags, headers.code]
        } else {
            headers.dst_port_be.to_ne_bytes()
        },
        ethertype_be: headers.ethertype.to_be_bytes(),
        rule: outcome.rule,
        proto: headers.proto,
        verdict: outcome.verdict as u8,
        reason: outcome.reason as u8,
        hook: place.hook,
        pad: [0; 4],
    });
    entry.submit(0);
    true
}
