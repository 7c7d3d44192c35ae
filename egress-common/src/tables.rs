//! The tables that the decision looks things up in, and remembers flows in.
//!
//! The kernel programs implement this over BPF maps, tests and `egressctl` over anything else.

use crate::maps::{
    ExactKey4, ExactKey6, ExactRule, Flow, FlowKey, Fragment, FragmentKey, PrefixRule,
};
use crate::packet::Address;

/// Whether a table took what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

pub trait Tables {
    /// Nanoseconds of the monotonic clock. Read only where a flow or fragment is found or written.
    fn now_ns(&self) -> u64;

    fn exact4(&self, key: &ExactKey4) -> Option<ExactRule>;
    fn exact6(&self, key: &ExactKey6) -> Option<ExactRule>;
    /// Longest match among the prefixes of the policy. `addr` is the last word of an address.
    fn prefix4(&self, policy: u32, addr: u32) -> Option<&PrefixRule>;
    fn prefix6(&self, policy: u32, addr: &Address) -> Option<&PrefixRule>;

    /// Flows opened from outside the pod.
    fn flow_in(&self, key: &FlowKey) -> Option<Flow>;
    fn set_flow_in(&self, key: &FlowKey, flow: &Flow) -> Result<(), Full>;
    /// Whether an address of this network ([`crate::maps::network4`]) has opened a flow to the pod.
    fn inbound(&self, slot: u32, network: usize) -> bool;
    fn set_inbound(&self, slot: u32, network: usize);
    /// Flows opened by the pod.
    fn flow_out(&self, key: &FlowKey) -> Option<Flow>;
    fn set_flow_out(&self, key: &FlowKey, flow: &Flow) -> Result<(), Full>;

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment) -> Result<(), Full>;
}
