//! The decision's tables in memory, and a slice as a packet: what tests and `egressctl` use where
//! the kernel programs have maps and socket buffers.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};

use crate::maps::{
    ExactKey4, ExactKey6, ExactRule, Flow, FlowKey, Fragment, FragmentKey, PrefixKey4, PrefixKey6,
    PrefixRule,
};
use crate::offload::Unwritten;
use crate::packet::{Address, Headers, Packet, Wire, bytes};
use crate::tables::{Full, Tables};

/// Bytes of the policy's number in front of a prefix, in bits.
pub const POLICY_BITS: u32 = 32;

/// Tables without a bound. The clock stands where it is set.
#[derive(Clone, Debug, Default)]
pub struct MemoryTables {
    pub now_ns: Cell<u64>,
    pub exact4: HashMap<ExactKey4, ExactRule>,
    pub exact6: HashMap<ExactKey6, ExactRule>,
    /// Key and prefix length in bits, with the policy's 32.
    pub prefix4: HashMap<(PrefixKey4, u32), PrefixRule>,
    pub prefix6: HashMap<(PrefixKey6, u32), PrefixRule>,
    pub flows_in: RefCell<HashMap<FlowKey, Flow>>,
    /// Slot and number of network.
    pub inbound: RefCell<HashSet<(u32, usize)>>,
    pub flows_out: RefCell<HashMap<FlowKey, Flow>>,
    pub fragments: RefCell<HashMap<FragmentKey, Fragment>>,
}

/// The first `bits` bits of `bytes`, the rest zero.
fn cut<const N: usize>(mut bytes: [u8; N], bits: u32) -> [u8; N] {
    for (i, byte) in bytes.iter_mut().enumerate() {
        let left = bits
            .saturating_sub(8 * u32::try_from(i).unwrap_or(u32::MAX))
            .min(8);
        *byte &= u8::try_from(0xff00_u32 >> left & 0xff).unwrap_or(0);
    }
    bytes
}

impl Tables for MemoryTables {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn exact4(&self, key: &ExactKey4) -> Option<ExactRule> {
        self.exact4.get(key).copied()
    }

    fn exact6(&self, key: &ExactKey6) -> Option<ExactRule> {
        self.exact6.get(key).copied()
    }

    fn prefix4(&self, policy: u32, addr: u32) -> Option<&PrefixRule> {
        (0..=32).rev().find_map(|bits| {
            let addr_be = cut(addr.to_ne_bytes(), bits);
            let key = PrefixKey4 {
                policy_be: policy.to_be_bytes(),
                addr_be,
            };
            self.prefix4.get(&(key, POLICY_BITS + bits))
        })
    }

    fn prefix6(&self, policy: u32, addr: &Address) -> Option<&PrefixRule> {
        (0..=128).rev().find_map(|bits| {
            let addr_be = cut(bytes(*addr), bits);
            let key = PrefixKey6 {
                policy_be: policy.to_be_bytes(),
                addr_be,
            };
            self.prefix6.get(&(key, POLICY_BITS + bits))
        })
    }

    fn flow_in(&self, key: &FlowKey) -> Option<Flow> {
        self.flows_in.borrow().get(key).copied()
    }

    fn set_flow_in(&self, key: &FlowKey, flow: &Flow) -> Result<(), Full> {
        self.flows_in.borrow_mut().insert(*key, *flow);
        Ok(())
    }

    fn inbound(&self, slot: u32, network: usize) -> bool {
        self.inbound.borrow().contains(&(slot, network))
    }

    fn set_inbound(&self, slot: u32, network: usize) {
        self.inbound.borrow_mut().insert((slot, network));
    }

    fn flow_out(&self, key: &FlowKey) -> Option<Flow> {
        self.flows_out.borrow().get(key).copied()
    }

    fn set_flow_out(&self, key: &FlowKey, flow: &Flow) -> Result<(), Full> {
        self.flows_out.borrow_mut().insert(*key, *flow);
        Ok(())
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment) -> Result<(), Full> {
        self.fragments.borrow_mut().insert(*key, *fragment);
        Ok(())
    }
}

/// A packet in memory.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Packet for Bytes<'_> {
    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        let bytes = self.0.get(offset..)?.get(..size_of::<T>())?;
        // SAFETY: `bytes` is as long as `T`, any bytes are a valid `T`, and alignment is not asked.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn vlan_offloaded(&self) -> bool {
        false
    }

    fn spares(&self, _headers: &Headers) -> bool {
        true
    }
}

/// A frame in memory whose checksum is still to be written.
#[derive(Clone, Copy, Debug)]
pub struct Unsummed<'a> {
    pub bytes: Bytes<'a>,
    pub checksum: Unwritten,
}

impl Packet for Unsummed<'_> {
    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        self.bytes.load(offset)
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn vlan_offloaded(&self) -> bool {
        self.bytes.vlan_offloaded()
    }

    fn spares(&self, headers: &Headers) -> bool {
        self.checksum.spares(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_keeps_the_first_bits() {
        assert_eq!(cut([0xff; 4], 0), [0; 4]);
        assert_eq!(cut([0xff; 4], 12), [0xff, 0xf0, 0, 0]);
        assert_eq!(cut([0xff; 4], 32), [0xff; 4]);
    }
}
