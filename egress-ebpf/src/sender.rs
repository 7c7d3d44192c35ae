//! Whose packet it is, by the cgroup of the socket that sent it. A socket keeps its packets from its own
//! network namespace to the node's, until they are routed.

use aya_ebpf::helpers::bpf_skb_ancestor_cgroup_id;
use aya_ebpf::programs::sk_buff::SkBuff;
use egress_common::maps::{Config, Endpoint, MODE_OFF, NO_RULE};
use egress_common::{Outcome, Reason, decide};

/// Id of the cgroup at this depth that the sender is in; 0 if the packet has no sender, or there is none.
#[inline(always)]
fn ancestor(skb: &SkBuff, level: i32) -> u64 {
    // SAFETY: the context is valid for as long as the program runs.
    unsafe { bpf_skb_ancestor_cgroup_id(skb.skb, level) }
}

/// Whether it was sent from a pod. Not so what the kernel sends by itself, and what has been routed.
#[inline(always)]
pub fn is_pod(skb: &SkBuff, config: &Config) -> bool {
    config.kubepods != 0 && ancestor(skb, config.kubepods_level.cast_signed()) == config.kubepods
}

/// Id of the pod's cgroup: the first directory below kubepods that is not one of QoS. Means nothing
/// unless the sender [`is_pod`].
#[inline(always)]
pub fn pod_cgroup(skb: &SkBuff, config: &Config) -> u64 {
    let level = config.kubepods_level.cast_signed() + 1;
    let id = ancestor(skb, level);
    if config.qos_cgroups[0] != id && config.qos_cgroups[1] != id {
        return id;
    }
    ancestor(skb, level + 1)
}

/// The closed gate: what becomes of a pod's packet that the agent has said nothing of, and as whose.
#[inline(always)]
pub const fn unknown(config: &Config) -> (Outcome, Endpoint) {
    let endpoint = Endpoint::nobodys(config.unknown_mode);
    let reason = if endpoint.mode == MODE_OFF {
        Reason::NotHeld
    } else {
        Reason::UnknownPod
    };
    let outcome = Outcome {
        verdict: decide::verdict(reason, &endpoint),
        reason,
        rule: NO_RULE,
    };
    (outcome, endpoint)
}
