//! Keys and values of the BPF maps.
//!
//! All are `repr(C)` with explicit padding and hold no enum, bool or `Option`, so every bit
//! pattern is valid and both sides see the same bytes. Addresses and ports whose name ends in
//! `_be` are in network byte order, everything else is in the byte order of the node.
//! IPv4 addresses in 16-byte fields are IPv4-mapped (`::ffff:a.b.c.d`).

use crate::limits::{COVERED_PLACES, MAX_RANGES};
use crate::reason::REASONS;

/// Names of the maps as pinned and as `bpftool` shows them: at most 15 characters.
pub mod name {
    pub const DEVICES: &str = "sp_devices";
    pub const CGROUPS: &str = "sp_cgroups";
    pub const COVERED: &str = "sp_covered";
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
/// The hooks on all of the pod's devices stand: the cgroup hook lets its packets go there.
pub const FLAG_COVERED: u8 = 2;

/// What the kernel knows of one pod; value of `sp_devices` and `sp_cgroups`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
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
    pub since_ns: u64,
    /// A bit for the number of the network of each whole address in the policy: where the bit of
    /// [`network4`] or [`network6`] is not set, `sp_exact*` has nothing and is not looked at.
    pub exact_networks: u64,
    /// Some gateways of the policy, so that their packets need no lookup; unused ones are zero.
    pub near4: [Near4; NEAR4],
    pub near6: [Near6; NEAR6],
    pub pad: [u8; 4],
}

impl Endpoint {
    /// Whether the cgroup hook lets all packets of this pod go: nobody holds it, or the hooks on its
    /// devices do.
    pub const fn passes_cgroup(&self) -> bool {
        self.flags & FLAG_COVERED != 0 || self.mode == MODE_OFF
    }
}

/// Where in `sp_covered` a pod cgroup's id stands if its entry in `sp_cgroups`
/// [`passes_cgroup`](Endpoint::passes_cgroup). A shortcut: what is not there is looked up.
#[inline(always)]
pub const fn covered_place(cgroup: u64) -> u32 {
    cgroup as u32 % COVERED_PLACES
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

/// Networks are told apart by one of so many numbers.
pub const NETWORKS: usize = 64;

/// The number of the network that an address is in: of its first 16 bits.
#[inline(always)]
pub const fn network4(addr_be: [u8; 4]) -> usize {
    let [a, b, _, _] = addr_be;
    network(u16::from_be_bytes([a, b]) as u64)
}

/// The number of the network that an address is in: of its first 64 bits.
#[inline(always)]
pub const fn network6(addr_be: [u8; 16]) -> usize {
    let (first, _) = addr_be.split_at(8);
    match first.first_chunk() {
        Some(first) => network(u64::from_be_bytes(*first)),
        None => 0,
    }
}

/// Fibonacci hashing: the top six bits of a product with 2^64 over the golden ratio.
#[inline(always)]
const fn network(bits: u64) -> usize {
    (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize
}

/// Value of `sp_inbound`, key is the slot: by number of network, 1 where an address of it has opened
/// a flow to the pod. Nothing is ever cleared; a stale 1 costs a look into `sp_flows_in`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound {
    pub networks: [u8; NETWORKS],
}

/// Key of `sp_exact4`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExactKey4 {
    pub policy: u32,
    pub addr_be: [u8; 4],
    pub port_be: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    pub pad: u8,
}

/// Key of `sp_exact6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExactKey6 {
    pub policy: u32,
    pub addr_be: [u8; 16],
    pub port_be: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    pub pad: u8,
}

/// Value of `sp_exact4` and `sp_exact6`: this address, protocol and port is allowed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExactRule {
    /// Index into the policy's rules (`sp_rule_info`).
    pub rule: u16,
    /// A passing `Reason`.
    pub reason: u8,
    pub pad: u8,
}

/// Data of the keys of `sp_prefix4`, behind the trie's own prefix length (bits, counted from the
/// start of `policy`; so 32 more than the address prefix).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixKey4 {
    /// Network byte order, because the trie compares from the first bit on.
    pub policy_be: [u8; 4],
    pub addr_be: [u8; 4],
}

