//! From desired and observed state to the steps between them. Pure.
//!
//! Order of the steps, such that a crash between any two leaks nothing and breaks nothing:
//! 1. settings; 2. devices that are nobody's yet (`outlying`) are judged by the sender (after 6 where the
//!    gate does not stand yet); 3. entries that somebody else has put into policies, and policies that are
//!    new: announced as incomplete, written, completed;
//! 4. connections end that the node's NAT leads where a pod's new policy doesn't (once more after 6);
//!    of each pod: its slot, its devices' entries, the egress hook, which learns what is opened
//!    from outside from then on; 5. flows that stand are taken over; 6. the ingress hook, which
//!    drops, the devices that it stands on, and the cgroup's entry, which says so;
//! 7. static pods that nobody tells of pass the gate; pods that are gone: cgroup entry (the gate closes),
//!    hooks, device entries, slot;
//! 8. the hooks on kubepods; 9. devices go behind the fence whose hooks the plan before has had mark what
//!    they pass; 10. policies that nobody named before this plan are collected, and
//!    pins of another layout removed once no hook has a program of it.
//!
//! Hooks of another layout look into maps of their own until they are swapped: entries are written
//! here first, and what the programs write there is taken over just before, and once more after.
mod fence;
mod members;
mod outlying;
mod pods;
mod policies;
mod statics;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egress_common::maps::Config;

use super::near::Near;
use super::op::{Op, Plan, Step, Subject};
use crate::compile::{DesiredState, Digest};
use crate::datapath::maps::text;
use crate::datapath::{CgroupHook, Direction, LinkState, Observed};
use crate::node::Sightings;
use members::{Member, owners};

/// What planning needs to know beside the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub config: Config,
    /// The kernel's monotonic clock: birth of slots that are given now.
    pub now_ns: u64,
}

/// The steps from `observed` to `desired`. Empty if there is nothing to do.
///
/// Policies that fall out of use are collected by the plan after this one, when the flip of
/// their pods has been observed.
pub fn plan(
    desired: &DesiredState,
    sightings: &Sightings,
    observed: &Observed,
    settings: &Settings,
) -> Plan {
    let mut planner = Planner {
        observed,
        sightings,
        settings,
        plan: Plan::default(),
        numbers: BTreeMap::new(),
        near: BTreeMap::new(),
        adopt: Vec::new(),
        close: Vec::new(),
        turned: BTreeMap::new(),
        cgroups: BTreeSet::new(),
        devices: BTreeSet::new(),
        unclaimed: BTreeSet::new(),
        fenced: BTreeSet::new(),
    };
    planner.config();
    planner.mend();
    let members = planner.members(desired);
    planner.unclaimed(&members);
    // Else hooks wait until the entries of all pods are written.
    let knows_pods = observed.knows_pods();
    if knows_pods {
        planner.by_sender();
    }
    planner.policies(desired);
    let owners = owners(&members);
    let before = planner.plan.steps.len();
    for member in members.values() {
        planner.member(member, &owners);
    }
    let cut = planner.cut();
    let at = before..before;
    planner.plan.steps.splice(at, cut.clone());
    let (adopt, close) = (
        std::mem::take(&mut planner.adopt),
        std::mem::take(&mut planner.close),
    );
    planner.plan.steps.extend(adopt);
    planner.carry();
    planner.plan.steps.extend(close);
    planner.plan.steps.extend(cut);
    if !knows_pods {
        planner.by_sender();
    }
    planner.statics(desired);
    planner.gone(&members);
    planner.kubepods();
    planner.fence();
    planner.collect();
    planner.layouts();
    planner.plan
}
struct Planner<'a> {
    observed: &'a Observed,
    sightings: &'a Sightings,
    settings: &'a Settings,
    plan: Plan,
    numbers: BTreeMap<Digest, u32>,
    near: BTreeMap<Digest, Near>,
    /// Steps that come after all egress hooks, and those after all flows are taken over.
    adopt: Vec<Step>,
    close: Vec<Step>,
    /// Policies of the pods that are held otherwise from now on, by address.
    turned: BTreeMap<IpAddr, Digest>,
    /// What is somebody's.
    cgroups: BTreeSet<u64>,
    devices: BTreeSet<u32>,
    /// Devices that may be a pod's.
    unclaimed: BTreeSet<u32>,
    /// Devices that belong behind the fence.
    fenced: BTreeSet<u32>,
}

