//! What the kernel tells user space about a packet.

use crate::maps::layout;

/// Where an event comes from: the device hook, packets from the pod.
pub const HOOK_DEVICE: u8 = 0;
/// The cgroup hook: host-network pods, and pods that are not known yet.
pub const HOOK_CGROUP: u8 = 1;

/// One dropped, rejected or audited packet; element of the ring buffer `sp_events`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// Nanoseconds of the kernel's monotonic clock.
    pub time_ns: u64,
    /// Cgroup id of the pod; 0 at the device hook (`sp_pod_info` has it there).
    pub pod_cgroup: u64,
    /// Slot of the pod; 0 for a pod that is not known.
    pub slot: u32,
    /// Policy that decided; 0 for none.
    pub policy: u32,
    /// Interface index of the device, on the node.
    pub ifindex: u32,
    /// Length of the packet in bytes, as the hook sees it.
    pub len: u32,
    /// Source and destination; all zero where the packet has none or was not parsed that far.
    pub src_be: [u8; 16],
    pub dst_be: [u8; 16],
    /// Ports; for ICMP type and code in `dst_port_be`; zero where there is none.
    pub src_port_be: [u8; 2],
    pub dst_port_be: [u8; 2],
    /// EtherType.
    pub ethertype_be: [u8; 2],
    /// Index into the policy's rules; `NO_RULE` for none.
    pub rule: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Number of the `Verdict`.
    pub verdict: u8,
    /// Number of the `Reason`.
    pub reason: u8,
    /// `HOOK_*`.
    pub hook: u8,
    pub pad: [u8; 4],
}

layout! { Event = 80 }
