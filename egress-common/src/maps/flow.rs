//! Flows and fragments.

/// Key of `sp_flows_in` and `sp_flows_out`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    pub slot: u32,
    /// The other end's address, an IPv4 address mapped.
    pub peer_be: [u8; 16],
    /// The other end's port; for an ICMP echo its identifier.
    pub peer_port_be: [u8; 2],
    /// The pod's port; for an ICMP echo its identifier.
    pub pod_port_be: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    /// Version of IP: an IPv6 packet may bear a mapped address, and is no IPv4 packet.
    pub version: u8,
    pub pad: [u8; 2],
}

/// Value of `sp_flows_in` and `sp_flows_out`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    #[cfg(feature = "other-layout")]
    pub pad: [u32; FLOW_PAD],
    #[cfg(feature = "other-layout")]
    pub state: u32,
    /// Last packet, nanoseconds of the kernel's monotonic clock; coarse to `TOUCH_NS`.
    pub seen_ns: u64,
    /// `flow::CLOSED_*`, ORed.
    #[cfg(not(feature = "other-layout"))]
    pub state: u32,
    #[cfg(not(feature = "other-layout"))]
    pub pad: [u32; FLOW_PAD],
}

/// Words of padding in a [`Flow`].
pub const FLOW_PAD: usize = if cfg!(feature = "other-layout") { 3 } else { 1 };

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