/// Data of the keys of `sp_prefix6`; as `PrefixKey4`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixKey6 {
    pub policy_be: [u8; 4],
    pub addr_be: [u8; 16],
}

/// One range of ports that a prefix allows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    /// First and last port, host byte order, both included. 0 to 65535 also admits protocols
    /// without ports.
    pub first: u16,
    pub last: u16,
    /// Index into the policy's rules (`sp_rule_info`).
    pub rule: u16,
    /// IP protocol number; 0 is TCP, UDP, SCTP and ICMP.
    pub proto: u8,
    /// A passing `Reason`.
    pub reason: u8,
}

/// Value of `sp_prefix4` and `sp_prefix6`. The longest matching prefix alone decides: whoever
/// writes the table puts all that a shorter prefix allows into the longer ones within it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixRule {
    /// Used entries of `ranges`, from the first on.
    pub count: u8,
    /// Dropping `Reason` when no range matches.
    pub deny: u8,
    /// Index of the rule to name when no range matches; `NO_RULE` for none.
    pub deny_rule: u16,
    pub ranges: [PortRange; MAX_RANGES],
}

/// "No rule" in `Outcome::rule`, `Event::rule` and `PrefixRule::deny_rule`.
pub const NO_RULE: u16 = u16::MAX;

/// Key of `sp_flows_in` and `sp_flows_out`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    pub slot: u32,
    /// The other end's address.
    pub peer_be: [u8; 16],
    /// The other end's port; for an ICMP echo its identifier.
    pub peer_port_be: [u8; 2],
    /// The pod's port; for an ICMP echo its identifier.
    pub pod_port_be: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    pub pad: [u8; 3],
}

/// Value of `sp_flows_in` and `sp_flows_out`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Last packet, nanoseconds of the kernel's monotonic clock; coarse to `TOUCH_NS`.
    pub seen_ns: u64,
    /// `flow::CLOSED_*`, ORed.
    pub state: u32,
    pub pad: u32,
}

/// Key of `sp_fragments`. The source is the pod's own address, or the packet was dropped before.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FragmentKey {
    pub slot: u32,
    /// Identification of the IP header, network byte order; IPv4's in the first two bytes.
    pub id_be: [u8; 4],
    pub dst_be: [u8; 16],
    /// IP protocol number of the packet; 0 for IPv6, where later fragments do not bind it.
    pub proto: u8,
    pub pad: [u8; 3],
}

/// Value of `sp_fragments`: the first fragment passed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// When it passed, nanoseconds of the kernel's monotonic clock.
    pub seen_ns: u64,
    /// Verdict of the first fragment, for the report of the later ones: `Pass` or `Audit`.
    pub verdict: u8,
    pub pad: [u8; 7],
}

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

/// Value of `sp_policy_info`, key is the policy's number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyInfo {
    /// SHA-256 of the policy's content: the same content keeps its number.
    pub digest: [u8; 32],
    /// Entries in `sp_exact4`, `sp_exact6`, `sp_prefix4`, `sp_prefix6`.
    pub entries: [u32; 4],
    /// Rules in `sp_rule_info`.
    pub rules: u32,
    /// 1 once every entry is written; 0 while it is being written or collected.
    pub complete: u32,
}

/// Key of `sp_rule_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleKey {
    pub policy: u32,
    pub rule: u16,
    pub pad: [u8; 2],
}

/// Value of `sp_rule_info`: the rule in words, such as `EgressLockdown/web allow.cidrs[2]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleInfo {
    /// UTF-8, padded with zeros; longer text is cut.
    pub text: [u8; 192],
}

/// First word holding two ports, in network byte order.
#[inline(always)]
pub const fn pair(first_be: u16, second_be: u16) -> u32 {
    let ([a, b], [c, d]) = (first_be.to_ne_bytes(), second_be.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
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
    PortRange = 8, PrefixRule = 132, FlowKey = 28, Flow = 16, FragmentKey = 28, Fragment = 16,
    OriginKey = 32, Origin = 40, Count = 16, PodCounters = 560, Config = 32, PodInfo = 376,
    PolicyInfo = 56, RuleKey = 8, RuleInfo = 192,
}
