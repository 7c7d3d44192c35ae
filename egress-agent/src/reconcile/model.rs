//! A kernel in memory that watches what every packet would meet after each operation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use egress_common::maps::{Endpoint, FLAG_COVERED, FLAG_FENCED, MODE_ENFORCE, MODE_OFF};

use super::apply::Executor;
use super::op::Op;
use crate::compile::{DesiredState, Digest, Policy};
use crate::datapath::maps::text;
use crate::datapath::{CgroupHook, Direction, LinkState, Observed};
use crate::fence::State;

/// The kernel, and what of it `Observed` leaves out.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) state: Observed,
    /// What was written of each policy.
    pub(super) policies: BTreeMap<u32, Policy>,
    /// The same, without what others have made of it.
    pub(super) written: BTreeMap<u32, Policy>,
    pub(super) devices_alive: BTreeSet<u32>,
    /// Entries whose device may have died; what has their index now may be another's.
    stale: BTreeSet<u32>,
    /// Devices that are judged by the sender, by a program of any version.
    by_sender: BTreeSet<u32>,
    /// Slots whose counters are zero.
    pub(super) zeroed: BTreeSet<u32>,
    /// Slots that a stranger has removed: entries may name them until they are there again.
    forgotten: BTreeSet<u32>,
    /// Slots whose flows were taken over.
    pub(super) adopted: BTreeSet<u32>,
    /// Of whom diverted connections were ended, under which policy.
    cut: BTreeSet<(IpAddr, Digest)>,
    /// Entries that were taken over from another layout: whose they are, without a policy.
    carried: Carried,
    /// Operations that still succeed; then every third fails, or, after a crash, all.
    pub(super) fuel: u32,
    pub(super) crash: bool,
    pub(super) writes: u64,
}

/// Keys of entries of devices and of cgroups.
#[derive(Clone, Debug, Default)]
struct Carried {
    devices: BTreeSet<u32>,
    cgroups: BTreeSet<u64>,
    /// Whose they were.
    slots: BTreeSet<u32>,
}

impl Model {
    /// With a packet filter.
    pub(super) fn fenced() -> Self {
        let mut model = Self::default();
        model.state.fence = Some(State::default());
        model
    }

    /// What an agent of another layout finds when it has loaded: its maps hold who is who, and the
    /// hooks that stand look into the other ones.
    pub(super) fn change_layout(&mut self) {
        let state = &mut self.state;
        state.layouts = BTreeSet::from(["other".to_owned()]);
        state.config = None;
        state.policies.clear();
        state.ways.clear();
        self.policies.clear();
        self.written.clear();
        let entries = state.devices.values_mut().chain(state.cgroups.values_mut());
        for endpoint in entries {
            endpoint.policy = 0;
            endpoint.exact_networks = 0;
        }
        self.carried.devices = state.devices.keys().copied().collect();
        self.carried.cgroups = state.cgroups.keys().copied().collect();
        self.carried.slots = state.slots.keys().copied().collect();
        state.links.retain(|_, link| *link != LinkState::Gone);
        let links = state.links.values_mut();
        for link in links.chain(state.cgroup_links.values_mut()) {
            *link = LinkState::OldProgram;
        }
    }

    /// Whether a hook may look here now: an entry without its policy denies what was allowed. A pod
    /// whose object is gone has none to be had.
    fn check_carried(&self, endpoint: &Endpoint, desired: &DesiredState) {
        let owner = self.state.slots.get(&endpoint.slot);
        let declared = owner.is_some_and(|info| desired.pods.contains_key(&text(&info.uid)));
        assert!(
            !declared || endpoint.mode == MODE_OFF,
            "a hook came before the entry was written anew"
        );
    }

    /// What breaks a promise now, if anything does.
    fn check(&self) -> Result<(), String> {
        let endpoints = self
            .state
            .devices
            .values()
            .chain(self.state.cgroups.values());
        for endpoint in endpoints {
            if endpoint.policy == 0 && self.carried.slots.contains(&endpoint.slot) {
                continue;
            }
            self.check_endpoint(endpoint)?;
        }
        for (ifindex, direction) in self.state.links.keys() {
            let standing = self.is_hooked(*ifindex, *direction);
            let by_sender = *direction == Direction::Ingress && self.by_sender.contains(ifindex);
            if standing && !by_sender && !self.state.devices.contains_key(ifindex) {
                return Err(format!(
                    "the hook on device {ifindex} has no entry: it passes all"
                ));
            }
        }
        Ok(())
    }

