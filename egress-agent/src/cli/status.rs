//! Whether what should be held is held.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use egress_common::maps::MODE_ENFORCE;
use serde::Serialize;

use super::output::{Part, Table, View, values};
use super::pods::{Coverage, Device, Pod, pods};
use super::snapshot::Snapshot;
use crate::datapath::DeviceHooks;
use crate::datapath::pinned::HookTarget;
use crate::fence::{Facts, Family};
use crate::policy_server::xds::NodeState;

/// Pins of the hooks on kubepods, and their programs.
const HOOKS: [(&str, &str); 6] = [
    ("cg-egress", "sp_cg_egress"),
    ("cg-ingress", "sp_cg_ingress"),
    ("cg-connect4", "sp_connect4"),
    ("cg-connect6", "sp_connect6"),
    ("cg-sendmsg4", "sp_sendmsg4"),
    ("cg-sendmsg6", "sp_sendmsg6"),
];

/// The node as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub agent: Agent,
    pub kernel: String,
    /// Directory of the pins.
    pub pins: String,
    /// How hooks on devices are attached; none while there are none.
    pub device_hooks: Vec<DeviceHooks>,
    /// What is behind the hooks; none where the kernel has no `nf_tables`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence: Option<Behind>,
    /// What new devices meet; none where the kernel has no `nf_tables`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// Cgroup that the hooks are on; empty if it can't be found.
    pub kubepods: String,
    pub hooks: Vec<Hook>,
    pub pods: Vec<PodStatus>,
    /// Envoys that get their configuration from this node's agent, wherever they run.
    pub gateways: Vec<NodeState>,
    pub counts: Counts,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    pub running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The kernel is as the agent wants it.
    pub in_sync: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Map writes since the agent was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes: Option<u64>,
}

/// A hook on kubepods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    pub program: &'static str,
    /// `attached`, `gone` with its cgroup, or `missing`.
    pub state: &'static str,
    /// Tag of the program, in hexadecimal.
    pub program_tag: String,
    /// Id of the cgroup; 0 if it is not attached.
    pub cgroup: u64,
}

/// The fence behind the hooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Behind {
    pub families: BTreeSet<Family>,
    /// Interface indices of enforced devices that it is closed for.
    pub devices: BTreeSet<u32>,
    /// Of those that it is not closed for: what the kernel hands on past their hooks is not stopped.
    pub left_out: BTreeSet<u32>,
    /// What no hook had passed.
    pub dropped_packets: u64,
}

/// The gate for devices that no agent has looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// In which it is closed.
    pub families: BTreeSet<Family>,
    /// What has come from such devices.
    pub dropped_packets: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub mode: String,
    pub coverage: Coverage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    pub devices: Vec<Device>,
}

/// Pods by how they are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    pub covered: usize,
    pub host_network: usize,
    /// Their hooks stand, but they can get around them: these can't be held.
    pub node_access: usize,
    pub not_held: usize,
    pub waiting: usize,
    pub uncovered: usize,
    /// Packets of pods that are not known (yet) and were dropped.
    pub unknown_pods_dropped_packets: u64,
}

/// Judges what was read.
pub fn status(snapshot: &Snapshot) -> Status {
    let pods = pods(snapshot);
    let hooks: Vec<Hook> = HOOKS
        .iter()
        .map(|(pin, program)| hook(snapshot, pin, program))
        .collect();
    let kubepods = hooks.iter().map(|hook| hook.cgroup).find(|id| *id != 0);
    let place = kubepods.and_then(|id| snapshot.places.as_ref()?.get(&id));
    let agent = &snapshot.agent;
    Status {
        agent: Agent {
            running: agent.running,
            pid: agent.pid,
            in_sync: agent.ready.is_some(),
            revision: agent.ready.as_ref().map(|ready| ready.revision.clone()),
            writes: agent.ready.as_ref().map(|ready| ready.writes),
        },
        kernel: snapshot.kernel.clone(),
        pins: snapshot.pins.display().to_string(),
        device_hooks: device_hooks(snapshot),
        fence: snapshot.fence.as_ref().map(|facts| behind(snapshot, facts)),
        gate: snapshot.gate.as_ref().map(|facts| Gate {
            families: facts.families.clone(),
            dropped_packets: facts.dropped.values().sum(),
        }),
        kubepods: place
            .map(|place| place.path.display().to_string())
            .unwrap_or_default(),
        hooks,
        counts: counts(snapshot, &pods),
        gateways: agent.gateways.clone(),
        pods: pods.into_iter().map(PodStatus::from).collect(),
    }
}

