//! Pods that have a slot or get one, and whose devices are whose.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::limits::MAX_SLOTS;
use egress_common::maps::{Endpoint, FLAG_HOST_NETWORK, FLAG_NODE_ACCESS, MODE_OFF};

use super::Planner;
use crate::compile::{DesiredPod, DesiredState, Hold};
use crate::datapath::maps::{fill, text};
use crate::node::Sighting;

/// A pod that has a slot, or gets one.
pub(super) struct Member<'a> {
    pub(super) uid: String,
    pub(super) slot: u32,
    pub(super) pod: PodKind<'a>,
    pub(super) sighting: Sighting,
    /// Interface indices: those sighted, and those that were the pod's and live on.
    pub(super) sticky: BTreeSet<u32>,
}

pub(super) enum PodKind<'a> {
    Desired(&'a DesiredPod),
    /// A held pod whose object is gone while its processes run: it stays held as it was.
    Remains(Endpoint),
}

impl Member<'_> {
    pub(super) fn held(&self) -> bool {
        match &self.pod {
            PodKind::Desired(pod) => pod.hold != Hold::Off,
            PodKind::Remains(_) => true,
        }
    }

    pub(super) fn devices(&self) -> BTreeSet<u32> {
        let sighted = self.sighting.devices.iter().map(|device| device.ifindex);
        sighted.chain(self.sticky.iter().copied()).collect()
    }
}

/// Which held pod a device is of: the one that had it first.
pub(super) fn owners(members: &BTreeMap<String, Member<'_>>) -> BTreeMap<u32, u32> {
    let mut owners = BTreeMap::new();
    let held = || members.values().filter(|member| member.held());
    for member in held() {
        owners.extend(member.sticky.iter().map(|ifindex| (*ifindex, member.slot)));
    }
    for member in held() {
        for ifindex in member.devices() {
            owners.entry(ifindex).or_insert(member.slot);
        }
    }
    owners
}

impl Planner<'_> {
    /// Pods that have a slot already, and those that get one now.
    pub(super) fn members<'d>(
        &mut self,
        desired: &'d DesiredState,
    ) -> BTreeMap<String, Member<'d>> {
        let mut by_uid: BTreeMap<[u8; 36], u32> = BTreeMap::new();
        for (slot, info) in &self.observed.slots {
            by_uid.entry(info.uid).or_insert(*slot);
        }
        let mut members = BTreeMap::new();
        for (uid, pod) in &desired.pods {
            let sighting = self.sightings.pods.get(uid).cloned().unwrap_or_default();
            if let Some(slot) = by_uid.get(&fill::<36>(uid)) {
                let sticky = self.sticky(*slot);
                let member = Member {
                    uid: uid.clone(),
                    slot: *slot,
                    pod: PodKind::Desired(pod),
                    sighting,
                    sticky,
                };
                members.insert(uid.clone(), member);
            }
        }
        for (slot, info) in &self.observed.slots {
            let uid = text(&info.uid);
            if members.contains_key(&uid) || desired.pods.contains_key(&uid) {
                continue;
            }
            let Some(sighting) = self.sightings.pods.get(&uid) else {
                continue;
            };
            if let (Some(_), Some(endpoint)) = (sighting.cgroup, self.held_as(*slot)) {
                let sticky = self.sticky(*slot);
                let member = Member {
                    uid: uid.clone(),
                    slot: *slot,
                    pod: PodKind::Remains(endpoint),
                    sighting: sighting.clone(),
                    sticky,
                };
                members.insert(uid, member);
            }
        }
        let named = self.named_slots();
        let taken = |slot: &u32| self.observed.slots.contains_key(slot) || named.contains(slot);
        let mut free = (1..MAX_SLOTS).filter(|slot| !taken(slot));
        for (uid, pod) in &desired.pods {
            if members.contains_key(uid) {
                continue;
            }
            let sighting = self.sightings.pods.get(uid).cloned().unwrap_or_default();
            if sighting.cgroup.is_none() && sighting.devices.is_empty() {
                // Not started yet; the gate holds it until it is seen.
                continue;
            }
            // Its own, if somebody has removed what is known of it: its flows are kept by it.
            let own = sighting
                .cgroup
                .and_then(|cgroup| self.observed.cgroups.get(&cgroup));
            let own = own.map(|endpoint| endpoint.slot);
            // 0 is nobody's: of a pod that was let through before it was known.
            let own = own.filter(|slot| *slot != 0 && !self.observed.slots.contains_key(slot));
            let Some(slot) = own.or_else(|| free.next()) else {
                let reason = format!("no slot is free: a node takes {} pods", MAX_SLOTS - 1);
                self.plan.refused.insert(uid.clone(), reason);
                continue;
            };
            let member = Member {
                uid: uid.clone(),
                slot,
                pod: PodKind::Desired(pod),
                sighting,
                sticky: BTreeSet::new(),
            };
            members.insert(uid.clone(), member);
        }
        members
    }

    /// Slots that entries name, whether or not anything else is known of them.
    fn named_slots(&self) -> BTreeSet<u32> {
        let entries = self.observed.cgroups.values();
        let entries = entries.chain(self.observed.devices.values());
        entries.map(|endpoint| endpoint.slot).collect()
    }

    /// Devices that are the slot's and live: a pod may have moved the other end away.
    fn sticky(&self, slot: u32) -> BTreeSet<u32> {
        let own = |endpoint: &Endpoint| endpoint.slot == slot;
        let devices = self.observed.devices.iter();
        devices
            .filter(|(ifindex, endpoint)| own(endpoint) && self.observed.is_hooked(**ifindex))
            .map(|(ifindex, _)| *ifindex)
            .collect()
    }

    /// How a slot's pod is held now; none if it is not.
    fn held_as(&self, slot: u32) -> Option<Endpoint> {
        let devices = self.observed.devices.values();
        devices
            .chain(self.observed.cgroups.values())
            .find(|endpoint| endpoint.slot == slot && endpoint.mode != MODE_OFF)
            .map(|endpoint| Endpoint {
                flags: endpoint.flags & (FLAG_HOST_NETWORK | FLAG_NODE_ACCESS),
                ways: 0,
                ..*endpoint
            })
    }
}
