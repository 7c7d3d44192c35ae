//! Sallyport's kernel programs: the entry points.
//!
//! What they decide is in `egress_common::decide`; here is only how a verdict becomes a return
//! code, and which hook sees what. On any other target than BPF this is an empty program, so that
//! `cargo check` and the editor see the whole workspace.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// The target has an atomic add but no compare and swap, so `AtomicU64` has no `fetch_add` there.
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics),
    allow(internal_features)
)]
#![allow(
    clippy::inline_always,
    reason = "a BPF call costs a stack frame of 512 bytes in all; what is inlined is chosen by hand"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "fields of the kernel's contexts are wider than what is in them"
)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "the macros hand over the context by value"
)]

#[cfg(target_arch = "bpf")]
mod cgroup;
#[cfg(target_arch = "bpf")]
mod device;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod origin;
#[cfg(all(target_arch = "bpf", feature = "in-parts"))]
mod parts;
#[cfg(target_arch = "bpf")]
mod reject;
#[cfg(target_arch = "bpf")]
mod report;
#[cfg(target_arch = "bpf")]
mod sender;
#[cfg(target_arch = "bpf")]
mod skb;
#[cfg(target_arch = "bpf")]
mod unwritten;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr, classifier};
    use aya_ebpf::programs::{RawTracePointContext, SkBuffContext, SockAddrContext, TcContext};

    use crate::{cgroup, device, origin};

    /// Host side of a pod's device, packets from the pod.
    #[classifier]
    pub fn sp_from_pod(ctx: TcContext) -> i32 {
        device::from_pod(&ctx)
    }

    /// Host side of a device that may be a pod's and is nobody's yet.
    #[classifier]
    pub fn sp_by_sender(ctx: TcContext) -> i32 {
        device::by_sender(&ctx)
    }

    /// Host side of a pod's device, packets to the pod. Drops nothing.
    #[classifier]
    pub fn sp_to_pod(ctx: TcContext) -> i32 {
        device::to_pod(&ctx)
    }

    /// An empty program, to measure the others against.
    #[classifier]
    pub fn sp_empty(_ctx: TcContext) -> i32 {
        aya_ebpf::bindings::TC_ACT_UNSPEC
    }

    /// Kubepods, packets that its processes send.
    #[cgroup_skb]
    pub fn sp_cg_egress(ctx: SkBuffContext) -> i32 {
        cgroup::egress(&ctx)
    }

    /// Kubepods, packets that its processes receive. Drops nothing.
    #[cgroup_skb]
    pub fn sp_cg_ingress(ctx: SkBuffContext) -> i32 {
        cgroup::ingress(&ctx)
    }

    /// Who asks for a destination. These four never refuse: an application behind a sidecar
    /// connects to the outside address, and is redirected to the sidecar only afterwards.
    #[cgroup_sock_addr(connect4)]
    pub fn sp_connect4(ctx: SockAddrContext) -> i32 {
        origin::ipv4(&ctx)
    }

    #[cgroup_sock_addr(connect6)]
    pub fn sp_connect6(ctx: SockAddrContext) -> i32 {
        origin::ipv6(&ctx)
    }

    #[cgroup_sock_addr(sendmsg4)]
    pub fn sp_sendmsg4(ctx: SockAddrContext) -> i32 {
        origin::ipv4(&ctx)
    }

    #[cgroup_sock_addr(sendmsg6)]
    pub fn sp_sendmsg6(ctx: SockAddrContext) -> i32 {
        origin::ipv6(&ctx)
    }

    /// Attached to nothing; the agent runs it (`BPF_PROG_TEST_RUN`) to learn how deep kubepods is
    /// where a cgroup namespace hides that.
    // By hand: aya's macro throws the return value away.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "raw_tp")]
    pub extern "C" fn sp_depth(ctx: *mut core::ffi::c_void) -> u32 {
        origin::is_ancestor(&RawTracePointContext::new(ctx))
    }
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 7] = *b"GPL v2\0";

/// Nothing here panics; the compiler has to be told what would happen.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