impl From<Pod> for PodStatus {
    fn from(pod: Pod) -> Self {
        Self {
            namespace: pod.namespace,
            name: pod.name,
            uid: pod.uid,
            mode: pod.mode,
            coverage: pod.coverage,
            problem: pod.problem,
            devices: pod.devices,
        }
    }
}

/// Both for a moment, while an agent goes over from one to the other.
fn device_hooks(snapshot: &Snapshot) -> Vec<DeviceHooks> {
    let ways: BTreeSet<DeviceHooks> = snapshot.hooks.iter().filter_map(|hook| hook.way).collect();
    ways.into_iter().collect()
}

fn behind(snapshot: &Snapshot, facts: &Facts) -> Behind {
    let enforced = snapshot.devices.iter();
    let enforced = enforced.filter(|(_, endpoint)| endpoint.mode == MODE_ENFORCE);
    let enforced: BTreeSet<u32> = enforced.map(|(ifindex, _)| *ifindex).collect();
    Behind {
        families: facts.families.clone(),
        left_out: &enforced - &facts.devices,
        devices: &enforced & &facts.devices,
        dropped_packets: facts.dropped.values().sum(),
    }
}

fn hook(snapshot: &Snapshot, pin: &str, program: &'static str) -> Hook {
    let Some(found) = snapshot.hook(pin) else {
        return Hook {
            program,
            state: "missing",
            program_tag: String::new(),
            cgroup: 0,
        };
    };
    let (state, cgroup) = match found.target {
        HookTarget::Cgroup(id) => ("attached", id),
        HookTarget::Gone | HookTarget::Device(_) => ("gone", 0),
    };
    Hook {
        program,
        state,
        program_tag: found.program_tag.clone(),
        cgroup,
    }
}

fn counts(snapshot: &Snapshot, pods: &[Pod]) -> Counts {
    let of = |coverage| pods.iter().filter(|pod| pod.coverage == coverage).count();
    let unknown = snapshot.counters.get(&0);
    Counts {
        covered: of(Coverage::Covered),
        host_network: of(Coverage::HostNetwork),
        node_access: of(Coverage::NodeAccess),
        not_held: of(Coverage::NotHeld),
        waiting: of(Coverage::Waiting),
        uncovered: of(Coverage::Uncovered),
        unknown_pods_dropped_packets: unknown.map_or(0, |counters| {
            counters.reasons[egress_common::Reason::UnknownPod as usize].packets
        }),
    }
}

fn names(families: &BTreeSet<Family>) -> String {
    let families: Vec<&str> = families.iter().map(|it| it.name()).collect();
    families.join(", ")
}

impl Gate {
    fn line(&self) -> String {
        let state = if self.families.is_empty() {
            "open to new devices".to_owned()
        } else {
            format!("closed to new devices ({})", names(&self.families))
        };
        format!("{state}, {} packets dropped", self.dropped_packets)
    }
}

impl Behind {
    fn line(&self) -> String {
        let families = if self.families.is_empty() {
            "down".to_owned()
        } else {
            names(&self.families)
        };
        let (closed, out) = (self.devices.len(), self.left_out.len());
        format!(
            "{families}; closed for {closed} of {} enforced devices, {} packets dropped",
            closed + out,
            self.dropped_packets
        )
    }
}

impl Status {
    /// Every held pod is covered, and every hook on kubepods stands.
    pub fn is_well(&self) -> bool {
        self.counts.uncovered + self.counts.node_access == 0
            && self.hooks.iter().all(|hook| hook.state == "attached")
    }

