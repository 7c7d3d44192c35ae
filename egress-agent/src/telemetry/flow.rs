//! An event as people and machines read it; one JSON line on the agent's socket.

use serde::{Deserialize, Serialize};

/// One dropped, rejected or audited packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FlowEvent {
    /// RFC 3339, UTC.
    pub time: String,
    /// `audit`, `drop` or `reject`; a number if this version does not know it.
    pub verdict: String,
    /// Name of the reason; a number if this version does not know it.
    pub reason: String,
    /// The rule that decided, in words, or its number where the words are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// `device` or `cgroup`.
    pub hook: String,
    pub pod: PodRef,
    /// Who last asked for this destination in the pod, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    pub source: Side,
    pub destination: Side,
    /// `tcp`, `udp`, `icmp`, ... or the number; `ether 0x88cc` for what is not IP.
    pub protocol: String,
    /// Type and code of an ICMP packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// Bytes, as the hook sees the packet.
    pub length: u32,
    /// Interface index of the device, on the node.
    pub ifindex: u32,
}

/// The pod that sent the packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodRef {
    /// Empty for a pod that the kernel has no name for.
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// 0 for a pod that the agent has not told the kernel about.
    pub slot: u32,
    /// Cgroup id of the pod; 0 if not known.
    pub cgroup: u64,
}

impl PodRef {
    /// `namespace/name`, or what is known in numbers.
    pub fn label(&self) -> String {
        if !self.name.is_empty() {
            format!("{}/{}", self.namespace, self.name)
        } else if self.slot != 0 {
            format!("slot {}", self.slot)
        } else {
            format!("cgroup {}", self.cgroup)
        }
    }
}

/// A process of the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// In the node's PID namespace.
    pub pid: u32,
    /// The thread's name, at most 15 characters.
    pub comm: String,
    /// In the node's user namespace.
    pub uid: u32,
}

/// One end of the packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Side {
    /// Empty where the packet has none or was not read that far.
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl Side {
    /// `address:port`, with brackets around IPv6.
    pub fn label(&self) -> String {
        match self.port {
            _ if self.address.is_empty() => "-".to_owned(),
            Some(port) if self.address.contains(':') => format!("[{}]:{port}", self.address),
            Some(port) => format!("{}:{port}", self.address),
            None => self.address.clone(),
        }
    }
}

/// An ICMP packet's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Icmp {
    #[serde(rename = "type")]
    pub kind: u8,
    pub code: u8,
}

/// What a follower gets instead of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    pub notice: String,
}
