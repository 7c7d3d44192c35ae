//! Devices that may be a pod's, and are not known to be anybody's: a hook there judges each frame by its
//! sender.
//!
//! A device is there before any process tells whose it is, and a packet socket goes past the gate on the
//! cgroup. So the hook comes with the device. It closes nothing to strangers (another container engine's
//! devices, a VPN's, the node's own link where that is a veth): what no pod's socket has sent passes.

use std::collections::{BTreeMap, BTreeSet};

use super::super::op::{Op, Subject};
use super::Planner;
use super::members::Member;
use crate::datapath::{Direction, LinkState};

impl Planner<'_> {
    /// Which devices these are: none that a pod is known to have. Who is not held keeps no hook.
    pub(super) fn unclaimed(&mut self, members: &BTreeMap<String, Member<'_>>) {
        let claimed: BTreeSet<u32> = members.values().flat_map(Member::devices).collect();
        self.unclaimed = self
            .sightings
            .outlying
            .difference(&claimed)
            .copied()
            .collect();
    }

    /// Those that have no entry; `gone` has the others.
    pub(super) fn by_sender(&mut self) {
        for ifindex in self.unclaimed.clone() {
            let ingress = self.observed.link(ifindex, Direction::Ingress);
            let entry = self.observed.devices.contains_key(&ifindex);
            if !entry && ingress != Some(LinkState::BySender) {
                self.step(Subject::Device(ifindex), Op::AttachBySender { ifindex });
            }
        }
    }
}
