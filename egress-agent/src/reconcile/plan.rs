//! From desired and observed state to the steps between them. Pure.
//!
//! Order of the steps, such that a crash between any two leaks nothing and breaks nothing:
//! 1. settings; 2. policies that are new: announced as incomplete, written, completed;
//! 3. of each pod: its slot, its devices' entries, the egress hook, which learns what is opened
//!    from outside from then on; 4. flows that stand are taken over; 5. the ingress hook, which
//!    drops, and the cgroup's entry, which says that the hooks stand;
//! 6. pods that are gone: cgroup entry (the gate closes), hooks, device entries, slot;
//! 7. the hooks on kubepods; 8. policies that nobody named before this plan are collected.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::limits::MAX_SLOTS;
use egress_common::maps::{
    Config, DENY_DROP, DENY_REJECT, Endpoint, FLAG_COVERED, FLAG_HOST_NETWORK, MODE_AUDIT,
    MODE_ENFORCE, MODE_OFF, PodInfo, PolicyInfo,
};

use super::near::Near;
use super::op::{Op, Plan, Step, Subject};
use crate::api::lockdown::OnDeny;
use crate::compile::{DesiredPod, DesiredState, Digest, Hold, Policy};
use crate::datapath::maps::{fill, text};
use crate::datapath::{CgroupHook, Direction, LinkState, Observed};
use crate::node::{Sighting, Sightings};

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
        near: desired
            .policies
            .iter()
            .map(|(digest, policy)| (*digest, Near::of(policy)))
            .collect(),
        adopt: Vec::new(),
        close: Vec::new(),
        cgroups: BTreeSet::new(),
        devices: BTreeSet::new(),
    };
    planner.config();
    planner.policies(desired);
    let members = planner.members(desired);
    let owners = owners(&members);
    for member in members.values() {
        planner.member(member, &owners);
    }
    let (adopt, close) = (
        std::mem::take(&mut planner.adopt),
        std::mem::take(&mut planner.close),
    );
    planner.plan.steps.extend(adopt);
    planner.plan.steps.extend(close);
    planner.gone(&members);
    planner.kubepods();
    planner.collect();
    planner.plan
}

/// A pod that has a slot, or gets one.
struct Member<'a> {
    uid: String,
    slot: u32,
    pod: PodKind<'a>,
    sighting: Sighting,
    /// Interface indices: those sighted, and those that were the pod's and live on.
    sticky: BTreeSet<u32>,
}

enum PodKind<'a> {
    Desired(&'a DesiredPod),
    /// A held pod whose object is gone while its processes run: it stays held as it was.
    Remains(Endpoint),
}

impl Member<'_> {
    fn held(&self) -> bool {
        match &self.pod {
            PodKind::Desired(pod) => pod.hold != Hold::Off,
            PodKind::Remains(_) => true,
        }
    }

    fn devices(&self) -> BTreeSet<u32> {
        let sighted = self.sighting.devices.iter().map(|device| device.ifindex);
        sighted.chain(self.sticky.iter().copied()).collect()
    }
}

/// Which held pod a device is of: the one that had it first.
fn owners(members: &BTreeMap<String, Member<'_>>) -> BTreeMap<u32, u32> {
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
    /// What is somebody's.
    cgroups: BTreeSet<u64>,
    devices: BTreeSet<u32>,
}

impl<'a> Planner<'a> {
    fn step(&mut self, subject: Subject, op: Op) {
        self.plan.steps.push(Step {
            subject,
            policy: None,
            op,
        });
    }

    fn config(&mut self) {
        if self.observed.config != Some(self.settings.config) {
            self.step(Subject::Node, Op::SetConfig(self.settings.config));
        }
    }

    fn policies(&mut self, desired: &DesiredState) {
        let used = self.observed.used_policies();
        let mut next = self.observed.policies.keys().max().copied().unwrap_or(0);
        // The one that is in use goes before an equal one that is not.
        for (number, info) in &self.observed.policies {
            if info.complete == 1 && desired.policies.contains_key(&info.digest) {
                let best = self.numbers.entry(info.digest).or_insert(*number);
                if used.contains(number) && !used.contains(best) {
                    *best = *number;
                }
            }
        }
        for (digest, policy) in &desired.policies {
            if self.numbers.contains_key(digest) {
                continue;
            }
            // One that was cut short is written again: the same content, so nothing is left over.
            let begun = self
                .observed
                .policies
                .iter()
                .find(|(number, info)| info.digest == *digest && !used.contains(number))
                .map(|(number, _)| *number);
            let number = begun.unwrap_or_else(|| {
                next = self.free_number(next);
                next
            });
            self.numbers.insert(*digest, number);
            let info = policy_info(digest, policy, 1);
            let begin = PolicyInfo {
                complete: 0,
                ..info
            };
            let ops = [
                Op::SetPolicyInfo {
                    number,
                    info: begin,
                },
                Op::WritePolicy {
                    number,
                    digest: *digest,
                },
                Op::SetPolicyInfo { number, info },
            ];
            for op in ops {
                self.step(Subject::Policy(number), op);
            }
        }
    }

