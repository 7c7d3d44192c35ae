//! Hooks on devices as filters of a clsact qdisc, on this machine's kernel, in namespaces of their
//! own. Needs root; `SALLYPORT_SKIP_ROOT_TESTS=1` leaves it out by name.

mod support;

use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{HashMap, PerCpuArray};
use aya::programs::SchedClassifier;
use aya::programs::TcAttachType;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions};
use egress_agent::datapath::{DeviceHooks, Direction, LinkState, loader, object};
use egress_common::Reason;
use egress_common::maps::{Endpoint, PodCounters, name};
use serde_json::Value;
use support::place::{Place, ip, isolated_by, states, system, veth};
use support::policy;

const GOOD: [Option<LinkState>; 2] = [Some(LinkState::Good); 2];

fn isolated(name: &'static str, test: impl FnOnce(&Place) + Send + 'static) {
    isolated_by(DeviceHooks::Clsact, name, test);
}

/// Programs of somebody else's, in maps of their own.
fn strangers(place: &Place) -> Ebpf {
    loader()
        .unwrap()
        .default_map_pin_directory(place.other_maps())
        .load(object(DeviceHooks::Clsact).unwrap())
        .unwrap()
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
    program.load().unwrap();
    program
}

/// One of them as a filter, which is there as long as what is returned.
fn stranger(place: &Place, name: &str, priority: u16) -> (Ebpf, SchedClassifierLink) {
    let mut other = strangers(place);
    let program = classifier(&mut other, name);
    let options = TcAttachOptions::Netlink(NlOptions {
        priority,
        ..NlOptions::default()
    });
    let id = program
        .attach_with_options("pod0", TcAttachType::Ingress, options)
        .unwrap();
    let link = program.take_link(id).unwrap();
    (other, link)
}

/// The filters on what comes from the pod, in the order in which they run.
fn filters() -> Vec<Value> {
    let text = system("tc", "-s -j filter show dev pod0 ingress");
    if text.trim().is_empty() {
        return Vec::new();
    }
    let listed: Vec<Value> = serde_json::from_str(&text).unwrap();
    let filters = listed.into_iter();
    filters.filter(|it| !it["options"].is_null()).collect()
}

fn names() -> Vec<String> {
    let name = |filter: &Value| filter["options"]["bpf_name"].as_str().unwrap().to_owned();
    filters().iter().map(name).collect()
}

fn has_clsact() -> bool {
    system("tc", "qdisc show dev pod0").contains("clsact")
}

#[test]
fn needs_root_filters_are_found_again_and_keep_their_place() {
    isolated("filters", |place| {
        let ifindex = veth("pod0");
        let mut datapath = place.load();
        for direction in Direction::BOTH {
            datapath.attach(ifindex, direction).unwrap();
        }
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), GOOD);

        // They stand without an agent, and a restart finds them by the tag of their programs.
        drop(datapath);
        assert_eq!(names(), ["sp_from_pod"]);
        let mut datapath = place.load();
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), GOOD);

        // Somebody comes before us, again and again; each time we come first again.
        let mut others = Vec::new();
        for count in 1..=3 {
            others.push(stranger(place, "sp_empty", 1));
            let found = states(&datapath.observe().unwrap(), ifindex);
            assert_eq!(found, [Some(LinkState::Displaced), Some(LinkState::Good)]);
            datapath.attach(ifindex, Direction::Ingress).unwrap();
            assert_eq!(states(&datapath.observe().unwrap(), ifindex), GOOD);
            let names = names();
            assert_eq!(names[0], "sp_from_pod");
            assert_eq!(names.len(), 1 + count, "ours once, theirs each: {names:?}");
        }
        // One of a later priority is none before us.
        others.push(stranger(place, "sp_empty", 7));
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), GOOD);

        // Taken off and put on at once, beside theirs.
        for direction in Direction::BOTH {
            for _ in 0..20 {
                assert!(datapath.detach(ifindex, direction).unwrap());
                datapath.attach(ifindex, direction).unwrap();
            }
        }
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), GOOD);
        assert_eq!(names().len(), 5);

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
fn needs_root_a_deleted_filter_or_qdisc_is_seen_and_put_back() {
    isolated("deleted", |place| {
        let ifindex = veth("pod0");
        let mut datapath = place.load();
        for direction in Direction::BOTH {
            datapath.attach(ifindex, direction).unwrap();
        }
        system("tc", "filter del dev pod0 ingress pref 1");
        let found = states(&datapath.observe().unwrap(), ifindex);
        assert_eq!(found, [Some(LinkState::Gone), Some(LinkState::Good)]);
        datapath.attach(ifindex, Direction::Ingress).unwrap();
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), GOOD);

        system("tc", "qdisc del dev pod0 clsact");
        let found = states(&datapath.observe().unwrap(), ifindex);
        assert_eq!(found, [Some(LinkState::Gone); 2]);
        for direction in Direction::BOTH {
            datapath.attach(ifindex, direction).unwrap();
        }
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), GOOD);

        // A mark that is gone: the filter stands, and gets a mark again, and no second filter.
        std::fs::remove_file(datapath.pins().device_link(ifindex, Direction::Ingress)).unwrap();
        let found = states(&datapath.observe().unwrap(), ifindex);
        assert_eq!(found, [None, Some(LinkState::Good)]);
        datapath.attach(ifindex, Direction::Ingress).unwrap();
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), GOOD);
        assert_eq!(names(), ["sp_from_pod"]);
    });
}

