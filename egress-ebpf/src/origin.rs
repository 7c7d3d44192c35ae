//! Who asked for a destination: remembered when a process connects or sends without connecting,
//! and joined to the events of dropped packets in user space.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_current_comm,
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
};
use aya_ebpf::programs::{RawTracePointContext, SockAddrContext};
use egress_common::limits::TOUCH_NS;
use egress_common::maps::{Origin, OriginKey, pair};
use egress_common::packet::{Address, mapped};

use crate::maps::{ORIGINS, config, now_ns};

const GO_ON: i32 = 1;

#[inline(always)]
pub fn ipv4(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the context is valid for as long as the program runs, and the field readable.
    let dst = unsafe { (*ctx.sock_addr).user_ip4 };
    remember(ctx.sock_addr, mapped(dst))
}

#[inline(always)]
pub fn ipv6(ctx: &SockAddrContext) -> i32 {
    // SAFETY: as above.
    let [a, b, c, d] = unsafe {
        [
            (*ctx.sock_addr).user_ip6[0],
            (*ctx.sock_addr).user_ip6[1],
            (*ctx.sock_addr).user_ip6[2],
            (*ctx.sock_addr).user_ip6[3],
        ]
    };
    remember(ctx.sock_addr, [a, b, c, d])
}

/// 1 if the calling thread's cgroup has, at the depth that is the first argument, the ancestor (or
/// is itself the cgroup) whose id is the second; else 0.
#[inline(always)]
pub fn is_ancestor(ctx: &RawTracePointContext) -> u32 {
    let (depth, id) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1));
    // SAFETY: no pointers, always callable; 0, which is no cgroup's id, where there is none.
    u32::from(unsafe { bpf_get_current_ancestor_cgroup_id(depth as i32) } == id)
}

#[inline(always)]
fn remember(addr: *mut bpf_sock_addr, dst: Address) -> i32 {
    let Some(config) = config() else { return GO_ON };
    let level = config.kubepods_level.cast_signed() + 1;
    // SAFETY: no pointers, always callable.
    let mut pod_cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
    if config.qos_cgroups[0] == pod_cgroup || config.qos_cgroups[1] == pod_cgroup {
        // SAFETY: as above.
        pod_cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level + 1) };
    }
    // SAFETY: the context is valid for as long as the program runs, and the fields readable.
    let (port, proto) = unsafe { ((*addr).user_port, (*addr).protocol) };
    // SAFETY: plain data of the same size.
    let [low, high] = unsafe { core::mem::transmute::<u64, [u32; 2]>(pod_cgroup) };
    let [a, b, c, d] = dst;
    // The port is in network byte order in the low 16 bits.
    let last = pair(port as u16, u16::from_ne_bytes([proto as u8, 0]));
    let key = OriginKey::from_words([low, high, a, b, c, d, last, 0]);
    let (now, pid) = (now_ns(), (bpf_get_current_pid_tgid() >> 32) as u32);
    // SAFETY: copied at once; a reused element names another process at worst.
    if let Some(known) = unsafe { ORIGINS.get(key) }.copied()
        && known.pid == pid
        && now.saturating_sub(known.seen_ns) <= TOUCH_NS
    {
        return GO_ON;
    }
    let origin = Origin {
        seen_ns: now,
        // SAFETY: no arguments, always callable.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        pid,
        uid: bpf_get_current_uid_gid() as u32,
        comm: bpf_get_current_comm().unwrap_or([0; 16]),
    };
    // Not written: the event names no process. Nothing else rests on it.
    let _ = ORIGINS.insert(key, origin, 0);
    GO_ON
}
