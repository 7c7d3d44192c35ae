//! Loading, pinning, attaching and reconciling on this machine's kernel, in namespaces of its
//! own. Needs root; `SALLYPORT_SKIP_ROOT_TESTS=1` leaves it out by name.

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::Ebpf;
use aya::programs::tc::{SchedClassifier, SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, TcAttachType, links::FdLink, links::PinnedLink};
use egress_agent::api::lockdown::OnDeny;
use egress_agent::compile::{DesiredPod, DesiredState, Hold, Policy};
use egress_agent::datapath::{
    Adopt, CgroupHook, Datapath, DatapathError, DeviceHooks, Direction, Kernel, LinkState, loader,
    object,
};
use egress_agent::node::{Device, Sighting, Sightings};
use egress_agent::reconcile::{Coverage, Reconciler, Report, status};
use egress_common::maps::{
    Config, ExactRule, FLAG_COVERED, FlowKey, MODE_ENFORCE, NO_RULE, PortRange, PrefixRule,
};
use egress_common::reason::Reason;
use support::place::{Place, ip, isolated, isolated_by, states, veth};

fn start(place: &Place) -> Reconciler<Kernel> {
    let flows = Box::new(Flows { refreshed: false });
    Reconciler::new(Kernel::new(place.load(), flows))
}

/// Gives one flow each way to every pod.
struct Flows {
    refreshed: bool,
}

impl Adopt for Flows {
    fn refresh(&mut self) {
        self.refreshed = true;
    }

    fn flows(
        &mut self,
        slot: u32,
        v4: Option<Ipv4Addr>,
        _v6: Option<Ipv6Addr>,
    ) -> (Vec<FlowKey>, Vec<FlowKey>) {
        assert!(
            self.refreshed,
            "conntrack is read after the egress hook stands"
        );
        let key = |port: u16| FlowKey {
            slot,
            peer_be: v4.unwrap().to_ipv6_mapped().octets(),
            peer_port_be: port.to_be_bytes(),
            pod_port_be: [0, 80],
            proto: 6,
            version: 4,
            pad: [0; 2],
        };
        (vec![key(1)], vec![key(2)])
    }

    fn cut(&mut self, _: &BTreeMap<IpAddr, [u8; 32]>, _: &DesiredState) -> u64 {
        0
    }
}

/// Another program, attached before ours, in maps of its own.
fn stranger(place: &Place, device: &str) -> (Ebpf, SchedClassifierLink) {
    let mut other = loader()
        .unwrap()
        .default_map_pin_directory(place.other_maps())
        .load(object(DeviceHooks::Tcx).unwrap())
        .unwrap();
    let program: &mut SchedClassifier = other.program_mut("sp_empty").unwrap().try_into().unwrap();
    program.load().unwrap();
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(device, TcAttachType::Ingress, first)
        .unwrap();
    let link = program.take_link(id).unwrap();
    (other, link)
}

#[test]
fn needs_root_hooks_are_pinned_found_again_and_keep_their_place() {
    isolated("hooks", |place| {
        let ifindex = veth("pod0");
        let mut datapath = place.load();
        for direction in Direction::BOTH {
            datapath.attach(ifindex, direction).unwrap();
        }
        let good = [Some(LinkState::Good); 2];
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), good);

        // A restart finds them by the tag of their programs.
        drop(datapath);
        let mut datapath = place.load();
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), good);

        // Somebody comes before us, again and again; each time we come first again.
        let mut others = Vec::new();
        for count in 1..=3 {
            others.push(stranger(place, "pod0"));
            let found = states(&datapath.observe().unwrap(), ifindex);
            assert_eq!(found, [Some(LinkState::Displaced), Some(LinkState::Good)]);
            datapath.attach(ifindex, Direction::Ingress).unwrap();
            assert_eq!(states(&datapath.observe().unwrap(), ifindex), good);
            let (_, programs) = SchedClassifier::query_tcx("pod0", TcAttachType::Ingress).unwrap();
            assert_eq!(programs[0].name_as_str().unwrap(), "sp_from_pod");
            assert_eq!(programs.len(), 1 + count, "ours once, theirs each");
        }

        // Taken off and put on at once: the kernel would not take the same program twice.
        for direction in Direction::BOTH {
            for _ in 0..50 {
                assert!(datapath.detach(ifindex, direction).unwrap());
                datapath.attach(ifindex, direction).unwrap();
            }
        }
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), good);

        ip("link del pod0");
        let gone = [Some(LinkState::Gone); 2];
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), gone);
        for direction in Direction::BOTH {
            assert!(datapath.detach(ifindex, direction).unwrap());
            assert!(!datapath.detach(ifindex, direction).unwrap());
        }
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), [None; 2]);
    });
}

