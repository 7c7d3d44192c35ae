//! Which pod is covered by what.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::compile::{DesiredPod, DesiredState, Hold};
use crate::datapath::maps::text;
use crate::datapath::{CgroupHook, Direction, LinkState, Observed};
use crate::node::{Sighting, Sightings};
use egress_common::limits::MAX_WAYS;
use egress_common::maps::FLAG_COVERED;

/// Whether a pod is held by what should hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coverage {
    /// The hooks on all of its devices stand.
    Covered,
    /// It is in the node's network: the cgroup hook decides about its packets.
    HostNetwork,
    /// Its hooks stand, but it can get at its node, and so around them: it can't be held.
    NodeAccess,
    /// No lockdown selects it, or it is a gateway.
    NotHeld,
    /// It has no process yet; the gate is closed for it.
    Waiting,
    /// It should be held, and is not, or not at every way out.
    Uncovered,
}

impl Coverage {
    /// It should be held, and is not, or can't be.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Uncovered | Self::NodeAccess)
    }

    /// As it is serialised.
    pub fn name(self) -> &'static str {
        match self {
            Self::Covered => "covered",
            Self::HostNetwork => "host-network",
            Self::NodeAccess => "node-access",
            Self::NotHeld => "not-held",
            Self::Waiting => "waiting",
            Self::Uncovered => "uncovered",
        }
    }
}

/// One pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    /// `off`, `audit` or `enforce`.
    pub mode: &'static str,
    pub gateway: bool,
    pub coverage: Coverage,
    /// Why it is uncovered, or what could not be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<u64>,
    /// Number of its policy in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<u32>,
    pub lockdowns: Vec<String>,
    pub devices: Vec<DeviceStatus>,
}

/// One device of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    pub ifindex: u32,
    /// Empty where the device was not seen this time.
    pub name: String,
    /// Hook for packets from the pod.
    pub ingress: Option<LinkState>,
    /// Hook for packets to the pod.
    pub egress: Option<LinkState>,
}

/// All pods of the node and the hooks they share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// How new the declared state is.
    pub source: crate::source::Health,
    /// Hooks on kubepods; one that is not here is not attached.
    pub cgroup_hooks: BTreeMap<CgroupHook, LinkState>,
    pub pods: Vec<PodStatus>,
}

impl NodeStatus {
    /// Pods that should be held and are not, or can't be.
    pub fn open(&self) -> impl Iterator<Item = &PodStatus> {
        self.pods.iter().filter(|pod| pod.coverage.is_open())
    }

    /// Those of them that may be held yet.
    pub fn uncovered(&self) -> impl Iterator<Item = &PodStatus> {
        let pods = self.pods.iter();
        pods.filter(|pod| pod.coverage == Coverage::Uncovered)
    }
}

/// What covers each desired pod; `errors` are those of the last reconciliation, by UID.
/// Sorted by namespace and name.
pub fn status(
    desired: &DesiredState,
    sightings: &Sightings,
    observed: &Observed,
    errors: &BTreeMap<String, String>,
) -> NodeStatus {
    let slots: BTreeMap<String, u32> = observed
        .slots
        .iter()
        .map(|(slot, info)| (text(&info.uid), *slot))
        .collect();
    let nothing = Sighting::default();
    let mut pods: Vec<PodStatus> = desired
        .pods
        .values()
        .map(|pod| {
            let sighting = sightings.pods.get(&pod.uid).unwrap_or(&nothing);
            let slot = slots.get(&pod.uid).copied();
            pod_status(pod, sighting, slot, observed, errors.get(&pod.uid))
        })
        .collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    NodeStatus {
        source: crate::source::Health::default(),
        cgroup_hooks: observed.cgroup_links.clone(),
        pods,
    }
}

fn pod_status(
    pod: &DesiredPod,
    sighting: &Sighting,
    slot: Option<u32>,
    observed: &Observed,
    error: Option<&String>,
) -> PodStatus {
    let own = |ifindex: &u32| {
        let entry = observed.devices.get(ifindex);
        entry.is_some_and(|endpoint| Some(endpoint.slot) == slot)
    };
    let mut names: BTreeMap<u32, String> = observed
        .devices
        .keys()
        .filter(|ifindex| own(ifindex))
        .map(|ifindex| (*ifindex, String::new()))
        .collect();
    names.extend(
        sighting
            .devices
            .iter()
            .map(|device| (device.ifindex, device.name.clone())),
    );
    let foreign = names.keys().find(|ifindex| !own(ifindex)).copied();
    let devices: Vec<DeviceStatus> = names
        .into_iter()
        .map(|(ifindex, name)| DeviceStatus {
            ifindex,
            name,
            ingress: observed.link(ifindex, Direction::Ingress),
            egress: observed.link(ifindex, Direction::Egress),
        })
        .collect();
    let entry = sighting.cgroup.and_then(|id| observed.cgroups.get(&id));
    let (coverage, reason) = match coverage(pod, sighting, &devices, foreign, entry, observed) {
        (Coverage::Covered | Coverage::HostNetwork, _) if !pod.node_access.is_empty() => {
            let ways = pod.node_access.join("; ");
            let reason = format!("it can get around its hooks by its access to the node: {ways}");
            (Coverage::NodeAccess, Some(reason))
        }
        other => other,
    };
    PodStatus {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        service_account: pod.service_account.clone(),
        mode: match pod.hold {
            Hold::Off => "off",
            Hold::Audit => "audit",
            Hold::Enforce => "enforce",
        },
        gateway: pod.gateway,
        // What could not be done for a held pod leaves it open until shown otherwise.
        coverage: if error.is_some() && pod.hold != Hold::Off {
            Coverage::Uncovered
        } else {
            coverage
        },
        reason: error.cloned().or(reason),
        slot,
        cgroup: sighting.cgroup,
        policy: entry
            .map(|endpoint| endpoint.policy)
            .filter(|policy| *policy != 0),
        lockdowns: pod.lockdowns.clone(),
        devices,
    }
}