impl Planner<'_> {
    fn step(&mut self, subject: Subject, op: Op) {
        self.plan.steps.push(Step {
            subject,
            policy: None,
            op,
        });
    }

    /// Ends what a Service's address has led elsewhere than it leads now. Before it may be open, and once
    /// more when it is: what the pod sends in between begins such a connection anew where the node's NAT
    /// is behind.
    fn cut(&mut self) -> Option<Step> {
        let pods = std::mem::take(&mut self.turned);
        (!pods.is_empty()).then_some(Step {
            subject: Subject::Node,
            policy: None,
            op: Op::CutDiverted { pods },
        })
    }

    fn config(&mut self) {
        if self.observed.config != Some(self.settings.config) {
            self.step(Subject::Node, Op::SetConfig(self.settings.config));
        }
    }

    /// What is nobody's any more.
    fn gone(&mut self, members: &BTreeMap<String, Member<'_>>) {
        let slots: BTreeMap<u32, &str> = members
            .values()
            .map(|member| (member.slot, member.uid.as_str()))
            .collect();
        let observed = self.observed;
        // Steps of one pod fail together: the slot is free only when all else is gone.
        let subject = |slot: u32, other: Subject| match slots.get(&slot) {
            Some(uid) => Subject::Pod((*uid).to_owned()),
            None => match observed.slots.get(&slot) {
                Some(info) => Subject::Pod(text(&info.uid)),
                None => other,
            },
        };
        for (cgroup, endpoint) in &observed.cgroups {
            if !self.cgroups.contains(cgroup) {
                let subject = subject(endpoint.slot, Subject::Cgroup(*cgroup));
                self.step(subject, Op::RemoveCgroup { cgroup: *cgroup });
            }
        }
        let mut hooked: BTreeSet<u32> = observed.links.keys().map(|(index, _)| *index).collect();
        hooked.extend(observed.devices.keys());
        hooked.extend(observed.fence.iter().flat_map(|fence| &fence.anywhere));
        for ifindex in hooked {
            if self.devices.contains(&ifindex) {
                continue;
            }
            let entry = observed.devices.get(&ifindex);
            let subject = subject(
                entry.map_or(0, |endpoint| endpoint.slot),
                Subject::Device(ifindex),
            );
            self.let_by(&subject, ifindex);
            // It has come since the node was looked at.
            if entry.is_none()
                && observed.link(ifindex, Direction::Ingress) == Some(LinkState::BySender)
                && !self.sightings.devices.contains(&ifindex)
            {
                continue;
            }
            let unclaimed = self.unclaimed.contains(&ifindex);
            if unclaimed && entry.is_some() {
                self.step(subject.clone(), Op::AttachBySender { ifindex });
            }
            for direction in Direction::BOTH {
                let by_sender = unclaimed && direction == Direction::Ingress;
                if !by_sender && observed.link(ifindex, direction).is_some() {
                    self.step(subject.clone(), Op::Detach { ifindex, direction });
                }
            }
            if entry.is_some() {
                self.step(subject, Op::RemoveDevice { ifindex });
            }
        }
        // A device or cgroup that another pod has now may still name the slot, until that pod's step
        // has worked: the slot is free in the plan after it.
        let devices = observed.devices.iter();
        let devices = devices.filter(|(ifindex, _)| self.devices.contains(ifindex));
        let cgroups = observed.cgroups.iter();
        let cgroups = cgroups.filter(|(cgroup, _)| self.cgroups.contains(cgroup));
        let named: BTreeSet<u32> = devices
            .map(|(_, endpoint)| endpoint.slot)
            .chain(cgroups.map(|(_, endpoint)| endpoint.slot))
            .collect();
        for (slot, info) in &observed.slots {
            if !slots.contains_key(slot) && !named.contains(slot) {
                let subject = Subject::Pod(text(&info.uid));
                self.step(subject, Op::RemovePodInfo { slot: *slot });
            }
        }
    }

    /// Some hook has a program of another version.
    fn has_old_programs(&self) -> bool {
        let links = self.observed.links.values();
        let mut links = links.chain(self.observed.cgroup_links.values());
        links.any(|state| *state == LinkState::OldProgram)
    }

    fn carry(&mut self) {
        let observed = self.observed;
        if self.has_old_programs() {
            for layout in observed.layouts.iter().cloned() {
                self.step(Subject::Node, Op::Carry { layout });
            }
        }
    }

    fn layouts(&mut self) {
        let observed = self.observed;
        if !self.has_old_programs() {
            for layout in observed.layouts.iter().cloned() {
                self.step(Subject::Node, Op::RemoveLayout { layout });
            }
        }
    }

    fn kubepods(&mut self) {
        for hook in CgroupHook::ALL {
            let op = match self.observed.cgroup_links.get(&hook) {
                Some(LinkState::Good | LinkState::Displaced) => continue,
                Some(LinkState::OldProgram) => Op::SwapCgroup(hook),
                _ => Op::AttachCgroup(hook),
            };
            self.step(Subject::Node, op);
        }
    }
}
