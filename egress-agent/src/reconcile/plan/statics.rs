//! Static pods that no object tells of (yet).
//!
//! Their mirrors come through the API server, which may be such a pod itself: behind the closed gate
//! neither would ever be there. Only root on the node makes such cgroups. So they pass, until an object
//! says otherwise.

use egress_common::maps::{Endpoint, MODE_OFF};

use super::super::op::{Op, Subject};
use super::Planner;
use crate::compile::DesiredState;

impl Planner<'_> {
    /// After all members: what is a pod's stays that pod's.
    pub(super) fn statics(&mut self, desired: &DesiredState) {
        let endpoint = Endpoint::nobodys(MODE_OFF);
        for (uid, cgroup) in &self.sightings.statics {
            let cgroup = *cgroup;
            if desired.pods.contains_key(uid) || !self.cgroups.insert(cgroup) {
                continue;
            }
            if self.observed.cgroups.get(&cgroup) != Some(&endpoint) {
                self.step(Subject::Cgroup(cgroup), Op::SetCgroup { cgroup, endpoint });
            }
        }
    }
}
