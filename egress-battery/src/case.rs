//! What a case of the battery is.

use std::io;

use egress_common::Reason;
use serde::{Deserialize, Serialize};

use crate::ground::Ground;

/// One attempt, or one thing that must go on working.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Published as `B-001`; never given again, and never changed in its meaning.
    pub number: u16,
    pub group: Group,
    /// In a few words.
    pub name: &'static str,
    /// It is tried once for each.
    pub families: &'static [Family],
    /// Every packet must end for one of these.
    pub expect: &'static [Reason],
    pub needs: &'static [Need],
    pub by: By,
}

impl Case {
    /// `B-001`.
    pub fn id(&self) -> String {
        format!("B-{:03}", self.number)
    }

    /// Whether it is something that must go on working.
    pub fn must_work(&self) -> bool {
        self.group == Group::Works
    }

    pub fn needs(&self, need: Need) -> bool {
        self.needs.contains(&need)
    }

    #[must_use]
    pub(crate) const fn with(mut self, needs: &'static [Need]) -> Self {
        self.needs = needs;
        self
    }
}

/// Who plays a case.
#[derive(Clone, Copy, Debug)]
pub enum By {
    /// A process in the pod, alone.
    Pod(Attempt),
    /// A client in the node's own network, towards a listener in the pod.
    Client(Client),
    /// It needs the cluster's objects: `cargo xtask battery` plays it.
    Cluster,
}

/// Sends what the case is about. That it returns without an error does not say that anything left.
pub type Attempt = fn(&Ground) -> Result<(), Trouble>;

/// What comes to the pod from the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// TCP to a port that the pod listens on, as a kubelet's probe.
    Tcp,
    /// UDP to a port that the pod answers from.
    Udp,
    /// UDP to a port where nobody is: the pod's own ICMP error comes back.
    Nobody,
    /// ICMP echo.
    Echo,
}

/// Why an attempt could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The kernel or the pod lacks what it takes.
    #[error("{0}")]
    Absent(String),
    #[error("{doing}: {error}")]
    Io {
        doing: &'static str,
        error: io::Error,
    },
}

/// Names what was being done when a system call failed.
pub(crate) fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> Trouble {
    move |error| Trouble::Io { doing, error }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// Below IP.
    Link,
    IPv4,
    IPv6,
}

impl Family {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        }
    }
}

pub(crate) const LINK: &[Family] = &[Family::Link];
pub(crate) const V4: &[Family] = &[Family::IPv4];
pub(crate) const V6: &[Family] = &[Family::IPv6];
pub(crate) const BOTH: &[Family] = &[Family::IPv4, Family::IPv6];

/// What a case takes beside a held pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It changes the pod's network for a moment; everything is put back.
    Intrusive,
    /// A process in a container (cgroup) of its own.
    FreshContainer,
    /// A gateway that the pod may use.
    Gateway,
    /// A resolver that the pod may ask.
    Dns,
    /// The address of another pod.
    OtherPod,
    /// The node's address.
    Node,
    /// What the hook never sees is stopped behind it, by the fence, and counted there.
    Fence,
}

macro_rules! groups {
    ($($name:ident = $text:literal),+ $(,)?) => {
        /// What the cases are about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Group { $($name),+ }

        impl Group {
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }
        }
    };
}

groups! {
    Who = "who",
    Sockets = "sockets",
    Protocols = "protocols",
    Link = "link",
    Fragments = "fragments",
    HeadersV4 = "ipv4-headers",
    HeadersV6 = "ipv6-headers",
    Tunnels = "tunnels",
    Spoofed = "spoofed",
    Places = "places",
    Devices = "devices",
    Objects = "objects",
    Older = "older",
    Works = "works",
}
