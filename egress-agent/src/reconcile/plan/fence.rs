//! Which devices are behind the fence: those whose hook stands and enforces, and behind whose hook nobody
//! else's program could take the mark off again.
//!
//! A hook marks before its device is put behind the fence, and for as long as it is there: an entry says so
//! in the plan before, and no longer in the plan after. Where a hook is gone or displaced the device stays
//! behind the fence until its hook is first again: nothing comes by meanwhile.

use std::collections::BTreeSet;

use egress_common::maps::{Endpoint, FLAG_FENCED, MODE_ENFORCE};

use super::super::op::{Op, Step, Subject};
use super::Planner;
use crate::datapath::{Direction, LinkState};

impl Planner<'_> {
    /// The flags of a device's entry; lets it by the fence where it is not to be behind it any more.
    pub(super) fn behind_fence(
        &mut self,
        subject: &Subject,
        ifindex: u32,
        endpoint: &Endpoint,
    ) -> u8 {
        let observed = self.observed;
        let Some(fence) = &observed.fence else {
            // It can't be seen: what is marked stays so.
            let entry = observed.devices.get(&ifindex);
            return entry.map_or(0, |entry| entry.flags & FLAG_FENCED);
        };
        let enforced = endpoint.mode == MODE_ENFORCE;
        let is_behind = fence.anywhere.contains(&ifindex);
        let first = observed.link(ifindex, Direction::Ingress) == Some(LinkState::Good);
        if enforced && !(observed.shared.contains(&ifindex) && (first || !is_behind)) {
            self.fenced.insert(ifindex);
        } else {
            self.let_by(subject, ifindex);
        }
        if is_behind || self.fenced.contains(&ifindex) {
            FLAG_FENCED
        } else {
            0
        }
    }

    /// Before the hook of a device goes, or the device is another's.
    pub(super) fn let_by(&mut self, subject: &Subject, ifindex: u32) {
        let fence = self.observed.fence.as_ref();
        if fence.is_some_and(|fence| fence.anywhere.contains(&ifindex)) {
            self.step(subject.clone(), Op::LetBy { ifindex });
        }
    }

    /// What the plan before has made ready, and a fence that is not as it should be.
    pub(super) fn fence(&mut self) {
        let observed = self.observed;
        let Some(fence) = &observed.fence else { return };
        let is_ready = |ifindex: &u32| {
            let entry = observed.devices.get(ifindex);
            entry.is_some_and(|it| it.mode == MODE_ENFORCE && it.flags & FLAG_FENCED != 0)
                && observed.link(*ifindex, Direction::Ingress) == Some(LinkState::Good)
        };
        let ready: BTreeSet<u32> = self.fenced.iter().copied().filter(is_ready).collect();
        if self.fenced.is_empty() {
            if fence.is_there {
                self.step(Subject::Node, Op::LowerFence);
            }
        } else if fence.stands {
            for ifindex in ready {
                if !fence.devices.contains(&ifindex) {
                    self.plan.steps.push(Step {
                        subject: Subject::Device(ifindex),
                        policy: None,
                        op: Op::Fence { ifindex },
                    });
                }
            }
        } else if fence.is_there || !ready.is_empty() {
            let kept = &self.fenced & &fence.anywhere;
            let devices = &ready | &kept;
            self.step(Subject::Node, Op::RaiseFence { devices });
        }
    }
}
