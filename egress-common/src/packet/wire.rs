//! How bytes are read: what a packet must offer, and the types that are read at once.

use super::Headers;

/// A packet as the hook has it.
#[allow(clippy::len_without_is_empty, reason = "there are no empty packets")]
pub trait Packet {
    /// The bytes at `offset`, as they are on the wire; `None` if the packet ends before.
    fn load<T: Wire>(&self, offset: usize) -> Option<T>;
    /// Length in bytes, with the Ethernet header where the hook sees one.
    fn len(&self) -> usize;
    /// Whether the packet carries a VLAN tag beside its bytes (offloaded).
    fn vlan_offloaded(&self) -> bool;
    /// Whether a checksum that is still to be written leaves what these headers tell as it is.
    fn spares(&self, headers: &Headers) -> bool;
}

/// Types that any bytes are a valid value of.
///
/// # Safety
/// `repr(C)` or an integer or an array of them, without padding, and valid for every bit pattern.
pub unsafe trait Wire: Copy {}

macro_rules! wire {
    ($($ty:ty = $size:literal),+ $(,)?) => { $(
        const _: () = assert!(core::mem::size_of::<$ty>() == $size);
        // SAFETY: only integers and arrays of them; the size shows that there is no padding.
        unsafe impl Wire for $ty {}
    )+ };
}

/// Tail of the Ethernet header and the IPv4 header behind it, aligned as on the wire.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Frame4 {
    pub(super) source_mac_tail: u16,
    pub(super) ethertype_be: u16,
    pub(super) ip: Aligned4,
}

/// [`Ipv4Header`] as five words, so that the BPF target copies words and not bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Aligned4 {
    pub(super) words: [u32; 5],
}

/// IPv6 header as ten words; see [`Aligned4`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Aligned6 {
    pub(super) words: [u32; 10],
}

wire! {
    Frame4 = 24, Aligned4 = 20, Aligned6 = 40, ArpPacket = 28, u8 = 1, u16 = 2, u32 = 4,
    [u32; 2] = 8, [u32; 3] = 12, [u32; 4] = 16, [u32; 5] = 20,
}

/// ARP for IPv4 over Ethernet (RFC 826).
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ArpPacket {
    pub(super) hardware_be: u16,
    pub(super) protocol_be: u16,
    pub(super) lengths: u16,
    pub(super) operation_be: u16,
    pub(super) sender_mac: [u16; 3],
    pub(super) sender_ip: [u16; 2],
    pub(super) target_mac: [u16; 3],
    pub(super) target_ip: [u16; 2],
}
