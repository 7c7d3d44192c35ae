//! A socket buffer as a packet.

use aya_ebpf::programs::sk_buff::SkBuff;
use egress_common::packet::{Packet, Wire};

pub struct Skb<'a>(pub &'a SkBuff);

impl Packet for Skb<'_> {
    #[inline(always)]
    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        // By helper and not by direct access: a packet socket's buffer may have its headers in
        // fragments, where direct access would see the end of the packet.
        self.0.load(offset).ok()
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.0.len() as usize
    }

    #[inline(always)]
    fn vlan_offloaded(&self) -> bool {
        // SAFETY: the context is valid for as long as the program runs, and the field readable.
        unsafe { (*self.0.skb).vlan_present != 0 }
    }
}