    /// Cgroups that the cgroup hook lets pass while a device of theirs lives without its hook, or one that
    /// they pass for is nobody's. That devices come is not the plan's doing; that a cgroup gets here by an
    /// operation is.
    fn open(&self) -> BTreeSet<u64> {
        let passes = |(_, endpoint): &(&u64, &Endpoint)| {
            let ways = self.state.ways.get(&endpoint.slot);
            let ways = ways.map_or(&[][..], |ways| ways);
            if endpoint.mode == MODE_OFF
                || endpoint.ways == 0
                || ways.len() < endpoint.ways as usize
            {
                return false;
            }
            let entries = &self.state.devices;
            let hooked = |ifindex: u32| self.is_hooked(ifindex, Direction::Ingress);
            let mut devices = self.devices_alive.iter();
            let mut ways = ways.iter();
            devices.any(|ifindex| self.owns(endpoint.slot, *ifindex) && !hooked(*ifindex))
                || ways.any(|ifindex| !hooked(*ifindex) || !entries.contains_key(ifindex))
        };
        let open = self.state.cgroups.iter().filter(passes);
        open.map(|(cgroup, _)| *cgroup).collect()
    }

    fn owns(&self, slot: u32, ifindex: u32) -> bool {
        let entry = self.state.devices.get(&ifindex);
        !self.stale.contains(&ifindex) && entry.is_some_and(|endpoint| endpoint.slot == slot)
    }

    fn is_hooked(&self, ifindex: u32, direction: Direction) -> bool {
        let link = self.state.link(ifindex, direction);
        link.is_some_and(LinkState::stands)
    }

    fn check_endpoint(&self, endpoint: &Endpoint) -> Result<(), String> {
        if *endpoint == Endpoint::nobodys(MODE_OFF) {
            return Ok(());
        }
        let known = self.state.slots.contains_key(&endpoint.slot);
        if !known && !self.forgotten.contains(&endpoint.slot) {
            return Err(format!("slot {} belongs to nobody", endpoint.slot));
        }
        if endpoint.mode == MODE_OFF {
            return Ok(());
        }
        let number = endpoint.policy;
        match self.state.policies.get(&number) {
            Some(info) if info.complete == 1 => {
                // What others do to it is not the plan's doing.
                let entries = self.written.get(&number);
                let whole = entries.is_some_and(|policy| digest(policy) == info.digest);
                whole
                    .then_some(())
                    .ok_or_else(|| format!("policy {number} is complete, and is not whole"))
            }
            _ => Err(format!("policy {number} is in use, and is not complete")),
        }
    }

    /// Devices come and go by themselves.
    pub(super) fn set_alive(&mut self, alive: BTreeSet<u32>) {
        for ((ifindex, _), state) in &mut self.state.links {
            if !alive.contains(ifindex) {
                *state = LinkState::Gone;
            }
        }
        // Without any hook nothing tells that a device is still the one it was.
        let entries = self.state.devices.keys();
        let lost = entries.filter(|ifindex| !self.state.is_hooked(**ifindex));
        self.stale.extend(lost);
        for ways in self.state.ways.values_mut() {
            ways.retain(|ifindex| alive.contains(ifindex));
        }
        self.devices_alive = alive;
    }

    /// A stranger removes all slots.
    pub(super) fn forget_slots(&mut self) {
        let slots = std::mem::take(&mut self.state.slots);
        self.forgotten.extend(slots.into_keys());
    }

    /// Somebody writes to or removes from the policy with this number, which may be nobody's.
    pub(super) fn meddle(&mut self, number: u32, removes: bool) {
        if removes {
            self.policies.remove(&number);
        } else {
            let rules = vec!["a stranger's".to_owned()];
            let policy = Policy {
                rules,
                ..Policy::default()
            };
            self.policies.insert(number, policy);
        }
    }

    fn attach(&mut self, ifindex: u32, direction: Direction) -> Result<(), String> {
        if !self.devices_alive.contains(&ifindex) {
            return Err("the device is gone".into());
        }
        let slot = self.state.devices.get(&ifindex).map(|e| e.slot);
        let slot = slot.ok_or("a hook must not come before its entry")?;
        if direction == Direction::Ingress {
            assert!(
                self.adopted.contains(&slot),
                "dropped before flows are taken over"
            );
            self.by_sender.remove(&ifindex);
        }
        self.state
            .links
            .insert((ifindex, direction), LinkState::Good);
        Ok(())
    }

    fn attach_by_sender(&mut self, ifindex: u32) -> Result<(), String> {
        if !self.devices_alive.contains(&ifindex) {
            return Err("the device is gone".into());
        }
        let link = (ifindex, Direction::Ingress);
        self.state.links.insert(link, LinkState::BySender);
        self.by_sender.insert(ifindex);
        Ok(())
    }

    fn detach(&mut self, ifindex: u32, direction: Direction) {
        self.state.links.remove(&(ifindex, direction));
        if direction == Direction::Ingress {
            self.by_sender.remove(&ifindex);
        }
    }

