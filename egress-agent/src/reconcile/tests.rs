//! Random histories against the model: crashes, failures, devices that come and go.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::maps::{
    Config, Endpoint, FLAG_COVERED, FLAG_FENCED, FLAG_HOST_NETWORK, MODE_AUDIT, MODE_ENFORCE,
    MODE_OFF,
};
use proptest::prelude::*;

use super::model::{Model, digest};
use super::{Coverage, Reconciler, status};
use crate::api::lockdown::OnDeny;
use crate::compile::{DesiredPod, DesiredState, Hold, Policy};
use crate::datapath::maps::text;
use crate::datapath::{CgroupHook, Direction, LinkState, Observed};
use crate::fence::State;
use crate::node::{Device, Sighting, Sightings};

const CONFIG: Config = Config {
    qos_cgroups: [0; 2],
    kubepods: 9,
    kubepods_level: 1,
    event_interval_ns: 1,
    event_burst: 1,
    unknown_mode: MODE_ENFORCE,
    pad: [0; 3],
};

/// One pod at one time.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is drawn by itself")]
struct PodNow {
    /// Its object is there.
    declared: bool,
    host_network: bool,
    hold: Hold,
    /// Which of some policies.
    policy: u8,
    /// Its cgroup is there.
    running: bool,
    /// Devices that lead to it, of those that live.
    devices: BTreeSet<u32>,
    uncoverable: bool,
}

#[derive(Clone, Debug)]
struct Moment {
    pods: Vec<PodNow>,
    alive: BTreeSet<u32>,
    /// Those of them that lead to another namespace; pods' devices do.
    outlying: BTreeSet<u32>,
    /// Operations that succeed, and whether the agent dies then.
    fuel: u32,
    crash: bool,
    /// The agent that begins now has other maps.
    other_layout: bool,
    /// Entries of these policies' numbers are changed by somebody else, or removed.
    meddled: Vec<(u32, bool)>,
    /// Devices on which somebody else's program sees what comes in, too.
    shared: BTreeSet<u32>,
    /// A stranger has taken down the fence.
    flushed: bool,
}

fn pod_now() -> impl Strategy<Value = PodNow> {
    (
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.15),
        prop_oneof![Just(Hold::Off), Just(Hold::Audit), Just(Hold::Enforce)],
        1_u8..4,
        prop::bool::weighted(0.85),
        prop::collection::btree_set(1_u32..7, 0..3),
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(declared, host_network, hold, policy, running, devices, uncoverable)| PodNow {
                declared,
                host_network,
                hold,
                policy,
                running,
                devices,
                uncoverable,
            },
        )
}

fn moment() -> impl Strategy<Value = Moment> {
    (
        prop::collection::vec(pod_now(), 4),
        prop::collection::btree_set(1_u32..7, 2..7),
        prop::collection::btree_set(1_u32..7, 0..7),
        prop_oneof![0_u32..40, Just(1000)],
        any::<bool>(),
        prop::bool::weighted(0.2),
        prop::collection::vec((0_u32..8, any::<bool>()), 0..3),
        prop::collection::btree_set(1_u32..7, 0..2),
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(pods, alive, outlying, fuel, crash, other_layout, meddled, shared, flushed)| Moment {
                pods,
                alive,
                outlying,
                fuel,
                crash,
                other_layout,
                meddled,
                shared,
                flushed,
            },
        )
}

fn uid(index: usize) -> String {
    format!("uid-{index}")
}

/// This one is a static pod; `declared` is its mirror.
const STATIC: usize = 3;

fn cgroup(index: usize) -> u64 {
    100 + index as u64
}

impl Moment {
    fn desired(&self) -> DesiredState {
        let mut desired = DesiredState::default();
        for (index, now) in self.pods.iter().enumerate().filter(|(_, now)| now.declared) {
            let held = now.hold != Hold::Off;
            let policy = Policy {
                rules: vec![now.policy.to_string()],
                ..Policy::default()
            };
            let pod = DesiredPod {
                uid: uid(index),
                namespace: "ns".into(),
                name: format!("pod-{index}"),
                service_account: "default".into(),
                v4: Some([10, 0, 0, u8::try_from(index).unwrap()].into()),
                v6: None,
                host_network: now.host_network,
                node_access: vec![],
                gateway: false,
                hold: now.hold,
                on_deny: OnDeny::Drop,
                policy: held.then(|| digest(&policy)),
                lockdowns: vec![],
            };
            if held {
                desired.policies.insert(digest(&policy), policy);
            }
            desired.pods.insert(pod.uid.clone(), pod);
        }
        desired
    }

