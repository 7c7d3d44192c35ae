//! The real kernel behind the reconciler.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::maps::{
    Covered, Endpoint, FLOW_PAD, Flow, FlowKey, Inbound, MODE_ENFORCE, NETWORKS, Way, covered_mark,
    covered_place, way_place,
};

use super::comparison::Comparison;
use super::{Datapath, DatapathError, Direction, Maps, Observed, device};
use crate::compile::{DesiredState, Digest, Hold};
use crate::fence::Fence;
use crate::netlink::NetlinkError;
use crate::reconcile::{Executor, Op};

/// Keys of `sp_flows_in` and of `sp_flows_out`.
pub type FlowKeys = (Vec<FlowKey>, Vec<FlowKey>);

/// Flows of a pod that stand before it is first held, as keys of `sp_flows_in` and `sp_flows_out`
/// under a slot.
pub trait Adopt: Send {
    /// Forget what was read: hooks have been attached since.
    fn refresh(&mut self);
    /// Those opened from outside, and those opened by the pod.
    fn flows(&mut self, slot: u32, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> FlowKeys;
    /// Ends connections of these pods, by address, that the node's NAT leads where their policy
    /// doesn't; how many.
    fn cut(&mut self, pods: &BTreeMap<IpAddr, Digest>, desired: &DesiredState) -> u64;
}

/// Executes operations on this node's kernel.
pub struct Kernel {
    pub datapath: Datapath,
    adopt: Box<dyn Adopt>,
    comparison: Comparison,
    /// None where the kernel has no packet filter.
    fence: Option<Box<Fence>>,
    /// It could not be looked at, and that was said.
    fence_unreadable: bool,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("datapath", &self.datapath)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    pub fn new(datapath: Datapath, adopt: Box<dyn Adopt>) -> Self {
        Self {
            datapath,
            adopt,
            comparison: Comparison::default(),
            fence: None,
            fence_unreadable: false,
        }
    }

    /// Has a fence behind the hooks.
    #[must_use]
    pub fn with_fence(mut self, fence: Option<Fence>) -> Self {
        self.fence = fence.map(Box::new);
        self
    }

    /// Keeps what is in policies that stand and that nobody declares any more, so that they can be
    /// mended as well.
    pub fn keep_undeclared(
        &mut self,
        observed: &Observed,
        desired: &DesiredState,
    ) -> Result<(), DatapathError> {
        self.comparison
            .keep_undeclared(&self.datapath.maps, observed, desired)
    }

    /// Ends connections of the pods that are held, and that the node's NAT leads where their policy doesn't.
    pub fn cut_diverted(&mut self, desired: &DesiredState) {
        self.adopt.cut(&enforced(desired), desired);
    }

    fn adopt_flows(
        &mut self,
        slot: u32,
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
    ) -> Result<u64, DatapathError> {
        let (inbound, outbound) = self.adopt.flows(slot, v4, v6);
        let seen = Flow {
            seen_ns: monotonic_ns(),
            state: 0,
            pad: [0; FLOW_PAD],
        };
        let with_time = |keys: Vec<FlowKey>| -> Vec<(FlowKey, Flow)> {
            keys.into_iter().map(|key| (key, seen)).collect()
        };
        let maps = &self.datapath.maps;
        if !inbound.is_empty() {
            // All of them, because the kernel may be setting one of them right now.
            let networks = [1; NETWORKS];
            maps.inbound.insert(&slot, &Inbound { networks })?;
        }
        Ok(maps.flows_in.insert_all(&with_time(inbound))?
            + maps.flows_out.insert_all(&with_time(outbound))?)
    }
}

impl Executor for Kernel {
    type Error = DatapathError;

