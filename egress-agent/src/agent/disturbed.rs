//! What somebody else does to the kernel's state: noticed, told, and put back by the next pass.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use egress_common::maps::name;

use super::core::Core;
use super::status::{Notice, Notices, Regarding};
use super::telling::notice;
use crate::datapath::{CgroupHook, Direction, Kernel, LinkState, Observed};
use crate::reconcile::{Executor as _, PodStatus};
use crate::telemetry::Metrics;

/// Something that the last pass left otherwise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Disturbance {
    /// Another program has come before ours.
    Displaced(u32, Direction),
    /// The hook is gone from a device that is still there.
    Device(u32, Direction),
    Cgroup(CgroupHook),
    /// Entries of this map are gone or others than they were.
    Entries(&'static str),
    /// The fence is not as it was, or not there.
    Fence,
    /// The same of the gate for devices, which no pass puts back but who keeps it.
    Gate,
}

impl Disturbance {
    fn kind(&self) -> &'static str {
        match self {
            Self::Displaced(..) => "displaced",
            Self::Device(..) => "device-hook",
            Self::Cgroup(_) => "cgroup-hook",
            Self::Entries(_) => "entries",
            Self::Fence => "fence",
            Self::Gate => "gate",
        }
    }

    /// In the log.
    fn event(&self) -> &'static str {
        match self {
            Self::Displaced(..) => "hook_displaced",
            Self::Device(..) | Self::Cgroup(_) => "hook_lost",
            Self::Entries(_) => "entries_changed",
            Self::Fence => "fence_changed",
            Self::Gate => "gate_changed",
        }
    }

    /// In Events.
    fn reason(&self) -> &'static str {
        match self {
            Self::Displaced(..) => "HookDisplaced",
            Self::Device(..) | Self::Cgroup(_) => "HookLost",
            Self::Entries(_) => "EntriesChanged",
            Self::Fence => "FenceChanged",
            Self::Gate => "GateChanged",
        }
    }

    /// None if it is the node's.
    fn device(&self) -> Option<u32> {
        match self {
            Self::Displaced(ifindex, _) | Self::Device(ifindex, _) => Some(*ifindex),
            Self::Cgroup(_) | Self::Entries(_) | Self::Fence | Self::Gate => None,
        }
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Displaced(ifindex, direction) => write!(
                f,
                "another program came first on device {ifindex} ({}); Sallyport's hook goes \
                 before it again",
                direction.name()
            ),
            Self::Device(ifindex, direction) => write!(
                f,
                "Sallyport's hook was taken off device {ifindex} ({}); it is attached again",
                direction.name()
            ),
            Self::Cgroup(hook) => write!(
                f,
                "Sallyport's hook {} was taken off kubepods; it is attached again",
                hook.name()
            ),
            Self::Entries(map) => {
                write!(
                    f,
                    "somebody changed entries of {map}; they are written again"
                )
            }
            Self::Fence => f.write_str(
                "somebody changed the tables `sallyport` of nf_tables; they are set up again",
            ),
            Self::Gate => f.write_str(
                "somebody changed the tables `sallyport-gate` of nf_tables; they are set up again",
            ),
        }
    }
}

/// Tells of what others do to the kernel's state, on whatever thread it is noticed.
#[derive(Clone, Debug)]
pub struct Teller {
    node: String,
    metrics: Arc<Metrics>,
    notices: Notices,
}

impl Teller {
    /// The gate for devices is not as it was left.
    pub fn gate_changed(&self) {
        self.log(&Disturbance::Gate);
        self.tell_of_node(&Disturbance::Gate);
    }

    fn log(&self, disturbance: &Disturbance) {
        let kind = disturbance.kind();
        self.metrics.disturbed(kind);
        tracing::warn!(event = disturbance.event(), kind, "{disturbance}");
    }

    /// As an Event of the node, which kubelet's are of, too.
    fn tell_of_node(&self, disturbance: &Disturbance) {
        self.notices.tell(Notice {
            regarding: Regarding {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                namespace: "default".to_owned(),
                uid: self.node.clone(),
                name: self.node.clone(),
            },
            warning: true,
            reason: disturbance.reason(),
            action: "Hold",
            note: disturbance.to_string(),
        });
    }
}

impl Core {
    /// Whether somebody has changed what the last pass left.
    pub fn is_disturbed(&mut self) -> bool {
        let desired = &self.compiled.desired;
        let kernel = &mut self.reconciler.executor;
        let look = |kernel: &mut Kernel| {
            kernel.keep_undeclared(&self.observed, desired)?;
            kernel.observe(desired)
        };
        match look(kernel) {
            Ok(now) => {
                let disturbances = disturbances(&self.observed, &now, is_there);
                self.tell_all(&disturbances);
                // Said once, also where nothing is put back for now.
                self.observed = now;
                !disturbances.is_empty()
            }
            Err(error) => {
                tracing::error!(event = "hooks_unreadable", %error);
                false
            }
        }
    }

    /// Tells what a pass has found otherwise than the last one had left it, before the next look. Not
    /// of hooks on devices: a pass begins when a device goes, and with it go its hooks.
    pub(super) fn tell_found(&self, found: &Observed) {
        let mut disturbances = disturbances(&self.observed, found, |_| false);
        disturbances.retain(|it| !matches!(it, Disturbance::Displaced(..)));
        self.tell_all(&disturbances);
    }

    /// For who keeps something of the kernel's state beside passes.
    pub(super) fn teller(&self) -> Teller {
        Teller {
            node: self.settings.node_name.clone(),
            metrics: Arc::clone(&self.metrics),
            notices: self.board.notices(),
        }
    }

