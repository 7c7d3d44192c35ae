//! Keys and values of the BPF maps.
//!
//! All are `repr(C)` with explicit padding and hold no enum, bool or `Option`, so every bit
//! pattern is valid and both sides see the same bytes. Addresses and ports whose name ends in
//! `_be` are in network byte order, everything else is in the byte order of the node.
//! IPv4 addresses in 16-byte fields are IPv4-mapped (`::ffff:a.b.c.d`).

mod flow;
mod policy;
mod report;
#[cfg(not(target_arch = "bpf"))]
pub mod schema;

pub use flow::*;
pub use policy::*;
pub use report::*;

use crate::limits::{COVERED_PLACES, MAX_WAYS};
use crate::offload::SkbFields;

/// Names of the maps as pinned and as `bpftool` shows them: at most 15 characters.
pub mod name {
    pub const DEVICES: &str = "sp_devices";
    pub const CGROUPS: &str = "sp_cgroups";
    pub const COVERED: &str = "sp_covered";
    pub const WAYS: &str = "sp_ways";
    pub const EXACT4: &str = "sp_exact4";
    pub const EXACT6: &str = "sp_exact6";
    pub const PREFIX4: &str = "sp_prefix4";
    pub const PREFIX6: &str = "sp_prefix6";
    pub const FLOWS_IN: &str = "sp_flows_in";
    pub const FLOWS_OUT: &str = "sp_flows_out";
    pub const INBOUND: &str = "sp_inbound";
    pub const FRAGMENTS: &str = "sp_fragments";
    pub const ORIGINS: &str = "sp_origins";
    pub const COUNTERS: &str = "sp_counters";
    pub const EVENTS: &str = "sp_events";
    pub const CONFIG: &str = "sp_config";
    pub const POD_INFO: &str = "sp_pod_info";
    pub const POLICY_INFO: &str = "sp_policy_info";
    pub const RULE_INFO: &str = "sp_rule_info";
}

/// The pod is known and not held.
pub const MODE_OFF: u8 = 0;
/// What would be dropped passes and is reported.
pub const MODE_AUDIT: u8 = 1;
/// The pod is held.
pub const MODE_ENFORCE: u8 = 2;

/// A denied packet vanishes.
pub const DENY_DROP: u8 = 0;
/// A denied packet is answered with an ICMP error.
pub const DENY_REJECT: u8 = 1;

/// The pod lives in the node's network namespace: the cgroup hook decides about its packets.
pub const FLAG_HOST_NETWORK: u8 = 1;
/// The hooks on all of the pod's devices stand: the cgroup hook lets its packets go there for as long as
/// [`Endpoint::ways`] of them are in `sp_ways`.
pub const FLAG_COVERED: u8 = 2;

/// The pod can get at its node, and so around its hooks. For people only; the programs don't read it.
pub const FLAG_NODE_ACCESS: u8 = 4;

/// What passes the hook of this device is marked with [`MARK_PASSED`]: the fence behind it lets nothing else
/// by.
pub const FLAG_FENCED: u8 = 8;

/// The bit of a packet's mark that says that its device's hook has passed it. It is there from the hook to the
/// fence, which clears it; a pod can't set it, for the kernel takes the mark off what comes out of another
/// network namespace.
pub const MARK_PASSED: u32 = 0x0200_0000;

/// What the kernel knows of one pod; value of `sp_devices` and `sp_cgroups`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// With the feature `other-layout` it stands elsewhere: see there.
    #[cfg(feature = "other-layout")]
    pub since_ns: u64,
    /// Index of the pod's counters and its number in events; 1 to `MAX_SLOTS - 1`.
    pub slot: u32,
    /// Policy that `sp_exact*` and `sp_prefix*` are looked up with; 0 if the pod is not held.
    pub policy: u32,
    /// The pod's IPv4 address, network byte order; zero if it has none.
    pub v4_be: [u8; 4],
    /// `MODE_*`.
    pub mode: u8,
    /// `DENY_*`.
    pub on_deny: u8,
    /// `FLAG_*`, ORed.
    pub flags: u8,
    /// Always 0. The verifier doesn't know that: see `packet::Headers::forget_path`.
    pub zero: u8,
    /// The pod's IPv6 address, network byte order; zero if it has none.
    pub v6_be: [u8; 16],
    /// When the pod got its slot, nanoseconds of the kernel's monotonic clock. Flows and fragments
    /// last seen before are those of the slot's last owner.
    #[cfg(not(feature = "other-layout"))]
    pub since_ns: u64,
    /// A bit for the number of the network of each whole address in the policy: where the bit of
    /// [`network4`] or [`network6`] is not set, `sp_exact*` has nothing and is not looked at.
    pub exact_networks: u64,
    /// Some gateways of the policy, so that their packets need no lookup; unused ones are zero.
    pub near4: [Near4; NEAR4],
    pub near6: [Near6; NEAR6],
    /// Devices of a covered pod, in `sp_ways` from [`way_place`] on; 1 to `MAX_WAYS`, else 0.
    pub ways: u32,
}

