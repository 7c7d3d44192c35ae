//! Sizes that both sides must agree on, and the times after which state is stale.

/// Maps of the other layout are small where tests fill them.
const fn small(tests: u32, size: u32) -> u32 {
    if cfg!(feature = "other-layout") {
        tests
    } else {
        size
    }
}

/// Pods with state of their own on one node. Slot 0 stands for pods that are not known (yet).
pub const MAX_SLOTS: u32 = small(16, 1024);
/// Devices of held pods on one node.
pub const MAX_DEVICES: u32 = small(8, 2048);
/// Cgroups of pods on one node, held or not.
pub const MAX_CGROUPS: u32 = small(12, 4096);
/// Policies of a node, those that come and go with a change included.
pub const MAX_POLICIES: u32 = small(8, 1024);
/// Devices of one pod; with more than these its packets are judged at the cgroup hook, too.
pub const MAX_WAYS: u32 = 8;
/// Places in `sp_covered`; a power of two.
pub const COVERED_PLACES: u32 = 1 << 16;
/// Whole addresses (with port) of all policies of a node, per address family.
pub const MAX_EXACT: u32 = small(512, 262_144);
/// Prefixes of all policies of a node, per address family.
pub const MAX_PREFIXES: u32 = small(512, 131_072);
/// Flows opened from outside, and flows opened by pods, that a node remembers; each.
pub const MAX_FLOWS: u32 = 131_072;
/// Fragmented packets in flight on a node.
pub const MAX_FRAGMENTS: u32 = small(1024, 8_192);
/// Remembered (pod, destination) pairs with the process that asked for them.
pub const MAX_ORIGINS: u32 = small(1024, 32_768);
/// Bytes of the event ring buffer.
pub const EVENT_RING_BYTES: u32 = small(1 << 12, 1 << 20);
/// Port ranges of one prefix.
pub const MAX_RANGES: usize = 16;
/// IPv6 extension headers after the first in one packet; more are not parsed, and dropped.
pub const MAX_EXTENSION_HEADERS: usize = 6;

const SECOND: u64 = 1_000_000_000;
/// A UDP flow opened from outside is over after this long without a packet. Nanoseconds.
pub const UDP_IDLE_NS: u64 = 180 * SECOND;
/// The same for an ICMP echo.
pub const ICMP_IDLE_NS: u64 = 30 * SECOND;
/// The same for an established TCP or SCTP flow; as long as Linux' conntrack.
pub const TCP_IDLE_NS: u64 = 5 * 24 * 3600 * SECOND;
/// The same for a TCP flow that both ends have closed.
pub const TCP_CLOSED_NS: u64 = 120 * SECOND;
/// The same after a reset.
pub const TCP_RESET_NS: u64 = 10 * SECOND;
/// A flow opened by the pod is forgotten after this long without a packet in either direction.
pub const OUT_IDLE_NS: u64 = 300 * SECOND;
/// After a packet that a pod has sent in another's name, nothing that comes to it opens a flow for this
/// long: that packet may come back. The node keeps none longer, but for fragments, of which each counts.
pub const FORGED_NS: u64 = 5 * SECOND;
/// Fragments that arrive later than this after their first one are dropped; RFC 8200's 60 s are
/// for reassembly at the far end, on one node half of it is plenty.
pub const FRAGMENT_NS: u64 = 30 * SECOND;
/// The time of a flow is written at most this often.
pub const TOUCH_NS: u64 = SECOND;
