//! Pods as the kernel knows them, and what covers each.

use anyhow::{Result, bail};
use egress_common::Reason;
use egress_common::maps::{
    Endpoint, FLAG_COVERED, FLAG_HOST_NETWORK, FLAG_NODE_ACCESS, MODE_OFF, PodCounters, PodInfo,
};
use serde::Serialize;

use super::cells;
use super::snapshot::Snapshot;
use crate::datapath::pinned::HookTarget;
use crate::telemetry::decode::text;

/// Whether a pod is held by what should hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coverage {
    /// The hooks on all of its devices stand.
    Covered,
    /// In the node's network: the cgroup hook decides about its packets.
    HostNetwork,
    /// Its hooks stand, but it can get at its node, and so around them.
    NodeAccess,
    /// Known, and not held.
    NotHeld,
    /// No process runs in it yet, or any more.
    Waiting,
    /// It should be held, and is not at every way out.
    Uncovered,
}

impl Coverage {
    /// It should be held, and is not, or can't be.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Uncovered | Self::NodeAccess)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Covered => "covered",
            Self::HostNetwork => "host-network",
            Self::NodeAccess => "NODE-ACCESS",
            Self::NotHeld => "not-held",
            Self::Waiting => "waiting",
            Self::Uncovered => "UNCOVERED",
        }
    }
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// 0 for a pod that only the agent knows.
    pub slot: u32,
    /// `Enforce`, `Audit`, `Off`, a number, or `unknown`.
    pub mode: String,
    pub on_deny: String,
    pub v4: String,
    pub v6: String,
    /// Number of its policy; 0 if it has none.
    pub policy: u32,
    pub coverage: Coverage,
    /// Why it is uncovered, or can get around its hooks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    pub cgroup: Cgroup,
    pub devices: Vec<Device>,
    /// The lockdowns that hold it, where a running agent says.
    pub lockdowns: Vec<String>,
    pub passed: Count,
    /// What ended with a reason that does not pass: dropped, rejected and audited.
    pub denied: Count,
    pub dropped_packets: u64,
    pub audited_packets: u64,
    pub events_lost: u64,
    /// By reason; those that never happened are left out.
    pub counters: Vec<ReasonCount>,
    /// Its policy's rules in words.
    pub rules: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cgroup {
    pub id: u64,
    /// Empty if it can't be found.
    pub path: String,
}

/// A device of a pod, and the hooks on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    pub ifindex: u32,
    /// Empty if nobody here knows it.
    pub name: String,
    /// The hook for packets from the pod: `attached`, `displaced`, `gone` or `missing`.
    pub from_pod: &'static str,
    /// The hook for packets to the pod.
    pub to_pod: &'static str,
}

impl Device {
    /// A program before the one that decides may let packets around it; one before the other only
    /// keeps it from learning what is opened from outside.
    fn is_covered(&self) -> bool {
        self.from_pod == "attached" && matches!(self.to_pod, "attached" | "displaced")
    }

