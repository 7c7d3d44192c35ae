//! One pod: its slot, its devices, its cgroup.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::limits::MAX_WAYS;
use egress_common::maps::{
    DENY_DROP, DENY_REJECT, Endpoint, FLAG_COVERED, FLAG_HOST_NETWORK, FLAG_NODE_ACCESS,
    MODE_AUDIT, MODE_ENFORCE, MODE_OFF, PodInfo,
};

use super::super::op::{Op, Step, Subject};
use super::Planner;
use super::members::{Member, PodKind};
use crate::api::lockdown::OnDeny;
use crate::compile::{DesiredPod, Hold};
use crate::datapath::maps::fill;
use crate::datapath::{Direction, LinkState};

impl Planner<'_> {
    pub(super) fn member(&mut self, member: &Member<'_>, owners: &BTreeMap<u32, u32>) {
        let subject = Subject::Pod(member.uid.clone());
        let known = self.observed.slots.get(&member.slot);
        let since_ns = self.since(member);
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
        let ways = u32::try_from(own.len()).unwrap_or(u32::MAX);
        let host = base.flags & FLAG_HOST_NETWORK != 0;
        let covered = member.held()
            && !host
            && !own.is_empty()
            && own.len() == devices.len()
            && ways <= MAX_WAYS
            && member.sighting.uncoverable.is_none();
        let wanted = Endpoint {
            flags: base.flags | if covered { FLAG_COVERED } else { 0 },
            ways: if covered { ways } else { 0 },
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
        let unhooked = own.iter().any(|ifindex| {
            let ingress = self.observed.link(*ifindex, Direction::Ingress);
            !ingress.is_some_and(LinkState::stands)
        });
        if let Some((cgroup, Some(entry))) = present
            && unhooked
            && entry.flags & FLAG_COVERED != 0
        {
            self.plan.steps.push(set(cgroup, base));
            present = Some((cgroup, Some(base)));
        }
        self.turns(member, &own, present, &base);
        let mut attaches = false;
        for ifindex in &own {
            let flags = self.behind_fence(&subject, *ifindex, &base);
            let endpoint = Endpoint { flags, ..base };
            attaches |= self.device(&subject, *ifindex, endpoint, member);
        }
        if let Some((cgroup, entry)) = present {
            self.cgroups.insert(cgroup);
            if covered && self.observed.ways.get(&member.slot) != Some(&own) {
                let slot = member.slot;
                self.close.push(Step {
                    subject: subject.clone(),
                    policy,
                    op: Op::SetWays { slot, devices: own },
                });
                attaches = true;
            }
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

    /// Takes note of a pod that is held by another policy from now on, or is held at last. What a pod in the
    /// node's network sends is judged after the NAT.
    fn turns(
        &mut self,
        member: &Member<'_>,
        own: &[u32],
        present: Option<(u64, Option<Endpoint>)>,
        base: &Endpoint,
    ) {
        let is_host = |entry: &Endpoint| entry.flags & FLAG_HOST_NETWORK != 0;
        let PodKind::Desired(pod) = &member.pod else {
            return;
        };
        let (Hold::Enforce, Some(digest), false) = (pod.hold, pod.policy, is_host(base)) else {
            return;
        };
        let cgroup = present.map(|(_, entry)| entry);
        let devices = own.iter().map(|ifindex| self.observed.devices.get(ifindex));
        let mut entries = devices.chain(cgroup.iter().map(Option::as_ref));
        let same = |entry: &Endpoint| (entry.mode, entry.policy) == (base.mode, base.policy);
        let was_host = cgroup.flatten().is_some_and(|entry| is_host(&entry));
        if was_host || !entries.all(|entry| entry.is_some_and(same)) {
            self.turned.extend(pod.addresses().map(|ip| (ip, digest)));
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
                Some(LinkState::OldProgram | LinkState::BySender) => {
                    Op::Swap { ifindex, direction }
                }
                _ => Op::Attach { ifindex, direction },
            };
            attaches |= matches!(op, Op::Attach { .. });
            if direction == Direction::Egress && matches!(op, Op::Attach { .. }) {
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

    /// When the pod got its slot: flows that are older are another's. What its entry says counts, too:
    /// somebody may have removed the rest.
    fn since(&self, member: &Member<'_>) -> u64 {
        let known = self.observed.slots.get(&member.slot);
        let known = known.map(|info| info.since_ns);
        let entry = || {
            let cgroup = member.sighting.cgroup?;
            let entry = self.observed.cgroups.get(&cgroup)?;
            (entry.slot == member.slot).then_some(entry.since_ns)
        };
        known.or_else(entry).unwrap_or(self.settings.now_ns)
    }

    fn endpoint(&self, pod: &DesiredPod, slot: u32, since_ns: u64) -> Endpoint {
        let sighting = self.sightings.pods.get(&pod.uid);
        let in_node = pod.host_network || sighting.is_some_and(|s| s.host_network);
        let held = pod.hold != Hold::Off;
        let near = pod.policy.filter(|_| held);
        let near = near.and_then(|digest| self.near.get(&digest).copied());
        let near = near.unwrap_or_default();
        let number = pod.policy.and_then(|digest| self.numbers.get(&digest));
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
            flags: if in_node { FLAG_HOST_NETWORK } else { 0 }
                | if held && !pod.node_access.is_empty() {
                    FLAG_NODE_ACCESS
                } else {
                    0
                },
            zero: 0,
            v6_be: pod.v6.map_or([0; 16], |ip| ip.octets()),
            since_ns,
            exact_networks: near.exact_networks,
            near4: near.near4,
            near6: near.near6,
            ways: 0,
        }
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
