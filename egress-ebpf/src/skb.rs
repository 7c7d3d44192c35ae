//! A socket buffer as a packet.

use aya_ebpf::programs::sk_buff::SkBuff;
#[cfg(not(feature = "in-parts"))]
use egress_common::decide::parts::Parts;
use egress_common::packet::{Headers, Packet, Wire};

use crate::unwritten::unwritten;

pub struct Skb<'a> {
    pub buffer: &'a SkBuff,
    /// Begin and end of the bytes that can be read directly.
    data: usize,
    end: usize,
}

/// Beyond this many bytes headers are read by helper. Linux 6.1's verifier admits no direct access at
/// offsets that vary as these do.
const DIRECT: usize = if cfg!(feature = "in-parts") { 0 } else { 2048 };

impl<'a> Skb<'a> {
    #[inline(always)]
    pub fn new(skb: &'a SkBuff) -> Self {
        // SAFETY: the context is valid for as long as the program runs, and the fields readable.
        let (data, end) = unsafe { ((*skb.skb).data as usize, (*skb.skb).data_end as usize) };
        Self {
            buffer: skb,
            data,
            end,
        }
    }
}

#[cfg_attr(
    feature = "in-parts",
    allow(
        clippy::absurd_extreme_comparisons,
        reason = "nothing is read directly there"
    )
)]
impl Packet for Skb<'_> {
    #[inline(always)]
    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        let at = self.data + offset;
        // The verifier wants a bound on the offset, and can't follow the comparison that the
        // compiler makes of a single byte.
        let direct = offset < DIRECT && size_of::<T>() > 1;
        if direct && at + size_of::<T>() <= self.end {
            // SAFETY: in bounds, as the verifier checks, and any bytes are a valid `T`. It may be
            // misaligned, which the kernel admits where the machine reads that as fast, and only
            // there; `read_unaligned` would read byte by byte on this target.
            return Some(unsafe { *(at as *const T) });
        }
        // A packet socket's buffer may have its headers in fragments, where direct access sees the
        // end of the packet; the helper doesn't.
        self.buffer.load(offset).ok()
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.buffer.len() as usize
    }

    #[inline(always)]
    fn vlan_offloaded(&self) -> bool {
        // SAFETY: the context is valid for as long as the program runs, and the field readable.
        unsafe { (*self.buffer.skb).vlan_present != 0 }
    }

    // With the copy of the kernel's buffer, a stack of its own, which has ended when the rules need theirs.
    #[cfg_attr(feature = "in-parts", inline(never))]
    #[cfg_attr(not(feature = "in-parts"), inline(always))]
    fn spares(&self, headers: &Headers) -> bool {
        match unwritten(self.buffer.skb) {
            Ok(Some(checksum)) => checksum.spares(headers),
            Ok(None) => true,
            Err(()) => false,
        }
    }
}

#[cfg(not(feature = "in-parts"))]
impl Parts for Skb<'_> {}
