//! The device hooks: the authority over a pod that has its own network namespace.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use egress_common::event::HOOK_DEVICE;
use egress_common::maps::Endpoint;
use egress_common::packet::Headers;
use egress_common::{Side, Verdict, decide};

use crate::maps::{DEVICES, KernelTables};
use crate::reject;
use crate::report::{self, Place};
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
    };
    report::outcome(&outcome, &headers, &endpoint, ctx.skb.len(), &place);
    match outcome.verdict {
        Verdict::Pass | Verdict::Audit => NEXT,
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Reject => reject::answer(ctx, ifindex, outcome.reason, &headers),
    }
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