#[test]
fn needs_root_the_end_leaves_what_others_have_and_nothing_else() {
    isolated("end", |place| {
        let ifindex = veth("pod0");
        let mut datapath = place.load();
        let attach = |datapath: &mut egress_agent::datapath::Datapath| {
            for direction in Direction::BOTH {
                datapath.attach(ifindex, direction).unwrap();
            }
        };
        attach(&mut datapath);
        let other = stranger(place, "sp_empty", 3);
        assert!(datapath.pins().remove().unwrap() > 2);
        assert_eq!(names(), ["sp_empty"], "theirs is left");
        assert!(has_clsact(), "with what it hangs on");
        drop(other);
        system("tc", "qdisc del dev pod0 clsact");

        drop(datapath);
        let mut datapath = place.load();
        attach(&mut datapath);
        assert!(has_clsact());
        datapath.detach(ifindex, Direction::Ingress).unwrap();
        assert!(has_clsact(), "the other hook is there");
        datapath.detach(ifindex, Direction::Egress).unwrap();
        assert!(!has_clsact(), "nobody needs it");
    });
}

#[test]
fn needs_root_a_filter_of_another_version_gets_our_program_in_its_place() {
    isolated("version", |place| {
        let ifindex = veth("pod0");
        let mut datapath = place.load();
        for direction in Direction::BOTH {
            datapath.attach(ifindex, direction).unwrap();
        }
        let path = datapath.pins().device_link(ifindex, Direction::Ingress);
        let fact = |name: &str| filters()[0]["options"][name].clone();
        let (handle, program) = (fact("handle"), fact("prog"));
        drop(datapath);
        let datapath = place.load();
        // As if it had ended between giving the filter a program and marking it.
        let mut other = strangers(place);
        std::fs::remove_file(&path).unwrap();
        classifier(&mut other, "sp_empty").pin(&path).unwrap();
        let found = states(&datapath.observe().unwrap(), ifindex);
        assert_eq!(found, [Some(LinkState::OldProgram), Some(LinkState::Good)]);
        datapath.swap(ifindex, Direction::Ingress).unwrap();
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), GOOD);
        assert_eq!(filters().len(), 1);
        assert_eq!(fact("handle"), handle, "it is the same filter");
        assert_ne!(fact("prog"), program, "with another program");
    });
}

#[test]
fn needs_root_a_mark_that_another_layout_left_takes_no_filter_along() {
    isolated("left", |place| {
        let ifindex = veth("pod0");
        let mut datapath = place.load();
        for direction in Direction::BOTH {
            datapath.attach(ifindex, direction).unwrap();
        }
        let layout = "layout-0";
        let root = datapath.pins().root().with_file_name(layout);
        let own = datapath.pins().device_link(ifindex, Direction::Ingress);
        let mark = root.join("links").join(own.file_name().unwrap());
        std::fs::create_dir_all(mark.parent().unwrap()).unwrap();
        let mut other = strangers(place);
        classifier(&mut other, "sp_empty").pin(&mark).unwrap();
        datapath.remove_layout(layout).unwrap();
        assert!(!root.exists());
        assert_eq!(states(&datapath.observe().unwrap(), ifindex), GOOD);
    });
}

