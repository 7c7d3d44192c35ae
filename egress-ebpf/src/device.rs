//! The device hooks: the authority over a pod that has its own network namespace.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use egress_common::decide::parts::Parts as _;
use egress_common::event::HOOK_DEVICE;
use egress_common::maps::{Config, Endpoint, FLAG_FENCED, MARK_PASSED, MODE_OFF};
use egress_common::packet::Headers;
use egress_common::{Side, Verdict, decide};

use crate::maps::{CGROUPS, DEVICES, KernelTables, config};
use crate::reject;
use crate::report::{self, Place};
use crate::sender;
use crate::skb::Skb;

/// Not `TC_ACT_OK`: the programs of others on this device must still run.
const NEXT: i32 = TC_ACT_UNSPEC;

#[inline(always)]
fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for as long as the program runs, and the field readable.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[inline(always)]
pub fn from_pod(ctx: &TcContext) -> i32 {
    let ifindex = ifindex(ctx);
    // SAFETY: copied at once, so that one packet sees one state.
    let Some(endpoint) = (unsafe { DEVICES.get(ifindex) }) else {
        // The hook goes up after its entry and down before it, so this is a device taken from us.
        return NEXT;
    };
    let endpoint: Endpoint = *endpoint;
    let packet = Skb::new(&ctx.skb);
    let mut headers = Headers::default();
    let outcome = decide::from_pod(
        Side::Device,
        &packet,
        &endpoint,
        &KernelTables,
        &mut headers,
    );
    let place = Place {
        hook: HOOK_DEVICE,
        ifindex,
        pod_cgroup: 0,
        shared: false,
    };
    report::outcome(&outcome, &headers, &endpoint, ctx.skb.len(), &place);
    match outcome.verdict {
        Verdict::Pass | Verdict::Audit => {
            if endpoint.flags & FLAG_FENCED != 0 {
                mark_passed(ctx);
            }
            NEXT
        }
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Reject => reject::answer(ctx, ifindex, outcome.reason, &headers),
    }
}

/// For the fence: what comes to it from this device without the mark has not been here.
#[inline(always)]
fn mark_passed(ctx: &TcContext) {
    // SAFETY: the context is valid for as long as the program runs, and the field writable.
    unsafe { (*ctx.skb.skb).mark |= MARK_PASSED };
}

/// On a device that may be a pod's, and is not known to be anybody's: the sender counts. Who is in no pod
/// is a stranger, and passes; a pod meets what is known of it, or the closed gate.
#[inline(always)]
pub fn by_sender(ctx: &TcContext) -> i32 {
    let Some(config) = config() else { return NEXT };
    if !sender::is_pod(&ctx.skb, config) {
        return NEXT;
    }
    let pod_cgroup = sender::pod_cgroup(&ctx.skb, config);
    // SAFETY: copied at once, so that one packet sees one state.
    match unsafe { CGROUPS.get(pod_cgroup) } {
        Some(endpoint) if endpoint.mode == MODE_OFF => NEXT,
        Some(endpoint) => known(ctx, endpoint, pod_cgroup),
        None => unknown(ctx, config, pod_cgroup),
    }
}

#[inline(always)]
fn shared_place(ctx: &TcContext, pod_cgroup: u64) -> Place {
    Place {
        hook: HOOK_DEVICE,
        ifindex: ifindex(ctx),
        pod_cgroup,
        shared: true,
    }
}

/// There is no answer to what is rejected: the device may be another's.
const fn code(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass | Verdict::Audit => NEXT,
        Verdict::Drop | Verdict::Reject => TC_ACT_SHOT,
    }
}

// Functions of their own, so that the stack holds the headers of one of them only.

#[inline(never)]
fn known(ctx: &TcContext, endpoint: &Endpoint, pod_cgroup: u64) -> i32 {
    let endpoint: Endpoint = *endpoint;
    let packet = Skb::new(&ctx.skb);
    let mut headers = Headers::default();
    let outcome = decide::from_pod(
        Side::Device,
        &packet,
        &endpoint,
        &KernelTables,
        &mut headers,
    );
    let place = shared_place(ctx, pod_cgroup);
    report::outcome(&outcome, &headers, &endpoint, ctx.skb.len(), &place);
    code(outcome.verdict)
}

#[inline(never)]
fn unknown(ctx: &TcContext, config: &Config, pod_cgroup: u64) -> i32 {
    let mut headers = Headers::default();
    // For the report only, but before the verdict, or the verifier would follow it once for each.
    let _ = Skb::new(&ctx.skb).parse(Side::Device, &mut headers, config.pad[0]);
    let (outcome, endpoint) = sender::unknown(config);
    let place = shared_place(ctx, pod_cgroup);
    report::outcome(&outcome, &headers, &endpoint, ctx.skb.len(), &place);
    code(outcome.verdict)
}

#[inline(always)]
pub fn to_pod(ctx: &TcContext) -> i32 {
    // SAFETY: copied at once, so that one packet sees one state.
    if let Some(endpoint) = unsafe { DEVICES.get(ifindex(ctx)) } {
        let endpoint: Endpoint = *endpoint;
        decide::to_pod(Side::Device, &Skb::new(&ctx.skb), &endpoint, &KernelTables);
    }
    NEXT
}