    fn set_ways(&mut self, slot: u32, devices: &[u32]) -> Result<(), String> {
        let alive = |ifindex: &u32| self.devices_alive.contains(ifindex);
        if !devices.iter().all(alive) {
            return Err("the device is gone".into());
        }
        self.state.ways.insert(slot, devices.to_vec());
        Ok(())
    }

    fn swap(&mut self, ifindex: u32, direction: Direction, desired: &DesiredState) {
        if self.carried.devices.contains(&ifindex)
            && let Some(endpoint) = self.state.devices.get(&ifindex)
        {
            self.check_carried(endpoint, desired);
        }
        let link = (ifindex, direction);
        if self.state.links.insert(link, LinkState::Good) == Some(LinkState::BySender) {
            let slot = self.state.devices.get(&ifindex).map(|e| e.slot);
            assert!(
                slot.is_some_and(|slot| self.adopted.contains(&slot)),
                "dropped before flows are taken over"
            );
        }
        if direction == Direction::Ingress {
            self.by_sender.remove(&ifindex);
        }
    }

    fn attach_cgroup(&mut self, hook: CgroupHook, desired: &DesiredState) {
        assert!(self.state.config.is_some(), "a hook that knows no settings");
        for cgroup in &self.carried.cgroups {
            if let Some(endpoint) = self.state.cgroups.get(cgroup) {
                self.check_carried(endpoint, desired);
            }
        }
        self.state.cgroup_links.insert(hook, LinkState::Good);
    }

    fn fence(&mut self, op: &Op) {
        let fence = self.state.fence.get_or_insert_default();
        match op {
            Op::Fence { ifindex } => {
                assert!(fence.stands, "there is no fence to put it behind");
                fence.anywhere.insert(*ifindex);
            }
            Op::LetBy { ifindex } => {
                fence.anywhere.remove(ifindex);
            }
            Op::RaiseFence { devices } => {
                fence.anywhere.clone_from(devices);
                (fence.stands, fence.is_there) = (true, true);
            }
            _ => *fence = State::default(),
        }
        fence.devices.clone_from(&fence.anywhere);
    }

    /// Devices that the fence cuts off: what their hook passes is not marked, or they have none.
    fn cut_off(&self) -> BTreeSet<u32> {
        let behind = self.state.fence.iter().flat_map(|fence| &fence.anywhere);
        let passes = |ifindex: &u32| {
            let entry = self.state.devices.get(ifindex);
            let marked = entry.is_some_and(|entry| entry.flags & FLAG_FENCED != 0);
            marked && !self.state.shared.contains(ifindex) && {
                !self.by_sender.contains(ifindex) && self.is_hooked(*ifindex, Direction::Ingress)
            }
        };
        behind.copied().filter(|it| !passes(it)).collect()
    }

    /// In the node's network the NAT comes first.
    fn check_cut(&self, ifindex: u32, endpoint: &Endpoint, desired: &DesiredState) {
        let same = |old: &Endpoint| (old.mode, old.policy) == (endpoint.mode, endpoint.policy);
        if self.state.devices.get(&ifindex).is_some_and(same) {
            return;
        }
        let known = self.state.slots.get(&endpoint.slot);
        let policy = self.state.policies.get(&endpoint.policy);
        if let (Some(info), Some(policy)) = (known, policy)
            && endpoint.mode == MODE_ENFORCE
            && let Some(pod) = desired.pods.get(&text(&info.uid))
            && !pod.host_network
        {
            let ip = IpAddr::from(Ipv4Addr::from(endpoint.v4_be));
            assert!(
                self.cut.contains(&(ip, policy.digest)),
                "a policy opens a Service that has led its pod elsewhere"
            );
        }
    }