    fn sightings(&self) -> Sightings {
        let seen = |(index, now): (usize, &PodNow)| {
            let sighting = if now.running {
                Sighting {
                    cgroup: Some(cgroup(index)),
                    devices: now
                        .devices
                        .intersection(&self.alive)
                        .map(|ifindex| Device {
                            ifindex: *ifindex,
                            name: format!("veth{ifindex}"),
                        })
                        .collect(),
                    running: true,
                    uncoverable: now.uncoverable.then(|| "a tunnel".to_owned()),
                    ..Sighting::default()
                }
            } else {
                Sighting::default()
            };
            (uid(index), sighting)
        };
        let mut sightings: Sightings = self.pods.iter().enumerate().map(seen).collect();
        let devices = sightings.pods.values().flat_map(|pod| &pod.devices);
        let outlying = self.outlying.intersection(&self.alive).copied();
        sightings.outlying = devices.map(|it| it.ifindex).chain(outlying).collect();
        sightings.devices.clone_from(&self.alive);
        if self.pods.get(STATIC).is_some_and(|pod| pod.running) {
            sightings.statics = [(uid(STATIC), cgroup(STATIC))].into();
        }
        sightings
    }
}

/// What must be true when all is in step, told without the plan.
fn check_settled(moment: &Moment, observed: &Observed) -> Result<(), TestCaseError> {
    let slots: BTreeMap<String, u32> = observed
        .slots
        .iter()
        .map(|(slot, info)| (text(&info.uid), *slot))
        .collect();
    prop_assert_eq!(slots.len(), observed.slots.len(), "one slot a pod");
    prop_assert!(!observed.slots.contains_key(&0), "0 is nobody's");
    let sightings = moment.sightings();
    for (index, now) in moment.pods.iter().enumerate() {
        let slot = slots.get(&uid(index)).copied();
        let Some(entry) = observed.cgroups.get(&cgroup(index)) else {
            let known = now.declared || index == STATIC;
            prop_assert!(!(known && now.running), "pod {} has no entry", index);
            continue;
        };
        if index == STATIC && now.running && !now.declared && entry.mode == MODE_OFF {
            prop_assert_eq!(*entry, Endpoint::nobodys(MODE_OFF));
            continue;
        }
        prop_assert_eq!(Some(entry.slot), slot);
        if !now.declared || !now.running {
            continue;
        }
        let mode = match now.hold {
            Hold::Off => MODE_OFF,
            Hold::Audit => MODE_AUDIT,
            Hold::Enforce => MODE_ENFORCE,
        };
        prop_assert_eq!(entry.mode, mode);
        let named = observed.policies.get(&entry.policy).map(|info| info.digest);
        let wanted = (now.hold != Hold::Off).then_some([now.policy; 32]);
        prop_assert_eq!(named, wanted);
        prop_assert_eq!(entry.flags & FLAG_HOST_NETWORK != 0, now.host_network);
        let seen = &sightings.pods[&uid(index)].devices;
        let own = |ifindex: u32| {
            let device = observed.devices.get(&ifindex);
            device.is_some_and(|device| Some(device.slot) == slot)
        };
        if entry.flags & FLAG_COVERED != 0 {
            prop_assert!(now.hold != Hold::Off && !now.host_network && !now.uncoverable);
            prop_assert!(seen.iter().all(|device| own(device.ifindex)));
            let all = observed.devices.keys().copied();
            let all: Vec<u32> = all.filter(|ifindex| own(*ifindex)).collect();
            prop_assert!(!all.is_empty());
            prop_assert_eq!(entry.ways as usize, all.len());
            prop_assert_eq!(slot.and_then(|slot| observed.ways.get(&slot)), Some(&all));
        } else if now.hold != Hold::Off && !now.host_network && !now.uncoverable {
            let foreign = seen.iter().any(|device| !own(device.ifindex));
            prop_assert!(seen.is_empty() || foreign, "pod {} is not covered", index);
        }
        if now.hold != Hold::Off {
            for device in seen {
                prop_assert!(observed.devices.contains_key(&device.ifindex));
            }
        }
    }
    for (ifindex, endpoint) in &observed.devices {
        for direction in Direction::BOTH {
            prop_assert_eq!(observed.link(*ifindex, direction), Some(LinkState::Good));
        }
        prop_assert!(
            endpoint.mode != MODE_OFF,
            "who is not held has no device hook"
        );
        prop_assert!(moment.alive.contains(ifindex));
    }
    check_outlying(&sightings, &slots, observed)?;
    check_fence(observed)?;
    let mut used = observed.used_policies();
    used.remove(&0);
    let wanted = moment.desired().policies;
    for (number, info) in &observed.policies {
        let is_wanted = wanted.contains_key(&info.digest);
        prop_assert!(
            used.contains(number) || is_wanted,
            "policy {} is left",
            number
        );
    }
    prop_assert_eq!(observed.cgroup_links.len(), CgroupHook::ALL.len());
    prop_assert!(
        observed.layouts.is_empty(),
        "pins of another layout are left"
    );
    Ok(())
}