    fn observe(&mut self, desired: &DesiredState) -> Result<Observed, DatapathError> {
        let mut observed = self.datapath.observe()?;
        let maps = &self.datapath.maps;
        observed.damaged = self.comparison.damage(maps, &observed, desired)?;
        if let Some(fence) = &mut self.fence {
            // The hooks must not wait for it.
            let look = fence.look();
            if let (Err(error), false) = (&look, self.fence_unreadable) {
                tracing::error!(event = "fence_unreadable", %error, "it is left as it is");
            }
            self.fence_unreadable = look.is_err();
            observed.fence = look.ok();
            let enforced = observed.devices.iter();
            let enforced = enforced.filter(|(_, endpoint)| endpoint.mode == MODE_ENFORCE);
            let enforced = enforced.map(|(ifindex, _)| *ifindex);
            observed.shared = device::shared(self.datapath.pins(), enforced)?;
        }
        Ok(observed)
    }

    fn execute(&mut self, op: &Op, desired: &DesiredState) -> Result<u64, DatapathError> {
        let done = self.change(op, desired);
        if op.is_of_entries() {
            self.comparison.expire();
        }
        #[cfg(feature = "other-layout")]
        cut(op);
        done
    }
}

/// For the tests of faults: the process ends after so many steps as `SALLYPORT_CUT_AFTER` says.
#[cfg(feature = "other-layout")]
fn cut(op: &Op) {
    use std::sync::atomic::{AtomicU32, Ordering};

    static STEPS: AtomicU32 = AtomicU32::new(0);
    let last = std::env::var("SALLYPORT_CUT_AFTER").ok();
    let last = last.and_then(|last| last.parse().ok());
    if last == Some(STEPS.fetch_add(1, Ordering::Relaxed) + 1) {
        tracing::error!(event = "cut", op = %op);
        std::process::abort();
    }
}

impl Kernel {
    fn change(&mut self, op: &Op, desired: &DesiredState) -> Result<u64, DatapathError> {
        let maps = &self.datapath.maps;
        match op {
            Op::SetConfig(config) => maps.config.insert(&0, config).map(|()| 1),
            Op::SetPolicyInfo { number, info } => maps.policy_info.insert(number, info).map(|()| 1),
            Op::WritePolicy { number, digest } => match desired.policies.get(digest) {
                Some(policy) => maps.write_policy(*number, policy),
                None => Err(DatapathError::Missing {
                    what: format!("policy {number}"),
                }),
            },
            Op::MendPolicy { number, digest } => {
                match self.comparison.content(desired, *number, digest) {
                    Some(policy) => maps.mend_policy(*number, policy),
                    None => Err(DatapathError::Missing {
                        what: format!("policy {number}"),
                    }),
                }
            }
            Op::ClearPolicy { number } => maps.clear_policy(*number),
            Op::RemovePolicyInfo { number } => maps.policy_info.remove(number).map(u64::from),
            Op::ZeroCounters { slot } => maps.counters.zero(*slot).map(|()| 1),
            Op::SetPodInfo { slot, info } => maps.pod_info.insert(slot, info).map(|()| 1),
            Op::RemovePodInfo { slot } => maps.pod_info.remove(slot).map(u64::from),
            Op::SetDevice { ifindex, endpoint } => {
                maps.devices.insert(ifindex, endpoint).map(|()| 1)
            }
            Op::RemoveDevice { ifindex } => maps.devices.remove(ifindex).map(u64::from),
            Op::SetCgroup { cgroup, endpoint } => set_cgroup(maps, *cgroup, endpoint),
            Op::SetWays { slot, devices } => set_ways(maps, *slot, devices),
            Op::RemoveCgroup { cgroup } => {
                Ok(set_covered(maps, *cgroup, None)? + u64::from(maps.cgroups.remove(cgroup)?))
            }
            // What can't be ended is told; it must not keep a policy from the kernel.
            Op::CutDiverted { pods } => Ok(self.adopt.cut(pods, desired)),
            Op::AdoptFlows { slot, v4, v6 } => self.adopt_flows(*slot, *v4, *v6),
            Op::Attach { ifindex, direction } => {
                self.datapath.attach(*ifindex, *direction)?;
                if *direction == Direction::Egress {
                    self.adopt.refresh();
                }
                Ok(1)
            }
            Op::AttachBySender { ifindex } => self.datapath.attach_by_sender(*ifindex).map(|()| 1),
            Op::Swap { ifindex, direction } => self.datapath.swap(*ifindex, *direction).map(|()| 1),
            Op::Detach { ifindex, direction } => {
                self.datapath.detach(*ifindex, *direction).map(u64::from)
            }
            Op::AttachCgroup(hook) => self.datapath.attach_cgroup(*hook).map(|()| 1),
            Op::SwapCgroup(hook) => self.datapath.swap_cgroup(*hook).map(|()| 1),
            Op::Fence { ifindex } => fenced(&mut self.fence, |fence| fence.add(*ifindex)),
            Op::LetBy { ifindex } => fenced(&mut self.fence, |fence| fence.remove(*ifindex)),
            Op::RaiseFence { devices } => fenced(&mut self.fence, |fence| fence.raise(devices)),
            Op::LowerFence => fenced(&mut self.fence, |fence| fence.lower().map(drop)),
            Op::Carry { layout } => self.datapath.carry(layout),
            Op::RemoveLayout { layout } => self.datapath.remove_layout(layout),
        }
    }
}

/// No step is of a fence that is not there.
fn fenced(
    fence: &mut Option<Box<Fence>>,
    change: impl FnOnce(&mut Fence) -> Result<(), NetlinkError>,
) -> Result<u64, DatapathError> {
    fence.as_deref_mut().map_or(Ok(()), change)?;
    Ok(1)
}

/// Policies of the pods that are held, by their addresses. What a pod in the node's network sends is judged
/// after the NAT.
fn enforced(desired: &DesiredState) -> BTreeMap<IpAddr, Digest> {
    let pods = desired.pods.values();
    let pods = pods.filter(|pod| pod.hold == Hold::Enforce && !pod.host_network);
    let policies = pods.filter_map(|pod| Some((pod, pod.policy?)));
    policies
        .flat_map(|(pod, policy)| pod.addresses().map(move |ip| (ip, policy)))
        .collect()
}

/// Writes a pod's entry for the cgroup hook. The shortcut never says more than the entry: it goes
/// before the entry and comes after it.
fn set_cgroup(maps: &Maps, cgroup: u64, endpoint: &Endpoint) -> Result<u64, DatapathError> {
    let (slot, ways) = (endpoint.slot, endpoint.passes_with());
    let mut writes = 1;
    if ways == 0 {
        writes += set_covered(maps, cgroup, None)?;
    }
    maps.cgroups.insert(&cgroup, endpoint)?;
    if ways != 0 {
        writes += set_covered(maps, cgroup, Some((slot, ways)))?;
    }
    Ok(writes)
}

/// Sets the shortcut for a slot with so many ways, or clears it; a place that another pod has stays
/// that pod's.
fn set_covered(maps: &Maps, cgroup: u64, passes: Option<(u32, u32)>) -> Result<u64, DatapathError> {
    let (place, mark) = (covered_place(cgroup), covered_mark(cgroup));
    let there = maps.covered.get(&place)?.unwrap_or_default();
    let write = match passes {
        None if there.mark == mark => Covered::default(),
        Some((slot, ways))
            if there.mark == 0
                || there.mark == mark
                || maps.cgroups.get(&(there.mark - 1))?.is_none() =>
        {
            Covered { slot, ways, mark }
        }
        _ => return Ok(0),
    };
    if write == there {
        return Ok(0);
    }
    maps.covered.insert(&place, &write)?;
    Ok(1)
}

/// Writes the devices on which a pod's hooks stand; the kernel refuses one that has gone.
fn set_ways(maps: &Maps, slot: u32, devices: &[u32]) -> Result<u64, DatapathError> {
    for (place, ifindex) in (way_place(slot)..way_place(slot + 1)).zip(devices) {
        let way = Way {
            ifindex: *ifindex,
            program: 0,
        };
        maps.ways.insert(&place, &way)?;
    }
    Ok(devices.len() as u64)
}

/// The kernel's monotonic clock, nanoseconds.
pub fn monotonic_ns() -> u64 {
    // The coarse one, as in the kernel programs: a finer time could lie ahead of theirs.
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
        .expect("every Linux has this clock");
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}
