//! Where the pods of this node are: their cgroups, network namespaces and devices.

mod age;
pub mod cgroups;
pub mod conntrack;
mod coverage;
pub mod devices;
pub mod diverted;
#[cfg(any(test, fuzzing))]
mod fuzz;
pub mod mounts;
pub mod newcomers;
pub mod sight;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::run as fuzz;

pub use cgroups::Kubepods;
pub use conntrack::StandingFlows;
pub use newcomers::{Newcomers, Veth};
pub use sight::{Scout, SightError};
pub use watch::Watcher;

/// What was found on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sightings {
    /// By UID.
    pub pods: BTreeMap<String, Sighting>,
    /// Cgroups of all static pods, by the hash that is in their name; known ones too.
    pub statics: BTreeMap<String, u64>,
    /// Interface indices of all devices that lead to another network namespace: those of pods, known or
    /// not, and of strangers. Which is whose can be told only once a process is in there.
    pub outlying: BTreeSet<u32>,
    /// Interface indices of all devices: one that is not here has come since.
    pub devices: BTreeSet<u32>,
}

impl FromIterator<(String, Sighting)> for Sightings {
    fn from_iter<T: IntoIterator<Item = (String, Sighting)>>(pods: T) -> Self {
        Self {
            pods: pods.into_iter().collect(),
            ..Self::default()
        }
    }
}

/// What was found of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    /// Id of the pod's cgroup: the inode of its directory below the cgroup2 mount.
    pub cgroup: Option<u64>,
    /// That directory.
    pub cgroup_path: Option<PathBuf>,
    /// Host-side devices whose peer is in one of the pod's network namespaces, sorted by index.
    pub devices: Vec<Device>,
    /// The pod's processes are in the node's own network namespace (but for some in namespaces
    /// without any device).
    pub host_network: bool,
    /// Its only processes are in the node's namespace and so young that this may be because a
    /// container runtime has yet to take them to the pod's.
    pub arriving: bool,
    /// The pod has a process, so that its network namespace could be looked at.
    pub running: bool,
    /// Why it can't be covered, in words; none if it can.
    pub uncoverable: Option<String>,
}

/// A network device of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Interface index in the node's network namespace.
    pub ifindex: u32,
    pub name: String,
}