    /// One step, as the kernel would take it.
    fn carry_out(&mut self, op: &Op, desired: &DesiredState) -> Result<(), String> {
        let state = &mut self.state;
        match op {
            Op::SetConfig(config) => state.config = Some(*config),
            Op::SetPolicyInfo { number, info } => {
                state.policies.insert(*number, *info);
            }
            Op::WritePolicy { number, digest } => {
                let policy = desired.policies[digest].clone();
                // What a stranger has put there stays.
                if self.policies.get(number) == self.written.get(number) {
                    self.policies.insert(*number, policy.clone());
                }
                self.written.insert(*number, policy);
            }
            Op::MendPolicy { number, .. } => {
                let policy = self.written[number].clone();
                self.policies.insert(*number, policy);
            }
            Op::ClearPolicy { number } => {
                self.policies.remove(number);
                self.written.remove(number);
            }
            Op::RemovePolicyInfo { number } => {
                assert!(
                    !self.policies.contains_key(number),
                    "entries nobody finds again"
                );
                state.policies.remove(number);
            }
            Op::ZeroCounters { slot } => {
                self.zeroed.insert(*slot);
            }
            Op::SetPodInfo { slot, info } => {
                let same = state.slots.get(slot).is_some_and(|old| old.uid == info.uid);
                assert!(
                    same || self.zeroed.remove(slot),
                    "counters of the last owner"
                );
                state.slots.insert(*slot, **info);
                self.forgotten.remove(slot);
            }
            Op::RemovePodInfo { slot } => {
                state.slots.remove(slot);
                self.adopted.remove(slot);
                self.carried.slots.remove(slot);
            }
            Op::SetWays { slot, devices } => self.set_ways(*slot, devices)?,
            Op::SetDevice { ifindex, endpoint } => {
                self.check_cut(*ifindex, endpoint, desired);
                let state = &mut self.state;
                state.devices.insert(*ifindex, *endpoint);
                self.stale.remove(ifindex);
                // Of a pod that nobody declares any more it is the same entry again.
                if endpoint.policy != 0 {
                    self.carried.devices.remove(ifindex);
                }
            }
            Op::RemoveDevice { ifindex } => {
                state.devices.remove(ifindex);
                self.stale.remove(ifindex);
            }
            Op::SetCgroup { cgroup, endpoint } => {
                state.cgroups.insert(*cgroup, *endpoint);
                if endpoint.policy != 0 {
                    self.carried.cgroups.remove(cgroup);
                }
            }
            Op::RemoveCgroup { cgroup } => {
                state.cgroups.remove(cgroup);
            }
            Op::CutDiverted { pods } => self.cut.extend(pods.iter().map(|(ip, of)| (*ip, *of))),
            Op::AdoptFlows { slot, .. } => {
                self.adopted.insert(*slot);
            }
            Op::Attach { ifindex, direction } => self.attach(*ifindex, *direction)?,
            Op::AttachBySender { ifindex } => self.attach_by_sender(*ifindex)?,
            Op::Swap { ifindex, direction } => self.swap(*ifindex, *direction, desired),
            Op::Detach { ifindex, direction } => {
                self.detach(*ifindex, *direction);
            }
            Op::AttachCgroup(hook) | Op::SwapCgroup(hook) => self.attach_cgroup(*hook, desired),
            Op::Fence { .. } | Op::LetBy { .. } | Op::RaiseFence { .. } | Op::LowerFence => {
                self.fence(op);
            }
            Op::Carry { .. } => {}
            Op::RemoveLayout { layout } => {
                let mut links = state.links.values().chain(state.cgroup_links.values());
                assert!(
                    links.all(|link| *link != LinkState::OldProgram),
                    "a hook that stands has gone with its layout"
                );
                state.layouts.remove(layout);
            }
        }
        Ok(())
    }
}

/// The digest of a test's policy: its first rule says it.
pub(super) fn digest(policy: &Policy) -> Digest {
    let name = policy.rules.first().map_or("", String::as_str);
    [name.parse().unwrap_or(0); 32]
}

impl Executor for Model {
    type Error = String;

    fn observe(&mut self, _: &DesiredState) -> Result<Observed, String> {
        let mut observed = self.state.clone();
        let entries = observed.cgroups.values();
        let covered = entries.filter(|entry| entry.flags & FLAG_COVERED != 0);
        let covered: BTreeSet<u32> = covered.map(|entry| entry.slot).collect();
        observed.ways.retain(|slot, _| covered.contains(slot));
        for number in self.policies.keys().chain(self.written.keys()) {
            let info = self.state.policies.get(number);
            let passing = info.is_some_and(|info| info.complete == 0);
            if !passing && self.policies.get(number) != self.written.get(number) {
                observed.damaged.insert(*number, ["sp_exact4"].into());
            }
        }
        Ok(observed)
    }

    fn execute(&mut self, op: &Op, desired: &DesiredState) -> Result<u64, String> {
        // What can't be ended of connections is told, and no failure.
        if self.fuel == 0 && !matches!(op, Op::CutDiverted { .. }) {
            if !self.crash {
                self.fuel = 2;
            }
            return Err("out of luck".into());
        }
        self.fuel = self.fuel.saturating_sub(1);
        let (open, cut_off) = (self.open(), self.cut_off());
        self.carry_out(op, desired)?;
        self.writes += 1;
        assert!(self.open().is_subset(&open), "{op} leaves a way out open");
        let kept = matches!(op, Op::RaiseFence { .. });
        assert!(
            kept || self.cut_off().is_subset(&cut_off),
            "{op} cuts a device off"
        );
        if let Err(broken) = self.check() {
            panic!("after {op}: {broken}\n{:#?}", self.state);
        }
        Ok(1)
    }
}