impl Endpoint {
    /// Of a pod of which nothing is known but how it is held: no slot, no policy, no addresses.
    pub const fn nobodys(mode: u8) -> Self {
        Self {
            slot: 0,
            policy: 0,
            v4_be: [0; 4],
            mode,
            on_deny: DENY_DROP,
            flags: 0,
            zero: 0,
            v6_be: [0; 16],
            since_ns: 0,
            exact_networks: 0,
            near4: [Near4 {
                addr_be: [0; 4],
                port_be: [0; 2],
                rule: 0,
            }; NEAR4],
            near6: [Near6 {
                addr_be: [0; 16],
                port_be: [0; 2],
                rule: 0,
            }; NEAR6],
            ways: 0,
        }
    }

    /// How many devices must be in `sp_ways` for the cgroup hook to let all packets of this pod go:
    /// [`NO_WAYS`] if nobody holds it; 0 if its packets are judged there.
    pub const fn passes_with(&self) -> u32 {
        if self.mode == MODE_OFF {
            NO_WAYS
        } else if self.flags & FLAG_COVERED != 0 {
            self.ways
        } else {
            0
        }
    }
}

/// What `sp_covered` says of a pod cgroup whose entry in `sp_cgroups` passes the cgroup hook
/// ([`Endpoint::passes_with`]). A shortcut: what is not there is looked up. The cgroup comes last: the
/// kernel writes one word after the other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Covered {
    pub slot: u32,
    /// As [`Endpoint::passes_with`]; 0 passes nothing.
    pub ways: u32,
    /// See [`covered_mark`].
    pub mark: u64,
}

/// Whoever needs no device to pass the cgroup hook.
pub const NO_WAYS: u32 = u32::MAX;

/// Value of `sp_ways`, which is a map of devices: what the kernel takes out when it takes a device from
/// the node's network namespace. A pod passes the cgroup hook only while all of its devices are in there,
/// so what takes the place of one is no way out before its hook stands.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    pub ifindex: u32,
    /// For redirecting, which nobody does: 0.
    pub program: u32,
}

/// Where in `sp_ways` a slot's devices begin.
#[inline(always)]
pub const fn way_place(slot: u32) -> u32 {
    slot * MAX_WAYS
}

/// Where in `sp_covered` a pod cgroup stands.
#[inline(always)]
pub const fn covered_place(cgroup: u64) -> u32 {
    cgroup as u32 % COVERED_PLACES
}

/// How a pod cgroup stands there: by its id and one, so that a free place, zero, is no cgroup's.
#[inline(always)]
pub const fn covered_mark(cgroup: u64) -> u64 {
    cgroup.wrapping_add(1)
}

/// Gateways that an [`Endpoint`] names itself, per address family.
pub const NEAR4: usize = 3;
pub const NEAR6: usize = 1;

/// A gateway's listener: TCP, reason `Gateway`. `sp_exact4` has it too.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Near4 {
    pub addr_be: [u8; 4],
    /// Never zero in an entry that is used.
    pub port_be: [u8; 2],
    /// Index into the policy's rules.
    pub rule: u16,
}

/// As [`Near4`].
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Near6 {
    pub addr_be: [u8; 16],
    pub port_be: [u8; 2],
    pub rule: u16,
}

/// First word holding two ports, in network byte order.
#[inline(always)]
pub const fn pair(first_be: u16, second_be: u16) -> u32 {
    let ([a, b], [c, d]) = (first_be.to_ne_bytes(), second_be.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// A word whose first two bytes in memory are these.
#[inline(always)]
pub const fn short_pair(first: u8, second: u8) -> u32 {
    u32::from_ne_bytes([first, second, 0, 0])
}

/// A word whose first byte in memory is this one.
#[inline(always)]
pub const fn word(first: u8) -> u32 {
    u32::from_ne_bytes([first, 0, 0, 0])
}

macro_rules! from_words {
    ($($ty:ty = $n:literal),+ $(,)?) => { $(
        impl $ty {
            /// From its bytes in memory, four at a time. A byte array has no alignment, so building
            /// the value field by field would write it byte by byte on the BPF target.
            #[inline(always)]
            pub const fn from_words(words: [u32; $n]) -> Self {
                // SAFETY: the same size, and every bit pattern is valid.
                unsafe { core::mem::transmute::<[u32; $n], Self>(words) }
            }
        }
    )+ };
}

from_words! { ExactKey4 = 3, ExactKey6 = 6, FlowKey = 7, FragmentKey = 7, OriginKey = 8 }

macro_rules! layout {
    ($($ty:ty = $size:literal),+ $(,)?) => { $(
        const _: () = assert!(core::mem::size_of::<$ty>() == $size);
        #[cfg(feature = "user")]
        // SAFETY: `repr(C)`, only integers and arrays of them, and the size shows that there is
        // no padding but the named fields.
        unsafe impl aya::Pod for $ty {}
    )+ };
}
pub(crate) use layout;

layout! {
    Endpoint = 96, Near4 = 8, Near6 = 20, Inbound = 64, ExactKey4 = 12, ExactKey6 = 24, ExactRule = 4, PrefixKey4 = 8, PrefixKey6 = 20,
    PortRange = 8, PrefixRule = 132, FlowKey = 28, FragmentKey = 28, Fragment = 16,
    OriginKey = 32, Origin = 40, Count = 16, PodCounters = 560, Config = 40, PodInfo = 376,
    PolicyInfo = 56, RuleKey = 8, RuleInfo = 192, Covered = 16, Way = 8,
}

// In no map, but given to the programs in the same way.
layout! { SkbFields = 24 }

#[cfg(not(feature = "other-layout"))]
layout! { Flow = 16 }
#[cfg(feature = "other-layout")]
layout! { Flow = 24 }