    fn tell_all(&self, disturbances: &[Disturbance]) {
        let teller = self.teller();
        for disturbance in disturbances {
            teller.log(disturbance);
            let Some(ifindex) = disturbance.device() else {
                teller.tell_of_node(disturbance);
                continue;
            };
            let has = |pod: &&PodStatus| pod.devices.iter().any(|device| device.ifindex == ifindex);
            if let Some(pod) = self.status.pods.iter().find(has) {
                let (reason, note) = (disturbance.reason(), disturbance.to_string());
                self.board.notice(notice(pod, true, reason, note));
            }
        }
    }
}

fn is_there(ifindex: u32) -> bool {
    nix::net::if_::if_indextoname(ifindex).is_ok()
}

/// What is otherwise than it was. A hook goes with its device, which is nobody's doing.
fn disturbances(
    before: &Observed,
    now: &Observed,
    is_there: impl Fn(u32) -> bool,
) -> Vec<Disturbance> {
    let mut found = Vec::new();
    for ((ifindex, direction), was) in &before.links {
        match now.link(*ifindex, *direction) {
            Some(LinkState::Displaced) if *was != LinkState::Displaced => {
                found.push(Disturbance::Displaced(*ifindex, *direction));
            }
            Some(state) if state.stands() => {}
            _ if was.stands() && is_there(*ifindex) => {
                found.push(Disturbance::Device(*ifindex, *direction));
            }
            _ => {}
        }
    }
    for (hook, was) in &before.cgroup_links {
        let stands = now.cgroup_links.get(hook).copied();
        if was.stands() && !stands.is_some_and(LinkState::stands) {
            found.push(Disturbance::Cgroup(*hook));
        }
    }
    if before.fence.is_some() && now.fence.is_some() && before.fence != now.fence {
        found.push(Disturbance::Fence);
    }
    let entries = [
        (name::CONFIG, before.config == now.config),
        (name::DEVICES, before.devices == now.devices),
        (name::CGROUPS, before.cgroups == now.cgroups),
        (name::POD_INFO, before.slots == now.slots),
        (name::POLICY_INFO, before.policies == now.policies),
    ];
    let changed = entries.into_iter().filter(|(_, same)| !same);
    let mut changed: BTreeSet<&'static str> = changed.map(|(map, _)| map).collect();
    if !now.mismarked.is_subset(&before.mismarked) {
        changed.insert(name::COVERED);
    }
    for (number, maps) in &now.damaged {
        let known = before.damaged.get(number);
        let new = |map: &&&'static str| known.is_none_or(|known| !known.contains(**map));
        changed.extend(maps.iter().filter(new));
    }
    found.extend(changed.into_iter().map(Disturbance::Entries));
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_others_do_is_told_from_what_happens() {
        let both = |state| Direction::BOTH.map(|direction| ((7, direction), state));
        let mut before = Observed {
            links: both(LinkState::Good).into(),
            cgroup_links: [(CgroupHook::Egress, LinkState::Good)].into(),
            ..Observed::default()
        };
        let found = |before: &Observed, now: &Observed| disturbances(before, now, |it| it == 7);
        assert_eq!(found(&before, &before), []);
        let mut now = before.clone();
        now.links.remove(&(7, Direction::Ingress));
        now.cgroup_links.insert(CgroupHook::Egress, LinkState::Gone);
        let lost = [
            Disturbance::Device(7, Direction::Ingress),
            Disturbance::Cgroup(CgroupHook::Egress),
        ];
        assert_eq!(found(&before, &now), lost);
        let mut now = before.clone();
        let egress = (7, Direction::Egress);
        now.links.insert(egress, LinkState::Displaced);
        let displaced = [Disturbance::Displaced(7, Direction::Egress)];
        assert_eq!(found(&before, &now), displaced);
        // Said once for as long as it can't be helped.
        before.links.insert(egress, LinkState::Displaced);
        assert_eq!(found(&before, &now), []);
        // A device that has gone took its hooks with it.
        before.links = BTreeMap::from([((9, Direction::Ingress), LinkState::Good)]);
        now.links = BTreeMap::from([((9, Direction::Ingress), LinkState::Gone)]);
        assert_eq!(found(&before, &now), []);
        now.policies.insert(
            3,
            egress_common::maps::PolicyInfo {
                digest: [0; 32],
                entries: [0; 4],
                rules: 0,
                complete: 1,
            },
        );
        assert_eq!(
            found(&before, &now),
            [Disturbance::Entries("sp_policy_info")]
        );
        let mut now = before.clone();
        now.damaged = [(1, ["sp_exact4"].into()), (3, ["sp_exact4"].into())].into();
        let entries = [Disturbance::Entries("sp_exact4")];
        assert_eq!(found(&before, &now), entries);
        // Known, and not mended yet.
        before.damaged.clone_from(&now.damaged);
        assert_eq!(found(&before, &now), []);
        before.damaged.remove(&3);
        assert_eq!(found(&before, &now), entries);
        let mut now = before.clone();
        let fence = crate::fence::State::default();
        now.fence = Some(fence.clone());
        assert_eq!(found(&before, &now), []);
        before.fence = Some(crate::fence::State {
            stands: true,
            ..fence
        });
        assert_eq!(found(&before, &now), [Disturbance::Fence]);
        let mut now = before.clone();
        now.mismarked.insert(4711);
        let marks = [Disturbance::Entries("sp_covered")];
        assert_eq!(found(&before, &now), marks);
    }
}
