//! What can be done to the kernel's state, one step at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::maps::{Config, Endpoint, PodInfo, PolicyInfo};

use crate::compile::Digest;
use crate::datapath::{CgroupHook, Direction};

/// One change. Each leaves the kernel in a state that holds every pod by its old or its new
/// policy, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    SetConfig(Config),
    /// Announces a policy (incomplete), completes it, or retires it (incomplete again).
    SetPolicyInfo {
        number: u32,
        info: PolicyInfo,
    },
    /// Writes the entries and rules of a policy of the desired state.
    WritePolicy {
        number: u32,
        digest: Digest,
    },
    /// Makes the entries of a policy that stands what they were, after somebody changed them.
    MendPolicy {
        number: u32,
        digest: Digest,
    },
    /// Removes the entries and rules of a retired policy, or of one that never was.
    ClearPolicy {
        number: u32,
    },
    RemovePolicyInfo {
        number: u32,
    },
    ZeroCounters {
        slot: u32,
    },
    SetPodInfo {
        slot: u32,
        info: Box<PodInfo>,
    },
    RemovePodInfo {
        slot: u32,
    },
    SetDevice {
        ifindex: u32,
        endpoint: Endpoint,
    },
    RemoveDevice {
        ifindex: u32,
    },
    SetCgroup {
        cgroup: u64,
        endpoint: Endpoint,
    },
    RemoveCgroup {
        cgroup: u64,
    },
    /// Says on which devices a covered pod's hooks stand.
    SetWays {
        slot: u32,
        devices: Vec<u32>,
    },
    /// Ends connections of these pods, by address, that the node's NAT leads where their policy doesn't.
    CutDiverted {
        pods: BTreeMap<IpAddr, Digest>,
    },
    /// Takes over the flows that stand, from conntrack.
    AdoptFlows {
        slot: u32,
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
    },
    /// Attaches first, without a gap where a link of ours is there.
    Attach {
        ifindex: u32,
        direction: Direction,
    },
    /// Has a device judged by the sender, which is nobody's (yet or any more); without a gap where a link
    /// of ours is there.
    AttachBySender {
        ifindex: u32,
    },
    /// Gives a link that stands our program.
    Swap {
        ifindex: u32,
        direction: Direction,
    },
    Detach {
        ifindex: u32,
        direction: Direction,
    },
    AttachCgroup(CgroupHook),
    SwapCgroup(CgroupHook),
    /// Has nothing come from a device but what its hook has marked.
    Fence {
        ifindex: u32,
    },
    /// Has the fence let by what comes from a device.
    LetBy {
        ifindex: u32,
    },
    /// Sets up the fence anew, with these devices behind it.
    RaiseFence {
        devices: BTreeSet<u32>,
    },
    LowerFence,
    /// Takes over what has come into the maps of another layout since the last time.
    Carry {
        layout: String,
    },
    /// Removes the pins of another layout, none of whose hooks is in force any more.
    RemoveLayout {
        layout: String,
    },
}

impl Op {
    /// It writes or removes entries of policies.
    pub fn is_of_entries(&self) -> bool {
        matches!(
            self,
            Self::WritePolicy { .. } | Self::MendPolicy { .. } | Self::ClearPolicy { .. }
        )
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetConfig(_) => f.write_str("set config"),
            Self::SetPolicyInfo { number, info } if info.complete == 0 => {
                write!(f, "mark policy {number} incomplete")
            }
            Self::SetPolicyInfo { number, .. } => write!(f, "mark policy {number} complete"),
            Self::WritePolicy { number, .. } => write!(f, "write policy {number}"),
            Self::MendPolicy { number, .. } => write!(f, "mend policy {number}"),
            Self::ClearPolicy { number } => write!(f, "clear policy {number}"),
            Self::RemovePolicyInfo { number } => write!(f, "remove policy {number}"),
            Self::ZeroCounters { slot } => write!(f, "zero counters of slot {slot}"),
            Self::SetPodInfo { slot, .. } => write!(f, "give slot {slot} to the pod"),
            Self::RemovePodInfo { slot } => write!(f, "free slot {slot}"),
            Self::SetDevice { ifindex, .. } => write!(f, "set endpoint of device {ifindex}"),
            Self::RemoveDevice { ifindex } => write!(f, "remove endpoint of device {ifindex}"),
            Self::SetCgroup { cgroup, .. } => write!(f, "set endpoint of cgroup {cgroup}"),
            Self::RemoveCgroup { cgroup } => write!(f, "remove endpoint of cgroup {cgroup}"),
            Self::SetWays { slot, devices } => {
                write!(f, "set the ways of slot {slot} to devices {devices:?}")
            }
            Self::CutDiverted { pods } => {
                write!(f, "end diverted connections of {} addresses", pods.len())
            }
            Self::AdoptFlows { slot, .. } => write!(f, "adopt flows of slot {slot}"),
            Self::Attach { ifindex, direction } => {
                write!(f, "attach {} of device {ifindex}", direction.name())
            }
            Self::AttachBySender { ifindex } => {
                write!(f, "have device {ifindex} judged by the sender")
            }
            Self::Swap { ifindex, direction } => {
                write!(f, "swap {} of device {ifindex}", direction.name())
            }
            Self::Detach { ifindex, direction } => {
                write!(f, "detach {} of device {ifindex}", direction.name())
            }
            Self::AttachCgroup(hook) => write!(f, "attach {} of kubepods", hook.name()),
            Self::SwapCgroup(hook) => write!(f, "swap {} of kubepods", hook.name()),
            Self::Fence { ifindex } => write!(f, "put device {ifindex} behind the fence"),
            Self::LetBy { ifindex } => write!(f, "let device {ifindex} by the fence"),
            Self::RaiseFence { devices } => {
                write!(f, "set up the fence for devices {devices:?}")
            }
            Self::LowerFence => f.write_str("take down the fence"),
            Self::Carry { layout } => write!(f, "take over the maps of {layout}"),
            Self::RemoveLayout { layout } => write!(f, "remove {layout}"),
        }
    }
}

/// What a step is about. When a step fails, later ones about the same are left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Node,
    /// By UID.
    Pod(String),
    /// By number.
    Policy(u32),
    /// A device that no pod of ours has any more.
    Device(u32),
    /// A cgroup that no pod of ours has any more.
    Cgroup(u64),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Pod(uid) => write!(f, "pod {uid}"),
            Self::Policy(number) => write!(f, "policy {number}"),
            Self::Device(ifindex) => write!(f, "device {ifindex}"),
            Self::Cgroup(cgroup) => write!(f, "cgroup {cgroup}"),
        }
    }
}

/// One operation of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub subject: Subject,
    /// The policy that the operation names: it must be complete first.
    pub policy: Option<u32>,
    pub op: Op,
}

/// What to do, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// By UID, for pods whose hooks are being attached: the entry of the pod's cgroup if that
    /// fails, so that the cgroup hook decides.
    pub uncovered: BTreeMap<String, (u64, Endpoint)>,
    /// By UID: why a pod can't even be planned for.
    pub refused: BTreeMap<String, String>,
}
