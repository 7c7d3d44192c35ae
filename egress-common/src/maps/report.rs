//! Who asked for what, counters, the node's settings, and who the pods are.

use crate::reason::REASONS;

/// Key of `sp_origins`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OriginKey {
    /// Cgroup id of the pod (not of its container).
    pub pod_cgroup: u64,
    pub dst_be: [u8; 16],
    pub port_be: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    pub pad: [u8; 5],
}

/// Value of `sp_origins`: who last asked for this destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Nanoseconds of the kernel's monotonic clock.
    pub seen_ns: u64,
    /// Cgroup id of the container.
    pub cgroup: u64,
    /// Process id in the node's PID namespace.
    pub pid: u32,
    /// User id in the node's user namespace.
    pub uid: u32,
    /// The thread's name, padded with zeros.
    pub comm: [u8; 16],
}

/// Packets and bytes of one reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Count {
    pub packets: u64,
    /// Bytes as the hook sees them: with the Ethernet header at the device hook.
    pub bytes: u64,
}

/// Value of `sp_counters`, one a slot and CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodCounters {
    /// By number of `Reason`.
    pub reasons: [Count; REASONS],
    /// Packets that would have been dropped but for Audit; they are in `reasons` too.
    pub audited: u64,
    /// Events left out: over the rate, or the ring was full.
    pub events_lost: u64,
    /// Token bucket of the events: tokens left, and when it was last filled.
    pub tokens: u64,
    pub filled_ns: u64,
}

/// The one value of `sp_config`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Cgroup ids of the QoS directories below kubepods, which hold pods but are none; or 0.
    pub qos_cgroups: [u64; 2],
    /// Cgroup id of kubepods; 0 where nobody's device tells whose a frame is.
    pub kubepods: u64,
    /// Depth of kubepods below the cgroup2 root.
    pub kubepods_level: u32,
    /// Nanoseconds for which one more event is allowed, per pod and CPU.
    pub event_interval_ns: u32,
    /// Events at once, per pod and CPU.
    pub event_burst: u32,
    /// `MODE_ENFORCE`: packets of unknown pods are dropped. `MODE_OFF`: they pass.
    pub unknown_mode: u8,
    pub pad: [u8; 3],
}

/// Value of `sp_pod_info`, key is the slot: who the slot belongs to, for people.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodInfo {
    /// UID as text (36 characters).
    pub uid: [u8; 36],
    /// Padded with zeros, at most 63 characters.
    pub namespace: [u8; 64],
    /// Padded with zeros, at most 253 characters.
    pub name: [u8; 256],
    pub pad: [u8; 4],
    /// Cgroup id of the pod.
    pub cgroup: u64,
    /// `Endpoint::since_ns` of the slot.
    pub since_ns: u64,
}