#[test]
fn needs_root_a_link_of_another_version_gets_our_program_without_a_new_link() {
    isolated("swap", |place| {
        let ifindex = veth("pod0");
        let mut datapath = place.load();
        datapath.attach(ifindex, Direction::Egress).unwrap();
        let (_other, link) = stranger(place, "pod0");
        let link = FdLink::try_from(link).unwrap();
        let path = datapath.pins().device_link(ifindex, Direction::Ingress);
        let id = link.info().unwrap().id();
        link.pin(&path).unwrap();
        let found = states(&datapath.observe().unwrap(), ifindex);
        assert_eq!(found, [Some(LinkState::OldProgram), Some(LinkState::Good)]);

        datapath.swap(ifindex, Direction::Ingress).unwrap();
        let found = states(&datapath.observe().unwrap(), ifindex);
        assert_eq!(found, [Some(LinkState::Good); 2]);
        let link = FdLink::from(PinnedLink::from_pin(&path).unwrap());
        assert_eq!(link.info().unwrap().id(), id, "the link is the same");
    });
}

#[test]
fn needs_root_a_pinned_map_of_another_layout_is_refused_by_name() {
    isolated("layout", |place| {
        let datapath = place.load();
        let path = datapath.pins().map("sp_devices");
        let other = datapath.pins().open_map("sp_cgroups").unwrap();
        drop(datapath);
        std::fs::remove_file(&path).unwrap();
        // The same type in another size: a hash whose keys are 8 bytes.
        other.pin(&path).unwrap();
        let error = place.load_by(place.hooks).unwrap_err();
        assert!(matches!(error, DatapathError::MapLayout { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("sp_devices"), "{text}");
        assert!(
            text.contains("key 8 B") && text.contains("key 4 B"),
            "{text}"
        );
    });
}

#[test]
fn needs_root_a_directory_that_is_no_bpffs_is_refused() {
    isolated("bpffs", |place| {
        let plain = tempfile::tempdir().unwrap();
        let result = Datapath::load(plain.path(), place.hooks, (&place.cgroup, 1));
        let error = result.unwrap_err();
        assert!(matches!(error, DatapathError::NotBpffs { .. }), "{error}");
    });
}

const CONFIG: Config = Config {
    qos_cgroups: [0; 2],
    kubepods: 0,
    kubepods_level: 1,
    event_interval_ns: 1_000_000,
    event_burst: 10,
    unknown_mode: MODE_ENFORCE,
    pad: [0; 3],
};

fn policy(addresses: u16) -> Policy {
    let rule = ExactRule {
        rule: 0,
        reason: Reason::Gateway as u8,
        pad: 0,
    };
    let range = PortRange {
        first: 0,
        last: 65535,
        rule: 0,
        proto: 0,
        reason: Reason::Cluster as u8,
    };
    let prefix = PrefixRule {
        count: 1,
        deny: Reason::NotAllowed as u8,
        deny_rule: NO_RULE,
        ranges: [range; 16],
    };
    Policy {
        rules: vec!["EgressLockdown/test allow.cluster".into()],
        exact4: (0..addresses)
            .map(|port| ((Ipv4Addr::new(10, 0, 0, 9), port, 6), rule))
            .collect(),
        exact6: BTreeMap::from([((Ipv6Addr::LOCALHOST, 53, 17), rule)]),
        prefix4: BTreeMap::from([("10.1.0.0/16".parse().unwrap(), prefix)]),
        prefix6: BTreeMap::from([("fd00::/48".parse().unwrap(), prefix)]),
    }
}

fn pod(uid: &str, digest: Option<[u8; 32]>) -> DesiredPod {
    DesiredPod {
        uid: uid.into(),
        namespace: "bookinfo".into(),
        name: format!("pod-{uid}"),
        service_account: "default".into(),
        v4: Some(Ipv4Addr::new(10, 1, 0, 2)),
        v6: None,
        host_network: false,
        node_access: vec![],
        gateway: false,
        hold: digest.map_or(Hold::Off, |_| Hold::Enforce),
        on_deny: OnDeny::Drop,
        policy: digest,
        lockdowns: vec!["test".into()],
    }
}

fn desired(pods: &[DesiredPod], policies: &[([u8; 32], Policy)]) -> DesiredState {
    DesiredState {
        pods: pods.iter().map(|p| (p.uid.clone(), p.clone())).collect(),
        policies: policies.iter().cloned().collect(),
        ..DesiredState::default()
    }
}

fn sighting(cgroup: u64, ifindex: Option<u32>) -> Sighting {
    let device = |ifindex| Device {
        ifindex,
        name: "pod0".into(),
    };
    Sighting {
        cgroup: Some(cgroup),
        devices: ifindex.map(device).into_iter().collect(),
        running: true,
        ..Sighting::default()
    }
}

fn reconcile(
    reconciler: &mut Reconciler<Kernel>,
    desired: &DesiredState,
    sightings: &Sightings,
) -> Report {
    let report = reconciler.reconcile(desired, sightings, CONFIG, 1).unwrap();
    assert_eq!(report.failures, []);
    report
}

#[test]
fn needs_root_the_kernel_follows_the_desired_state_and_rests() {
    follows(DeviceHooks::best());
}

#[test]
fn needs_root_the_kernel_follows_by_clsact_too() {
    follows(DeviceHooks::Clsact);
}

fn follows(hooks: DeviceHooks) {
    isolated_by(hooks, "reconcile", |place| {
        let ifindex = veth("pod0");
        let mut reconciler = start(place);
        let (one, two) = ([1; 32], [2; 32]);
        let held = desired(
            &[pod("a", Some(one)), pod("b", None)],
            &[(one, policy(5000))],
        );
        let sightings = Sightings::from_iter([
            ("a".to_owned(), sighting(1001, Some(ifindex))),
            ("b".to_owned(), sighting(1002, None)),
        ]);
        let report = reconcile(&mut reconciler, &held, &sightings);
        assert!(report.writes > 5000);
        assert!(report.observed.is_covered(ifindex));
        assert_eq!(report.observed.cgroup_links.len(), CgroupHook::ALL.len());
        let maps = &reconciler.executor.datapath.maps;
        assert_eq!(maps.read_policy(1).unwrap(), policy(5000));
        assert_eq!(maps.flows_in.entries().unwrap().len(), 1);
        assert_eq!(maps.flows_out.entries().unwrap().len(), 1);
        let entry = maps.cgroups.get(&1001).unwrap().unwrap();
        assert_eq!((entry.flags, entry.mode), (FLAG_COVERED, MODE_ENFORCE));
        let seen = status(&held, &sightings, &report.observed, &report.errors());
        assert_eq!(seen.pods[0].coverage, Coverage::Covered);
        assert_eq!(seen.pods[1].coverage, Coverage::NotHeld);

        // Nothing changes: nothing is written, by this agent or the one after it.
        assert_eq!(reconcile(&mut reconciler, &held, &sightings).writes, 0);
        drop(reconciler);
        let mut reconciler = start(place);
        let again = reconcile(&mut reconciler, &held, &sightings);
        assert_eq!(again.writes, 0);
        assert_eq!(again.observed, report.observed);

        // Another policy: the pod is flipped, and nothing of the old is left.
        let changed = desired(&[pod("a", Some(two)), pod("b", None)], &[(two, policy(3))]);
        let report = reconcile(&mut reconciler, &changed, &sightings);
        let maps = &reconciler.executor.datapath.maps;
        assert_eq!(report.observed.policies.keys().collect::<Vec<_>>(), [&2]);
        assert_eq!(maps.exact4.keys().unwrap().len(), 3);
        assert_eq!(maps.prefix4.keys().unwrap().len(), 1);
        assert_eq!(maps.rule_info.keys().unwrap().len(), 1);
        assert_eq!(maps.read_policy(2).unwrap(), policy(3));

        // The pod is let go, then gone.
        let free = desired(&[pod("a", None), pod("b", None)], &[]);
        let report = reconcile(&mut reconciler, &free, &sightings);
        assert_eq!(states(&report.observed, ifindex), [None; 2]);
        assert!(report.observed.devices.is_empty());
        assert!(report.observed.policies.is_empty());
        let none = desired(&[], &[]);
        let report = reconcile(&mut reconciler, &none, &Sightings::default());
        assert!(report.observed.slots.is_empty() && report.observed.cgroups.is_empty());
        assert_eq!(report.observed.cgroup_links.len(), CgroupHook::ALL.len());

        let pins = reconciler.executor.datapath.pins().clone();
        assert!(pins.remove().unwrap() > CgroupHook::ALL.len());
        assert!(!pins.root().exists());
    });
}

#[test]
fn needs_root_a_device_that_can_not_be_hooked_leaves_its_pod_to_the_cgroup_hook() {
    leaves_to_the_cgroup_hook(DeviceHooks::best());
}

#[test]
fn needs_root_one_that_clsact_can_not_hook_is_left_to_it_too() {
    leaves_to_the_cgroup_hook(DeviceHooks::Clsact);
}

fn leaves_to_the_cgroup_hook(hooks: DeviceHooks) {
    isolated_by(hooks, "uncovered", |place| {
        let mut reconciler = start(place);
        let held = desired(&[pod("a", Some([1; 32]))], &[([1; 32], policy(1))]);
        let sightings = Sightings::from_iter([("a".to_owned(), sighting(1001, Some(4_000_000)))]);
        let report = reconciler.reconcile(&held, &sightings, CONFIG, 1).unwrap();
        assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
        let entry = report.observed.cgroups[&1001];
        assert_eq!((entry.flags, entry.mode), (0, MODE_ENFORCE));
        assert_ne!(entry.policy, 0);
        let seen = status(&held, &sightings, &report.observed, &report.errors());
        assert_eq!(seen.uncovered().count(), 1);
        let reason = seen.pods[0].reason.as_deref().unwrap();
        assert!(reason.contains("the device is gone"), "{reason}");
    });
}