/// Behind the fence is who is enforced, unless somebody else could take the mark off.
fn check_fence(observed: &Observed) -> Result<(), TestCaseError> {
    let fence = observed.fence.as_ref().expect("the model has one");
    let mut behind = BTreeSet::new();
    for (ifindex, endpoint) in &observed.devices {
        let wanted = endpoint.mode == MODE_ENFORCE && !observed.shared.contains(ifindex);
        prop_assert_eq!(endpoint.flags & FLAG_FENCED != 0, wanted);
        behind.extend(wanted.then_some(*ifindex));
    }
    prop_assert_eq!(&fence.devices, &behind);
    prop_assert_eq!(&fence.anywhere, &behind);
    prop_assert_eq!(
        (fence.stands, fence.is_there),
        (!behind.is_empty(), !behind.is_empty())
    );
    Ok(())
}

/// On a device that may be a pod's, and is no known one's, the hook judges by the sender; elsewhere there
/// is none without its entry.
fn check_outlying(
    sightings: &Sightings,
    slots: &BTreeMap<String, u32>,
    observed: &Observed,
) -> Result<(), TestCaseError> {
    let known: BTreeSet<u32> = observed.devices.keys().copied().collect();
    let pods = sightings.pods.iter();
    let pods = pods.filter(|(uid, _)| slots.contains_key(*uid));
    let devices = pods.flat_map(|(_, pod)| &pod.devices);
    let claimed: BTreeSet<u32> = devices.map(|device| device.ifindex).collect();
    let unclaimed = sightings.outlying.difference(&claimed);
    let by_sender: BTreeSet<u32> = unclaimed
        .filter(|it| !known.contains(it))
        .copied()
        .collect();
    for ifindex in &by_sender {
        let link = |direction| observed.link(*ifindex, direction);
        prop_assert_eq!(link(Direction::Ingress), Some(LinkState::BySender));
        prop_assert_eq!(link(Direction::Egress), None);
    }
    let hooked: BTreeSet<u32> = observed.links.keys().map(|(index, _)| *index).collect();
    let wanted: BTreeSet<u32> = known.union(&by_sender).copied().collect();
    prop_assert_eq!(hooked, wanted);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// The model panics on any state between two operations that leaks or breaks; see there.
    #[test]
    fn any_history_ends_in_the_desired_state(
        moments in prop::collection::vec(moment(), 1..8)
    ) {
        let mut reconciler = Reconciler::new(Model::fenced());
        for (time, moment) in moments.iter().enumerate() {
            let (desired, sightings) = (moment.desired(), moment.sightings());
            let model = &mut reconciler.executor;
            model.set_alive(moment.alive.clone());
            if moment.other_layout {
                model.change_layout();
            }
            model.state.shared.clone_from(&moment.shared);
            if moment.flushed {
                model.state.fence = Some(State::default());
            }
            for (number, removes) in &moment.meddled {
                model.meddle(*number, *removes);
            }
            (model.fuel, model.crash) = (moment.fuel, moment.crash);
            // As far as it gets.
            let now_ns = time as u64 + 1;
            reconciler.reconcile(&desired, &sightings, CONFIG, now_ns).unwrap();
            reconciler.executor.fuel = u32::MAX;
            if moment.crash && time + 1 < moments.len() {
                // The world goes on before the agent is back.
                continue;
            }
            let report = reconciler.reconcile(&desired, &sightings, CONFIG, now_ns).unwrap();
            prop_assert_eq!(&report.failures, &[]);
            check_settled(moment, &report.observed)?;
            prop_assert_eq!(&reconciler.executor.policies, &reconciler.executor.written);
            let errors = report.errors();
            for pod in status(&desired, &sightings, &report.observed, &errors).pods {
                let entry = pod.cgroup.and_then(|cgroup| report.observed.cgroups.get(&cgroup));
                if let Some(entry) = entry {
                    let covered = entry.flags & FLAG_COVERED != 0;
                    prop_assert_eq!(covered, pod.coverage == Coverage::Covered, "{:?}", pod);
                }
            }
            let writes = reconciler.executor.writes;
            let report = reconciler.reconcile(&desired, &sightings, CONFIG, now_ns + 9).unwrap();
            prop_assert_eq!(report.writes, 0);
            prop_assert_eq!(reconciler.executor.writes, writes);
        }
    }
}

