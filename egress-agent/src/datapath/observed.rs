//! What the kernel holds now, as plain data.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::maps::{Config, Endpoint, PodInfo, PolicyInfo};

use crate::fence;

use super::links::{CgroupHook, Direction, LinkState};

/// Numbers of policies with entries that are not as the agent left them, and the maps they are in.
pub type Damage = BTreeMap<u32, BTreeSet<&'static str>>;

/// The present state. Of policies' entries only is told which are not what they should be: a policy
/// that is marked complete is whole else, and its digest says what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub config: Option<Config>,
    /// By slot.
    pub slots: BTreeMap<u32, PodInfo>,
    /// By interface index.
    pub devices: BTreeMap<u32, Endpoint>,
    /// By cgroup id.
    pub cgroups: BTreeMap<u64, Endpoint>,
    /// By slot of a covered pod: those of its devices that `sp_ways` has.
    pub ways: BTreeMap<u32, Vec<u32>>,
    /// By number, incomplete ones too.
    pub policies: BTreeMap<u32, PolicyInfo>,
    pub damaged: Damage,
    /// Cgroups for which the shortcut says that they pass the cgroup hook, and their entry does not.
    pub mismarked: BTreeSet<u64>,
    /// Pinned links of devices.
    pub links: BTreeMap<(u32, Direction), LinkState>,
    /// Enforced devices on which programs of somebody else see what comes in, too: those could take the mark
    /// of our hook off again.
    pub shared: BTreeSet<u32>,
    /// None where this kernel has no `nf_tables`, or it can't be looked at.
    pub fence: Option<fence::State>,
    /// Pinned links of kubepods.
    pub cgroup_links: BTreeMap<CgroupHook, LinkState>,
    /// Directories of other layouts, which are being taken over. Links that are still there are
    /// above, as of an old program.
    pub layouts: BTreeSet<String>,
}

impl Observed {
    pub fn link(&self, ifindex: u32, direction: Direction) -> Option<LinkState> {
        self.links.get(&(ifindex, direction)).copied()
    }

    /// A hook of ours is on the device, whatever its program: so the device is alive.
    pub fn is_hooked(&self, ifindex: u32) -> bool {
        Direction::BOTH.iter().any(|direction| {
            self.link(ifindex, *direction)
                .is_some_and(LinkState::stands)
        })
    }

    /// Both hooks are on the device.
    pub fn is_covered(&self, ifindex: u32) -> bool {
        Direction::BOTH.iter().all(|direction| {
            self.link(ifindex, *direction)
                .is_some_and(LinkState::stands)
        })
    }

    /// Whether our programs know all pods that there were before: the gate stands, and so who is not
    /// known is denied already.
    pub fn knows_pods(&self) -> bool {
        let gate = self.cgroup_links.get(&CgroupHook::Egress);
        let ours = matches!(gate, Some(LinkState::Good | LinkState::Displaced));
        ours && self.layouts.is_empty()
    }

    /// Numbers of the policies that some endpoint names.
    pub fn used_policies(&self) -> BTreeSet<u32> {
        let endpoints = self.devices.values().chain(self.cgroups.values());
        endpoints.map(|endpoint| endpoint.policy).collect()
    }
}