    /// The number after `last` that no policy has; 0 is "none".
    fn free_number(&self, last: u32) -> u32 {
        let taken = |number: u32| {
            number == 0
                || self.observed.policies.contains_key(&number)
                || self.numbers.values().any(|taken| *taken == number)
        };
        let mut number = last.wrapping_add(1);
        while taken(number) {
            number = number.wrapping_add(1);
        }
        number
    }

    /// Pods that have a slot already, and those that get one now.
    fn members<'d>(&mut self, desired: &'d DesiredState) -> BTreeMap<String, Member<'d>> {
        let mut by_uid: BTreeMap<[u8; 36], u32> = BTreeMap::new();
        for (slot, info) in &self.observed.slots {
            by_uid.entry(info.uid).or_insert(*slot);
        }
        let mut members = BTreeMap::new();
        for (uid, pod) in &desired.pods {
            let sighting = self.sightings.get(uid).cloned().unwrap_or_default();
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
            let Some(sighting) = self.sightings.get(&uid) else {
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
        let mut free = (1..MAX_SLOTS).filter(|slot| !self.observed.slots.contains_key(slot));
        for (uid, pod) in &desired.pods {
            if members.contains_key(uid) {
                continue;
            }
            let sighting = self.sightings.get(uid).cloned().unwrap_or_default();
            if sighting.cgroup.is_none() && sighting.devices.is_empty() {
                // Not started yet; the gate holds it until it is seen.
                continue;
            }
            let Some(slot) = free.next() else {
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
                flags: endpoint.flags & FLAG_HOST_NETWORK,
                ..*endpoint
            })
    }

    fn member(&mut self, member: &Member<'_>, owners: &BTreeMap<u32, u32>) {
        let subject = Subject::Pod(member.uid.clone());
        let known = self.observed.slots.get(&member.slot);
        let since_ns = known.map_or(self.settings.now_ns, |info| info.since_ns);
        let base = match &member.pod {
            PodKind::Desired(pod) => self.endpoint(pod, member.slot, since_ns),
            PodKind::Remains(endpoint) => *endpoint,
        };
        let policy = (base.policy != 0).then_some(base.policy);
        if let PodKind::Desired(pod) = &member.pod {
            // A cgroup that is gone for a moment is no reason to write.
            let cgroup = member.sighting.cgroup.or(known.map(|info| info.cgroup));
            let info = pod_info(pod, cgroup.unwrap_or(0), since_ns);
            if known != Some(&info) {
                if known.is_none() {
                    self.step(subject.clone(), Op::ZeroCounters { slot: member.slot });
                }
                let info = Box::new(info);
                let slot = member.slot;
                self.plan.steps.push(Step {
                    subject: subject.clone(),
                    policy,
                    op: Op::SetPodInfo { slot, info },
                });
            }
        }
        let devices = if member.held() {
            member.devices()
        } else {
            BTreeSet::new()
        };
        let own: Vec<u32> = devices
            .iter()
            .copied()
            .filter(|ifindex| owners.get(ifindex) == Some(&member.slot))
            .collect();
        let host = base.flags & FLAG_HOST_NETWORK != 0;
        let covered = member.held()
            && !host
            && !own.is_empty()
            && own.len() == devices.len()
            && member.sighting.uncoverable.is_none();
        let wanted = Endpoint {
            flags: base.flags | if covered { FLAG_COVERED } else { 0 },
            ..base
        };
        let set = |cgroup, endpoint| Step {
            subject: subject.clone(),
            policy,
            op: Op::SetCgroup { cgroup, endpoint },
        };
        // A pod that was not seen this time keeps the entry it has, and keeps it up to date.
        let last = known.map(|info| info.cgroup);
        let last = last.filter(|cgroup| self.observed.cgroups.contains_key(cgroup));
        let mut present = member.sighting.cgroup.or(last).map(|cgroup| {
            let entry = self.observed.cgroups.get(&cgroup);
            (cgroup, entry.copied())
        });
        // A way out without its hook: the cgroup hook decides until it stands.
        let bare = own.iter().any(|ifindex| {
            let ingress = self.observed.link(*ifindex, Direction::Ingress);
            !ingress.is_some_and(LinkState::stands)
        });
        if let Some((cgroup, Some(entry))) = present
            && bare
            && entry.flags & FLAG_COVERED != 0
        {
            self.plan.steps.push(set(cgroup, base));
            present = Some((cgroup, Some(base)));
        }
        let mut attaches = false;
        for ifindex in &own {
            let endpoint = Endpoint { flags: 0, ..base };
            attaches |= self.device(&subject, *ifindex, endpoint, member);
        }
        if let Some((cgroup, entry)) = present {
            self.cgroups.insert(cgroup);
            if attaches {
                self.plan
                    .uncovered
                    .insert(member.uid.clone(), (cgroup, base));
            }
            if entry != Some(wanted) {
                self.close.push(set(cgroup, wanted));
            }
        }
    }

    /// Entry and hooks of one device; whether hooks are attached.
    fn device(
        &mut self,
        subject: &Subject,
        ifindex: u32,
        endpoint: Endpoint,
        member: &Member<'_>,
    ) -> bool {
        self.devices.insert(ifindex);
        let policy = (endpoint.policy != 0).then_some(endpoint.policy);
        let step = |op| Step {
            subject: subject.clone(),
            policy,
            op,
        };
        if self.observed.devices.get(&ifindex) != Some(&endpoint) {
            self.plan
                .steps
                .push(step(Op::SetDevice { ifindex, endpoint }));
        }
        let mut attaches = false;
        for direction in [Direction::Egress, Direction::Ingress] {
            let op = match self.observed.link(ifindex, direction) {
                Some(LinkState::Good) => continue,
                Some(LinkState::OldProgram) => Op::Swap { ifindex, direction },
                _ => Op::Attach { ifindex, direction },
            };
            attaches |= matches!(op, Op::Attach { .. });
            if direction == Direction::Egress {
                self.plan.steps.push(step(op));
            } else {
                self.close.push(step(op));
            }
        }
        // Also when the agent died between this and the hook that drops.
        let ingress = self.observed.link(ifindex, Direction::Ingress);
        if !ingress.is_some_and(LinkState::stands) {
            let (v4, v6) = match &member.pod {
                PodKind::Desired(pod) => (pod.v4, pod.v6),
                PodKind::Remains(_) => (None, None),
            };
            let slot = member.slot;
            self.adopt.push(step(Op::AdoptFlows { slot, v4, v6 }));
        }
        attaches
    }

    fn endpoint(&self, pod: &DesiredPod, slot: u32, since_ns: u64) -> Endpoint {
        let sighting = self.sightings.get(&pod.uid);
        let in_node = pod.host_network || sighting.is_some_and(|s| s.host_network);
        let held = pod.hold != Hold::Off;
        let number = pod.policy.and_then(|digest| self.numbers.get(&digest));
        // Without a number the policy is not there, and neither is what is near.
        let near = pod
            .policy
            .filter(|_| held && number.is_some())
            .and_then(|digest| self.near.get(&digest).copied())
            .unwrap_or_default();
        Endpoint {
            slot,
            policy: number.copied().filter(|_| held).unwrap_or(0),
            v4_be: pod.v4.map_or([0; 4], |ip| ip.octets()),
            mode: match pod.hold {
                Hold::Off => MODE_OFF,
                Hold::Audit => MODE_AUDIT,
                Hold::Enforce => MODE_ENFORCE,
            },
            on_deny: match pod.on_deny {
                OnDeny::Reject if held => DENY_REJECT,
                _ => DENY_DROP,
            },
            flags: if in_node { FLAG_HOST_NETWORK } else { 0 },
            zero: 0,
            v6_be: pod.v6.map_or([0; 16], |ip| ip.octets()),
            since_ns,
            exact_networks: near.exact_networks,
            near4: near.near4,
            near6: near.near6,
            pad: [0; 4],
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
        for ifindex in hooked {
            if self.devices.contains(&ifindex) {
                continue;
            }
            let entry = observed.devices.get(&ifindex);
            let subject = subject(
                entry.map_or(0, |endpoint| endpoint.slot),
                Subject::Device(ifindex),
            );
            for direction in Direction::BOTH {
                if observed.link(ifindex, direction).is_some() {
                    self.step(subject.clone(), Op::Detach { ifindex, direction });
                }
            }
            if entry.is_some() {
                self.step(subject, Op::RemoveDevice { ifindex });
            }
        }
        for (slot, info) in &observed.slots {
            if !slots.contains_key(slot) {
                let subject = Subject::Pod(text(&info.uid));
                self.step(subject, Op::RemovePodInfo { slot: *slot });
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

    /// Policies that nobody named when we looked, and nobody is about to name.
    fn collect(&mut self) {
        let used = self.observed.used_policies();
        let wanted: BTreeSet<u32> = self.numbers.values().copied().collect();
        for (number, info) in &self.observed.policies {
            if used.contains(number) || wanted.contains(number) {
                continue;
            }
            let number = *number;
            let subject = Subject::Policy(number);
            if info.complete != 0 {
                let info = PolicyInfo {
                    complete: 0,
                    ..*info
                };
                self.step(subject.clone(), Op::SetPolicyInfo { number, info });
            }
            self.step(subject.clone(), Op::ClearPolicy { number });
            self.step(subject, Op::RemovePolicyInfo { number });
        }
    }
}

fn policy_info(digest: &Digest, policy: &Policy, complete: u32) -> PolicyInfo {
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    PolicyInfo {
        digest: *digest,
        entries: [
            count(policy.exact4.len()),
            count(policy.exact6.len()),
            count(policy.prefix4.len()),
            count(policy.prefix6.len()),
        ],
        rules: count(policy.rules.len()),
        complete,
    }
}

fn pod_info(pod: &DesiredPod, cgroup: u64, since_ns: u64) -> PodInfo {
    PodInfo {
        uid: fill(&pod.uid),
        namespace: fill(&pod.namespace),
        name: fill(&pod.name),
        pad: [0; 4],
        cgroup,
        since_ns,
    }
}