fn coverage(
    pod: &DesiredPod,
    sighting: &Sighting,
    devices: &[DeviceStatus],
    foreign: Option<u32>,
    entry: Option<&egress_common::maps::Endpoint>,
    observed: &Observed,
) -> (Coverage, Option<String>) {
    let uncovered = |reason: &str| (Coverage::Uncovered, Some(reason.to_owned()));
    if pod.hold == Hold::Off {
        return (Coverage::NotHeld, None);
    }
    if !sighting.running && devices.is_empty() {
        return (Coverage::Waiting, None);
    }
    if let Some(reason) = &sighting.uncoverable {
        return uncovered(reason);
    }
    let gate = CgroupHook::Egress;
    let gate_stands = observed
        .cgroup_links
        .get(&gate)
        .is_some_and(|state| state.stands());
    if pod.host_network {
        return if !gate_stands {
            uncovered("the cgroup hook does not stand")
        } else if entry.is_none() {
            uncovered("its cgroup has no entry")
        } else {
            (Coverage::HostNetwork, None)
        };
    }
    // Its cgroup's entry holds it meanwhile.
    if sighting.arriving {
        return (Coverage::Waiting, None);
    }
    if sighting.host_network {
        return uncovered("a process of it is in the node's network namespace");
    }
    if devices.is_empty() {
        return uncovered("no device of it was found on the node");
    }
    if let Some(ifindex) = foreign {
        return uncovered(&format!("device {ifindex} is held for another pod"));
    }
    if devices.len() > MAX_WAYS as usize {
        return uncovered(&format!("more than {MAX_WAYS} devices lead to it"));
    }
    let bare = devices
        .iter()
        .find(|device| !observed.is_covered(device.ifindex));
    if let Some(device) = bare {
        return uncovered(&format!(
            "a hook on device {} does not stand",
            device.ifindex
        ));
    }
    if entry.is_some_and(|endpoint| endpoint.flags & FLAG_COVERED == 0) {
        return uncovered("its cgroup is not marked as covered yet");
    }
    (Coverage::Covered, None)
}

#[cfg(test)]
mod tests {
    use egress_common::maps::{Endpoint, FLAG_HOST_NETWORK, MODE_ENFORCE};

    use super::*;
    use crate::api::lockdown::OnDeny;

    fn held() -> DesiredPod {
        DesiredPod {
            uid: "uid".into(),
            namespace: "ns".into(),
            name: "pod".into(),
            service_account: "default".into(),
            v4: None,
            v6: None,
            host_network: false,
            node_access: vec![],
            gateway: false,
            hold: Hold::Enforce,
            on_deny: OnDeny::Drop,
            policy: None,
            lockdowns: vec![],
        }
    }

    #[test]
    fn who_can_get_at_the_node_is_told_though_its_hooks_stand() {
        let endpoint = Endpoint {
            slot: 1,
            flags: FLAG_HOST_NETWORK,
            ..Endpoint::nobodys(MODE_ENFORCE)
        };
        let mut observed = Observed::default();
        observed
            .cgroup_links
            .insert(CgroupHook::Egress, LinkState::Good);
        observed.cgroups.insert(7, endpoint);
        let sighting = Sighting {
            running: true,
            cgroup: Some(7),
            ..Sighting::default()
        };
        let mut pod = DesiredPod {
            host_network: true,
            ..held()
        };
        let told = |pod: &DesiredPod| pod_status(pod, &sighting, Some(1), &observed, None);
        assert_eq!(told(&pod).coverage, Coverage::HostNetwork);
        pod.node_access = vec!["container app: securityContext.privileged".into()];
        let status = told(&pod);
        assert_eq!(status.coverage, Coverage::NodeAccess);
        assert!(status.reason.is_some_and(|it| it.contains("privileged")));
        // Nothing is expected of hooks that nobody needs, and a missing one is told first.
        observed.cgroup_links.clear();
        let told = |pod: &DesiredPod| pod_status(pod, &sighting, Some(1), &observed, None);
        assert_eq!(told(&pod).coverage, Coverage::Uncovered);
        pod.hold = Hold::Off;
        assert_eq!(told(&pod).coverage, Coverage::NotHeld);
    }

    #[test]
    fn a_pod_whose_first_process_is_on_its_way_is_waited_for() {
        let pod = held();
        let mut sighting = Sighting {
            running: true,
            host_network: true,
            arriving: true,
            ..Sighting::default()
        };
        let observed = Observed::default();
        let told = coverage(&pod, &sighting, &[], None, None, &observed);
        assert_eq!(told, (Coverage::Waiting, None));
        sighting.arriving = false;
        let told = coverage(&pod, &sighting, &[], None, None, &observed);
        assert_eq!(told.0, Coverage::Uncovered);
    }
}