fn one(hold: Hold, devices: &[u32]) -> Moment {
    let pod = PodNow {
        declared: true,
        host_network: false,
        hold,
        policy: 1,
        running: true,
        devices: devices.iter().copied().collect(),
        uncoverable: false,
    };
    Moment {
        pods: vec![pod],
        alive: (1..7).collect(),
        outlying: BTreeSet::new(),
        fuel: u32::MAX,
        crash: false,
        other_layout: false,
        meddled: vec![],
        shared: BTreeSet::new(),
        flushed: false,
    }
}

fn settle(reconciler: &mut Reconciler<Model>, moment: &Moment) -> Observed {
    let model = &mut reconciler.executor;
    model.set_alive(moment.alive.clone());
    model.fuel = u32::MAX;
    let report = reconciler.reconcile(&moment.desired(), &moment.sightings(), CONFIG, 1);
    let report = report.unwrap();
    assert_eq!(report.failures, []);
    report.observed
}

#[test]
fn a_device_stays_the_pods_when_its_other_end_is_moved_away() {
    let mut reconciler = Reconciler::new(Model::fenced());
    settle(&mut reconciler, &one(Hold::Enforce, &[3]));
    let mut moved = one(Hold::Enforce, &[]);
    let observed = settle(&mut reconciler, &moved);
    assert!(observed.is_covered(3));
    // Also when another pod has that end now.
    moved.pods.push(one(Hold::Audit, &[3]).pods.remove(0));
    let observed = settle(&mut reconciler, &moved);
    assert_eq!(observed.devices[&3].mode, MODE_ENFORCE);
    assert_eq!(observed.cgroups[&cgroup(1)].flags & FLAG_COVERED, 0);
    // Until the device has gone.
    moved.alive.remove(&3);
    let observed = settle(&mut reconciler, &moved);
    assert!(observed.devices.is_empty() && observed.links.is_empty());
}

#[test]
fn a_held_pod_without_an_object_stays_held_while_it_runs() {
    let mut reconciler = Reconciler::new(Model::fenced());
    let mut moment = one(Hold::Enforce, &[3]);
    let held = settle(&mut reconciler, &moment);
    moment.pods[0].declared = false;
    assert_eq!(settle(&mut reconciler, &moment), held);
    moment.pods[0].running = false;
    let observed = settle(&mut reconciler, &moment);
    assert!(observed.slots.is_empty() && observed.devices.is_empty());
    assert!(observed.cgroups.is_empty() && observed.policies.is_empty());
}

#[test]
fn the_gate_stays_open_until_every_known_pod_has_its_entry() {
    let mut reconciler = Reconciler::new(Model::fenced());
    let moment = one(Hold::Enforce, &[3]);
    reconciler.executor.set_alive(moment.alive.clone());
    // Enough for the settings and a part of the policy.
    (reconciler.executor.fuel, reconciler.executor.crash) = (2, true);
    let report = reconciler.reconcile(&moment.desired(), &moment.sightings(), CONFIG, 1);
    let report = report.unwrap();
    assert!(!report.in_sync());
    assert!(report.observed.cgroup_links.is_empty());
    let observed = settle(&mut reconciler, &moment);
    assert_eq!(observed.cgroup_links.len(), CgroupHook::ALL.len());
}

#[test]
fn a_device_is_judged_by_the_sender_until_it_is_somebodys() {
    let mut reconciler = Reconciler::new(Model::fenced());
    let mut moment = one(Hold::Enforce, &[]);
    moment.outlying = [3, 4].into();
    let ingress = |observed: &Observed, ifindex| observed.link(ifindex, Direction::Ingress);
    let observed = settle(&mut reconciler, &moment);
    for ifindex in [3, 4] {
        assert_eq!(ingress(&observed, ifindex), Some(LinkState::BySender));
    }
    assert!(observed.devices.is_empty());
    // One turns out to be the held pod's: no moment without a hook, the model says.
    moment.pods[0].devices = [3].into();
    let observed = settle(&mut reconciler, &moment);
    assert!(observed.is_covered(3) && observed.devices[&3].mode == MODE_ENFORCE);
    // The other is one's that nobody holds.
    moment.pods.push(one(Hold::Off, &[4]).pods.remove(0));
    let observed = settle(&mut reconciler, &moment);
    assert_eq!(ingress(&observed, 4), None);
    // Who is known no more leaves a device that may be another's.
    moment.pods[1].running = false;
    moment.pods[1].declared = false;
    let observed = settle(&mut reconciler, &moment);
    assert_eq!(ingress(&observed, 4), Some(LinkState::BySender));
    assert!(!observed.devices.contains_key(&4));
}

