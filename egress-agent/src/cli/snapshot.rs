//! What `egressctl` looks at, read once: the pins, the run directory, the node.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Result;
use egress_common::maps::{Count, Endpoint, PodCounters, PodInfo, RuleInfo, RuleKey, name};
use egress_common::reason::REASONS;

use super::Globals;
use super::agent::{self, AgentState};
use super::cgroups::{self, Place};
use crate::datapath::pinned::{HookTarget, HookedDevice, Pinned, PinnedHook};
use crate::fence::{Facts, Fence, Part};
use crate::telemetry::decode::text;

/// All of it, as plain data.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Directory of the pins.
    pub pins: PathBuf,
    /// Release of the running kernel.
    pub kernel: String,
    pub agent: AgentState,
    /// By interface index.
    pub devices: BTreeMap<u32, Endpoint>,
    /// By cgroup id.
    pub cgroups: BTreeMap<u64, Endpoint>,
    /// By slot.
    pub pods: BTreeMap<u32, PodInfo>,
    /// By policy and rule.
    pub rules: BTreeMap<(u32, u16), String>,
    /// By slot; 0 is that of pods that are not known.
    pub counters: BTreeMap<u32, PodCounters>,
    pub hooks: Vec<PinnedHook>,
    /// By interface index; only those of this network namespace.
    pub hooked: BTreeMap<u32, HookedDevice>,
    /// None where the kernel has no `nf_tables`, or may not be asked.
    pub fence: Option<Facts>,
    pub gate: Option<Facts>,
    /// By cgroup id; none if there is no cgroup2 mount to look at.
    pub places: Option<BTreeMap<u64, Place>>,
}

impl Snapshot {
    /// # Errors
    /// If there are no pins, or they can't be read.
    pub fn read(globals: &Globals) -> Result<Self> {
        let pinned = Pinned::open(&globals.bpffs)?;
        let pods: BTreeMap<u32, PodInfo> = pinned.entries(name::POD_INFO)?.into_iter().collect();
        let rules: Vec<(RuleKey, RuleInfo)> = pinned.entries(name::RULE_INFO)?;
        let hooks = pinned.hooks()?;
        let mut ids: BTreeSet<u64> = pods.values().map(|pod| pod.cgroup).collect();
        for hook in &hooks {
            if let HookTarget::Cgroup(id) = hook.target {
                ids.insert(id);
            }
        }
        ids.remove(&0);
        let kernel = nix::sys::utsname::uname();
        Ok(Self {
            pins: pinned.root().to_owned(),
            kernel: kernel
                .map(|names| names.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            agent: agent::read(&globals.run_dir),
            devices: pinned.entries(name::DEVICES)?.into_iter().collect(),
            cgroups: pinned.entries(name::CGROUPS)?.into_iter().collect(),
            rules: rules
                .iter()
                .map(|(key, info)| ((key.policy, key.rule), text(&info.text)))
                .collect(),
            counters: pinned.counters(pods.keys().copied().chain([0]))?,
            hooked: Pinned::hooked_devices(&hooks),
            fence: Fence::facts(Part::Fence).ok(),
            gate: Fence::facts(Part::Gate).ok(),
            places: cgroups::find(&ids),
            pods,
            hooks,
        })
    }

    /// Counters of a pod that has sent nothing.
    pub fn default_counters() -> PodCounters {
        PodCounters {
            reasons: [Count {
                packets: 0,
                bytes: 0,
            }; REASONS],
            audited: 0,
            events_lost: 0,
            tokens: 0,
            filled_ns: 0,
        }
    }

    /// The hook pinned under this name.
    pub fn hook(&self, pin: &str) -> Option<&PinnedHook> {
        self.hooks.iter().find(|hook| hook.pin == pin)
    }

    /// Name of a device, as far as anybody knows it.
    pub fn device_name(&self, ifindex: u32) -> Option<&str> {
        let seen = self.hooked.get(&ifindex).map(|device| device.name.as_str());
        seen.or_else(|| {
            let devices = self.agent.pods.iter().flat_map(|pod| &pod.devices);
            devices
                .filter(|device| device.ifindex == ifindex && !device.name.is_empty())
                .map(|device| device.name.as_str())
                .next()
        })
    }
}