    fn headline(&self) -> String {
        let agent = &self.agent;
        let agent = match (agent.running, agent.in_sync) {
            (false, _) => "not running; what is pinned stays in force".to_owned(),
            (true, true) => format!(
                "running, in sync (revision {}, {} writes)",
                agent.revision.as_deref().unwrap_or("-"),
                agent.writes.unwrap_or(0)
            ),
            (true, false) => "running, not in sync: see its log".to_owned(),
        };
        let kubepods = if self.kubepods.is_empty() {
            "not found"
        } else {
            &self.kubepods
        };
        let ways: Vec<&str> = self.device_hooks.iter().map(|way| way.name()).collect();
        let ways = if ways.is_empty() {
            "no hooks".to_owned()
        } else {
            format!("hooked by {}", ways.join(" and "))
        };
        let none = || "none: the kernel has no nf_tables".to_owned();
        let fence = self.fence.as_ref().map_or_else(none, Behind::line);
        let gate = self.gate.as_ref().map_or_else(none, Gate::line);
        format!(
            "agent     {agent}\nkernel    {}\npins      {}\ndevices   {ways}\nfence     {fence}\ngate      {gate}\nkubepods  {kubepods}",
            self.kernel, self.pins
        )
    }

    fn summary(&self) -> String {
        let counts = self.counts;
        let mut text = format!(
            "{} covered, {} host-network, {} not held, {} waiting, {} uncovered; ",
            counts.covered, counts.host_network, counts.not_held, counts.waiting, counts.uncovered
        );
        // Writing to a string can't fail.
        if counts.node_access > 0 {
            let _ = write!(text, "{} can get around their hooks; ", counts.node_access);
        }
        let dropped = counts.unknown_pods_dropped_packets;
        let _ = write!(text, "{dropped} packets of unknown pods dropped");
        for hook in self.hooks.iter().filter(|hook| hook.state != "attached") {
            let state = hook.state.to_uppercase();
            let _ = write!(
                text,
                "\nHOOK {state}: {} on kubepods; is the agent running?",
                hook.program
            );
        }
        for pod in &self.pods {
            if pod.coverage.is_open() {
                let problem = pod.problem.as_deref().unwrap_or("no reason is known");
                let _ = write!(
                    text,
                    "\n{}: {}/{}: {problem}",
                    pod.coverage.as_str(),
                    pod.namespace,
                    pod.name
                );
            }
        }
        for node in &self.gateways {
            for (kind, rejection) in &node.rejected {
                let _ = write!(
                    text,
                    "\nREJECTED: {} of gateway {} keeps its last configuration, it refuses a {kind} \
                     of revision {}: {}",
                    node.node, node.gateway, rejection.revision, rejection.message
                );
            }
        }
        text
    }

    fn gateways(&self) -> Option<Part> {
        let mut table = Table::new(&["GATEWAY", "ENVOY", "CONFIGURATION", "REVISION", "+ADDRESS"]);
        for node in &self.gateways {
            let state = match (&node.revision, node.rejected.is_empty()) {
                (_, false) => "REJECTED",
                (Some(_), true) => "accepted",
                (None, true) => "under way",
            };
            table.row(vec![
                node.gateway.clone(),
                node.node.clone(),
                state.to_owned(),
                node.revision.clone().unwrap_or_default(),
                node.address.to_string(),
            ]);
        }
        (!self.gateways.is_empty()).then_some(Part::Table(table))
    }

    /// For printing.
    pub fn view(&self) -> View {
        let mut hooks = Table::new(&["HOOK", "STATE", "PROGRAM-TAG", "+CGROUP"]);
        for hook in &self.hooks {
            hooks.row(vec![
                hook.program.to_owned(),
                hook.state.to_owned(),
                hook.program_tag.clone(),
                hook.cgroup.to_string(),
            ]);
        }
        let mut pods = Table::new(&["NAMESPACE", "NAME", "MODE", "COVERAGE", "DEVICES", "+UID"]);
        for pod in &self.pods {
            let devices: Vec<String> = pod.devices.iter().map(Device::label).collect();
            pods.row(vec![
                pod.namespace.clone(),
                pod.name.clone(),
                pod.mode.clone(),
                pod.coverage.as_str().to_owned(),
                devices.join(", "),
                pod.uid.clone(),
            ]);
        }
        let mut page = vec![
            Part::Text(self.headline()),
            Part::Table(hooks),
            Part::Table(pods),
        ];
        page.extend(self.gateways());
        page.push(Part::Text(self.summary()));
        View {
            kind: "Status",
            items: values(std::slice::from_ref(self)),
            page,
        }
    }
}