#[test]
fn needs_root_what_nothing_can_come_before_is_refused_in_words() {
    isolated("before", |place| {
        let ifindex = veth("pod0");
        let mut datapath = place.load();
        let mut other = strangers(place);
        let pin = place.bpffs.join("other");
        classifier(&mut other, "sp_empty").pin(&pin).unwrap();
        system("tc", "qdisc add dev pod0 clsact");
        let add = "filter add dev pod0 ingress pref 1 protocol ip bpf direct-action object-pinned";
        system("tc", &format!("{add} {}", pin.display()));
        let error = datapath.attach(ifindex, Direction::Ingress).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("of somebody else has priority 1"), "{error}");
        let found = states(&datapath.observe().unwrap(), ifindex);
        assert!(!found[0].is_some_and(LinkState::stands), "{found:?}");
        // Once it is out of the way it works.
        system("tc", "filter del dev pod0 ingress pref 1");
        datapath.attach(ifindex, Direction::Ingress).unwrap();
        let found = states(&datapath.observe().unwrap(), ifindex);
        assert_eq!(found[0], Some(LinkState::Good));

        // An "ingress" takes filters of both directions, and runs them on one.
        ip("link del pod0");
        let ifindex = veth("pod0");
        system("tc", "qdisc add dev pod0 ingress");
        for direction in Direction::BOTH {
            let error = datapath.attach(ifindex, direction).unwrap_err().to_string();
            assert!(error.contains("a qdisc ingress"), "{error}");
        }
        assert!(filters().is_empty());
    });
}

#[test]
fn needs_root_packets_pass_ours_and_then_the_filters_of_others() {
    isolated("pass", |place| {
        let ifindex = veth("pod0");
        let mut datapath = place.load();
        let slot = 9;
        let endpoint = Endpoint {
            slot,
            ..policy::endpoints()[0]
        };
        datapath.maps.devices.insert(&ifindex, &endpoint).unwrap();
        datapath.attach(ifindex, Direction::Ingress).unwrap();
        // The same program at a later priority is none of ours, and counts what it sees elsewhere.
        let (mut other, _link) = stranger(place, "sp_from_pod", 2);
        let devices = other.map_mut(name::DEVICES).unwrap();
        let mut devices = HashMap::<_, u32, Endpoint>::try_from(devices).unwrap();
        devices.insert(ifindex, endpoint, 0).unwrap();
        let counters = other.map(name::COUNTERS).unwrap();
        let counters = PerCpuArray::<_, PodCounters>::try_from(counters).unwrap();
        // A device that comes up looks for neighbours.
        ip("link set pod0p up");
        let neighbours = |counters: &[PodCounters]| -> u64 {
            let of = |cpu: &PodCounters| cpu.reasons[Reason::Neighbour as usize].packets;
            counters.iter().map(of).sum()
        };
        let theirs = || neighbours(&counters.get(&slot, 0).unwrap());
        let until = Instant::now() + Duration::from_secs(20);
        while theirs() == 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(theirs() > 0, "{:?}", filters());
        let ours = datapath.maps.counters.get(slot).unwrap();
        assert!(neighbours(&ours) > 0, "ours saw them");
        assert_eq!(states(&datapath.observe().unwrap(), ifindex)[0], GOOD[0]);
    });
}

/// Needs tcx as well, so it is not run on older kernels.
#[test]
fn needs_root_one_way_takes_over_from_the_other() {
    isolated("ways", |place| {
        let ifindex = veth("pod0");
        for (from, to) in [
            (DeviceHooks::Tcx, DeviceHooks::Clsact),
            (DeviceHooks::Clsact, DeviceHooks::Tcx),
        ] {
            let mut datapath = place.load_by(from).unwrap();
            for direction in Direction::BOTH {
                datapath.attach(ifindex, direction).unwrap();
            }
            drop(datapath);
            let datapath = place.load_by(to).unwrap();
            let found = states(&datapath.observe().unwrap(), ifindex);
            assert_eq!(found, [Some(LinkState::OldProgram); 2]);
            for direction in Direction::BOTH {
                datapath.swap(ifindex, direction).unwrap();
            }
            assert_eq!(states(&datapath.observe().unwrap(), ifindex), GOOD);
            let (_, tcx) = SchedClassifier::query_tcx("pod0", TcAttachType::Ingress).unwrap();
            let by_tcx = usize::from(to == DeviceHooks::Tcx);
            assert_eq!((tcx.len(), filters().len()), (by_tcx, 1 - by_tcx));
            for direction in Direction::BOTH {
                assert!(datapath.detach(ifindex, direction).unwrap());
            }
        }
    });
}