#[test]
fn with_its_device_a_pods_way_past_the_cgroup_hook_goes() {
    let mut reconciler = Reconciler::new(Model::fenced());
    let mut moment = one(Hold::Enforce, &[3, 4]);
    let observed = settle(&mut reconciler, &moment);
    assert_eq!(observed.cgroups[&cgroup(0)].passes_with(), 2);
    assert_eq!(observed.ways[&1], [3, 4]);
    // One goes: what the kernel takes out is enough for the pod to be judged at its cgroup.
    moment.alive.remove(&3);
    reconciler.executor.set_alive(moment.alive.clone());
    assert_eq!(reconciler.executor.state.ways[&1], [4]);
    let observed = settle(&mut reconciler, &moment);
    assert_eq!(observed.cgroups[&cgroup(0)].passes_with(), 1);
    assert_eq!(observed.ways[&1], [4]);
    // Somebody takes it out: it is put back.
    reconciler.executor.state.ways.clear();
    assert_eq!(settle(&mut reconciler, &moment), observed);
    // More than are looked at.
    moment.alive = (1..=9).collect();
    moment.pods[0].devices = moment.alive.clone();
    let observed = settle(&mut reconciler, &moment);
    assert_eq!(observed.cgroups[&cgroup(0)].passes_with(), 0);
    assert!(
        moment
            .alive
            .iter()
            .all(|ifindex| observed.is_covered(*ifindex))
    );
    let seen = status(
        &moment.desired(),
        &moment.sightings(),
        &observed,
        &BTreeMap::new(),
    );
    assert_eq!(seen.pods[0].coverage, Coverage::Uncovered);
}

#[test]
fn the_fence_is_closed_for_enforced_devices_and_opens_before_their_hooks_go() {
    let mut reconciler = Reconciler::new(Model::fenced());
    let behind = |observed: &Observed| observed.fence.clone().expect("the model has one").devices;
    let mut moment = one(Hold::Audit, &[3]);
    let observed = settle(&mut reconciler, &moment);
    assert_eq!(observed.fence, Some(State::default()));
    moment.pods[0].hold = Hold::Enforce;
    moment.pods.push(one(Hold::Enforce, &[4]).pods.remove(0));
    let observed = settle(&mut reconciler, &moment);
    assert_eq!(behind(&observed), [3, 4].into());
    // A stranger comes before the hook: it stays closed until ours is first, and then it must open.
    let model = &mut reconciler.executor.state;
    model.shared = [3].into();
    let ingress = (3, Direction::Ingress);
    model.links.insert(ingress, LinkState::Displaced);
    assert_eq!(behind(&settle(&mut reconciler, &moment)), [4].into());
    reconciler.executor.state.shared.clear();
    // A stray one, of a device that was nobody's.
    let fence = reconciler.executor.state.fence.as_mut().expect("one");
    fence.anywhere.insert(99);
    assert_eq!(behind(&settle(&mut reconciler, &moment)), [3, 4].into());
    // The last ones go: the model says in which order.
    moment.pods[0].hold = Hold::Off;
    moment.pods[1].hold = Hold::Audit;
    let observed = settle(&mut reconciler, &moment);
    assert_eq!(observed.fence, Some(State::default()));
}

#[test]
fn a_pod_keeps_its_slot_and_flows_when_somebody_removes_what_is_known_of_it() {
    let mut reconciler = Reconciler::new(Model::fenced());
    let mut moment = one(Hold::Enforce, &[3]);
    moment.pods.push(one(Hold::Enforce, &[4]).pods.remove(0));
    let before = settle(&mut reconciler, &moment);
    // All at once: each must find its own, not the first that is free. A new one gets none of theirs.
    reconciler.executor.forget_slots();
    moment.pods.push(one(Hold::Enforce, &[5]).pods.remove(0));
    let report = reconciler.reconcile(&moment.desired(), &moment.sightings(), CONFIG, 9);
    let after = report.unwrap().observed;
    let slots = &reconciler.executor.state.slots;
    for entry in 0..2 {
        let (before, after) = (
            &before.cgroups[&cgroup(entry)],
            &after.cgroups[&cgroup(entry)],
        );
        assert_eq!(after.slot, before.slot);
        assert_eq!((before.since_ns, after.since_ns), (1, 1), "flows are older");
        assert_eq!(slots[&after.slot].since_ns, 1);
    }
    assert_eq!(after.cgroups[&cgroup(2)].since_ns, 9);
}
