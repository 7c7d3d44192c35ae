//! The cgroup hooks: host-network pods, and every pod that has no device hook yet.

use aya_ebpf::programs::SkBuffContext;
use egress_common::decide::parts::Parts as _;
use egress_common::event::HOOK_CGROUP;
use egress_common::maps::{Config, Endpoint, FLAG_HOST_NETWORK};
use egress_common::packet::Headers;
use egress_common::{Side, Verdict, decide};

use crate::maps::{CGROUPS, KernelTables, config, is_covered, stand};
use crate::report::{self, Place};
use crate::sender;
use crate::skb::Skb;

const PASS: i32 = 1;
const DROP: i32 = 0;

/// Every network namespace's loopback device.
const LOOPBACK: u32 = 1;

#[inline(always)]
fn ifindex(ctx: &SkBuffContext) -> u32 {
    // SAFETY: the context is valid for as long as the program runs, and the field readable.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[inline(always)]
fn place(ctx: &SkBuffContext, pod_cgroup: u64) -> Place {
    Place {
        hook: HOOK_CGROUP,
        ifindex: ifindex(ctx),
        pod_cgroup,
        shared: true,
    }
}

#[inline(always)]
pub fn egress(ctx: &SkBuffContext) -> i32 {
    let Some(config) = config() else { return DROP };
    let id = sender::pod_cgroup(&ctx.skb, config);
    if is_covered(id) {
        return PASS;
    }
    let loopback = ifindex(ctx) == LOOPBACK;
    // SAFETY: copied at once, so that one packet sees one state.
    let Some(endpoint) = (unsafe { CGROUPS.get(id) }).copied() else {
        return if loopback {
            PASS
        } else {
            unknown(ctx, config, id)
        };
    };
    if loopback || stand(endpoint.slot, endpoint.passes_with()) {
        return PASS;
    }
    known(ctx, &endpoint, id)
}

// Functions of their own, so that the stack holds the headers of one of them only.

/// A host-network pod, or one whose device hook does not stand yet.
#[inline(never)]
fn known(ctx: &SkBuffContext, endpoint: &Endpoint, pod_cgroup: u64) -> i32 {
    let mut headers = Headers::default();
    let packet = Skb::new(&ctx.skb);
    let outcome = decide::from_pod(Side::Cgroup, &packet, endpoint, &KernelTables, &mut headers);
    report::outcome(
        &outcome,
        &headers,
        endpoint,
        ctx.skb.len(),
        &place(ctx, pod_cgroup),
    );
    code(outcome.verdict)
}

const fn code(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass | Verdict::Audit => PASS,
        // To a local sender a drop here is an error at once: rejecting needs nothing more.
        Verdict::Drop | Verdict::Reject => DROP,
    }
}

/// The closed gate: a pod that the agent has said nothing of.
#[inline(never)]
fn unknown(ctx: &SkBuffContext, config: &Config, pod_cgroup: u64) -> i32 {
    let mut headers = Headers::default();
    // For the report only, but before the verdict, or the verifier would follow it once for each.
    let _ = Skb::new(&ctx.skb).parse(Side::Cgroup, &mut headers, config.pad[0]);
    let (outcome, endpoint) = sender::unknown(config);
    report::outcome(
        &outcome,
        &headers,
        &endpoint,
        ctx.skb.len(),
        &place(ctx, pod_cgroup),
    );
    code(outcome.verdict)
}

#[inline(always)]
pub fn ingress(ctx: &SkBuffContext) -> i32 {
    if let Some(config) = config() {
        let id = sender::pod_cgroup(&ctx.skb, config);
        if is_covered(id) {
            return PASS;
        }
        // SAFETY: copied at once, so that one packet sees one state.
        if let Some(endpoint) = unsafe { CGROUPS.get(id) }.copied()
            && endpoint.flags & FLAG_HOST_NETWORK != 0
        {
            decide::to_pod(Side::Cgroup, &Skb::new(&ctx.skb), &endpoint, &KernelTables);
        }
    }
    PASS
}