    pub fn label(&self) -> String {
        let name = if self.name.is_empty() {
            format!("if{}", self.ifindex)
        } else {
            format!("{}({})", self.name, self.ifindex)
        };
        if self.from_pod == "attached" && self.to_pod == "attached" {
            name
        } else {
            format!("{name} from:{} to:{}", self.from_pod, self.to_pod)
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReasonCount {
    pub reason: &'static str,
    /// Whether packets that end so are let through in every mode.
    pub passes: bool,
    pub packets: u64,
    pub bytes: u64,
}

/// All pods, by namespace and name.
pub fn pods(snapshot: &Snapshot) -> Vec<Pod> {
    let known = snapshot.pods.iter();
    let mut pods: Vec<Pod> = known
        .map(|(slot, info)| pod(snapshot, *slot, info))
        .collect();
    // What the agent can't bring into the kernel is uncovered too.
    for told in &snapshot.agent.pods {
        if told.coverage != "uncovered" || pods.iter().any(|pod| pod.uid == told.uid) {
            continue;
        }
        pods.push(Pod {
            namespace: told.namespace.clone(),
            name: told.name.clone(),
            uid: told.uid.clone(),
            coverage: Coverage::Uncovered,
            problem: told.reason.clone(),
            lockdowns: told.lockdowns.clone(),
            ..empty()
        });
    }
    pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    pods
}

fn empty() -> Pod {
    Pod {
        namespace: String::new(),
        name: String::new(),
        uid: String::new(),
        slot: 0,
        mode: "unknown".to_owned(),
        on_deny: String::new(),
        v4: String::new(),
        v6: String::new(),
        policy: 0,
        coverage: Coverage::Waiting,
        problem: None,
        cgroup: Cgroup::default(),
        devices: Vec::new(),
        lockdowns: Vec::new(),
        passed: Count::default(),
        denied: Count::default(),
        dropped_packets: 0,
        audited_packets: 0,
        events_lost: 0,
        counters: Vec::new(),
        rules: Vec::new(),
    }
}

fn pod(snapshot: &Snapshot, slot: u32, info: &PodInfo) -> Pod {
    let by_device = snapshot.devices.iter();
    let by_device: Vec<(&u32, &Endpoint)> = by_device
        .filter(|(_, endpoint)| endpoint.slot == slot)
        .collect();
    let by_cgroup = snapshot.cgroups.get(&info.cgroup);
    let by_cgroup = by_cgroup.filter(|endpoint| endpoint.slot == slot);
    // The cgroup's entry is there for host-network pods too, the device's is the authority.
    let endpoint = by_device.first().map(|(_, it)| *it).or(by_cgroup);
    let devices: Vec<Device> = by_device
        .iter()
        .map(|(ifindex, _)| device(snapshot, **ifindex))
        .collect();
    let uid = text(&info.uid);
    let told = snapshot.agent.pods.iter().find(|pod| pod.uid == uid);
    let place = snapshot
        .places
        .as_ref()
        .map(|places| places.get(&info.cgroup));
    let (coverage, problem) = match (endpoint, told) {
        (Some(endpoint), _) if endpoint.mode == MODE_OFF => (Coverage::NotHeld, None),
        // The agent sees more: devices that the kernel has not been told of.
        (_, Some(told)) if told.coverage == "uncovered" => {
            (Coverage::Uncovered, told.reason.clone())
        }
        // Without a mount to look at, a process must be assumed.
        _ if place.is_some_and(|place| place.is_none_or(|place| !place.populated)) => {
            (Coverage::Waiting, None)
        }
        (None, _) => (
            Coverage::Uncovered,
            Some("the kernel has no entry for its cgroup or a device".to_owned()),
        ),
        (Some(endpoint), _) => coverage(endpoint, by_cgroup, &devices),
    };
    let reaches_node = by_cgroup.is_some_and(|entry| entry.flags & FLAG_NODE_ACCESS != 0);
    let (coverage, problem) = match coverage {
        Coverage::Covered | Coverage::HostNetwork if reaches_node => {
            let reason = told.and_then(|told| told.reason.clone());
            let unnamed = || "it can get around its hooks by its access to the node".to_owned();
            (Coverage::NodeAccess, Some(reason.unwrap_or_else(unnamed)))
        }
        coverage => (coverage, problem),
    };
    let zero = Snapshot::default_counters();
    let counters = snapshot.counters.get(&slot).unwrap_or(&zero);
    let mut pod = Pod {
        namespace: text(&info.namespace),
        name: text(&info.name),
        uid,
        slot,
        coverage,
        problem,
        cgroup: Cgroup {
            id: info.cgroup,
            path: place
                .flatten()
                .map(|place| place.path.display().to_string())
                .unwrap_or_default(),
        },
        devices,
        lockdowns: told.map(|told| told.lockdowns.clone()).unwrap_or_default(),
        ..empty()
    };
    if let Some(endpoint) = endpoint {
        let number =
            |name: Option<&str>, number: u8| name.map_or_else(|| number.to_string(), str::to_owned);
        pod.mode = number(cells::mode_name(endpoint.mode), endpoint.mode);
        pod.on_deny = number(cells::on_deny_name(endpoint.on_deny), endpoint.on_deny);
        pod.v4 = cells::v4(endpoint.v4_be);
        pod.v6 = cells::v6(endpoint.v6_be);
        pod.policy = endpoint.policy;
        let rules = snapshot.rules.iter();
        pod.rules = rules
            .filter(|((policy, _), _)| *policy == endpoint.policy)
            .map(|(_, words)| words.clone())
            .collect();
    }
    count(&mut pod, counters);
    pod
}

fn coverage(
    endpoint: &Endpoint,
    by_cgroup: Option<&Endpoint>,
    devices: &[Device],
) -> (Coverage, Option<String>) {
    if endpoint.flags & FLAG_HOST_NETWORK != 0 {
        return if by_cgroup.is_some() {
            (Coverage::HostNetwork, None)
        } else {
            let problem = "a host-network pod without an entry for its cgroup";
            (Coverage::Uncovered, Some(problem.to_owned()))
        };
    }
    if let Some(device) = devices.iter().find(|device| !device.is_covered()) {
        let problem = format!("a hook does not stand, or not first, on {}", device.label());
        return (Coverage::Uncovered, Some(problem));
    }
    if devices.is_empty() {
        return (Coverage::Uncovered, Some("no device was found".to_owned()));
    }
    match by_cgroup {
        Some(entry) if entry.flags & FLAG_COVERED != 0 => (Coverage::Covered, None),
        Some(_) => {
            let problem = "not all of its devices have their hooks (the agent has not said so)";
            (Coverage::Uncovered, Some(problem.to_owned()))
        }
        None => {
            let problem = "the kernel has no entry for its cgroup";
            (Coverage::Uncovered, Some(problem.to_owned()))
        }
    }
}

fn device(snapshot: &Snapshot, ifindex: u32) -> Device {
    let state = |direction: &str| match snapshot.hook(&format!("dev-{ifindex}-{direction}")) {
        None => "missing",
        Some(hook) if hook.target != HookTarget::Device(ifindex) => "gone",
        Some(_) => match snapshot.hooked.get(&ifindex) {
            Some(device) if !device.is_first => "displaced",
            _ => "attached",
        },
    };
    Device {
        ifindex,
        name: snapshot.device_name(ifindex).unwrap_or_default().to_owned(),
        from_pod: state("ingress"),
        to_pod: state("egress"),
    }
}

fn count(pod: &mut Pod, counters: &PodCounters) {
    for reason in Reason::ALL {
        let count = &counters.reasons[*reason as usize];
        if count.packets == 0 {
            continue;
        }
        let sum = if reason.passes() {
            &mut pod.passed
        } else {
            &mut pod.denied
        };
        sum.packets += count.packets;
        sum.bytes += count.bytes;
        pod.counters.push(ReasonCount {
            reason: reason.as_str(),
            passes: reason.passes(),
            packets: count.packets,
            bytes: count.bytes,
        });
    }
    pod.audited_packets = counters.audited;
    // The counters are read while they count: the one may be ahead of the other.
    pod.dropped_packets = pod.denied.packets.saturating_sub(counters.audited);
    pod.events_lost = counters.events_lost;
}

/// The pods of this `namespace/name`: several while one is being replaced by its namesake.
pub fn find(pods: Vec<Pod>, name: &str) -> Result<Vec<Pod>> {
    let Some((namespace, pod)) = name.split_once('/') else {
        bail!("{name} names no pod: write namespace/name");
    };
    let found: Vec<Pod> = pods
        .into_iter()
        .filter(|it| it.namespace == namespace && it.name == pod)
        .collect();
    if found.is_empty() {
        bail!("no pod {name} on this node; see `egressctl pods list`");
    }
    Ok(found)
}
