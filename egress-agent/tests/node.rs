//! Discovery on the real kernel: cgroups, network namespaces, devices, connections.

use std::fs;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use egress_agent::node::conntrack::{self, StandingFlow, StandingFlows};
use egress_agent::node::{Kubepods, Scout, Watcher, cgroups};

#[path = "node/world.rs"]
mod world;
use world::{World, enter_cgroup, have_root, in_namespace, inside, ip, nft, remove, veth};

const UID: &str = "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0";
const OTHER: &str = "1b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0";

fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

#[test]
fn needs_root_a_pod_is_seen_with_its_cgroup_and_devices() {
    if !have_root("needs_root_a_pod_is_seen_with_its_cgroup_and_devices") {
        return;
    }
    let mut world = World::new();
    let kubepods = world.kubepods();
    assert_eq!(kubepods.level().unwrap(), 2);
    let burstable = cgroups::cgroup_id(&world.root.join("kubepods/burstable")).unwrap();
    assert_eq!(kubepods.qos_ids().unwrap(), [0, burstable]);
    let mut scout = Scout::new(kubepods).unwrap();

    let none = scout.sight([UID]).unwrap().pods;
    assert_eq!((none[UID].cgroup, none[UID].running), (None, false));

    world.pod_cgroup(UID);
    let empty = scout.sight([UID]).unwrap().pods.remove(UID).unwrap();
    let dir = world.pod_dir(UID);
    assert_eq!(empty.cgroup, Some(cgroups::cgroup_id(&dir).unwrap()));
    assert_eq!(empty.cgroup_path, Some(dir));
    assert!(!empty.running && empty.uncoverable.is_none(), "{empty:?}");

    let pid = world.pod(UID);
    let bare = scout.sight([UID]).unwrap().pods.remove(UID).unwrap();
    assert!(bare.running && bare.devices.is_empty());
    assert!(
        bare.uncoverable
            .unwrap()
            .contains("no device of the node leads to")
    );

    veth("one", pid, "eth0");
    let other = world.pod(OTHER);
    veth("two", other, "eth0");
    let seen = scout.sight([UID, OTHER]).unwrap().pods;
    for (uid, name) in [(UID, "one"), (OTHER, "two")] {
        let devices: Vec<_> = seen[uid]
            .devices
            .iter()
            .map(|device| (device.ifindex, device.name.as_str()))
            .collect();
        assert_eq!(devices, [(ifindex(name), name)]);
        assert_eq!(
            (seen[uid].uncoverable.as_deref(), seen[uid].host_network),
            (None, false)
        );
    }

    // A second interface, and a process that went to a namespace of its own.
    veth("three", pid, "net1");
    let second = world.process();
    enter_cgroup(&world.pod_dir(UID).join("container"), second);
    veth("four", second, "eth0");
    let seen = scout.sight([UID]).unwrap().pods.remove(UID).unwrap();
    let mut indexes: Vec<_> = ["one", "three", "four"].map(ifindex).to_vec();
    indexes.sort_unstable();
    let found: Vec<_> = seen.devices.iter().map(|device| device.ifindex).collect();
    assert_eq!((found, seen.uncoverable), (indexes, None));
}

#[test]
fn needs_root_what_cannot_be_covered_is_told() {
    if !have_root("needs_root_what_cannot_be_covered_is_told") {
        return;
    }
    let mut world = World::new();
    let mut scout = Scout::new(world.kubepods()).unwrap();
    let mut look = || scout.sight([UID, OTHER]).unwrap().pods;

    let pid = world.pod(UID);
    veth("one", pid, "eth0");
    ip(&[
        "link", "add", "lower", "type", "veth", "peer", "name", "upper",
    ]);
    let target = pid.to_string();
    ip(&[
        "link", "add", "link", "lower", "name", "net1", "netns", &target, "type", "macvlan",
    ]);
    let seen = look().remove(UID).unwrap();
    assert_eq!(seen.devices.len(), 1);
    let told = seen.uncoverable.unwrap();
    assert!(told.contains("net1 in it is a macvlan on lower"), "{told}");
    inside(pid, &["link", "del", "net1"]);
    assert_eq!(look()[UID].uncoverable, None);

    // A macvlan over the pod's own device goes through the hook.
    inside(
        pid,
        &[
            "link", "add", "link", "eth0", "name", "mv0", "type", "macvlan",
        ],
    );
    assert_eq!(look()[UID].uncoverable, None);

    // A way into a namespace that nobody answers for.
    let stranger = world.process();
    inside(
        pid,
        &[
            "link",
            "add",
            "out",
            "type",
            "veth",
            "peer",
            "name",
            "in",
            "netns",
            &stranger.to_string(),
        ],
    );
    let told = look()[UID].uncoverable.clone().unwrap();
    assert!(told.contains("neither the node's nor the pod's"), "{told}");
    inside(pid, &["link", "del", "out"]);

    let host = world.host_process();
    enter_cgroup(&world.pod_cgroup(OTHER), host);
    let seen = look();
    assert!(
        seen[OTHER].host_network && seen[OTHER].uncoverable.is_none(),
        "{:?}",
        seen[OTHER]
    );
    assert!(seen[OTHER].arriving, "it may yet be taken elsewhere");
    world::until(
        "who is still in the node's namespace is there to stay",
        || !look()[OTHER].arriving,
    );
    // One foot in the node, the other in a pod's namespace.
    enter_cgroup(&world.pod_cgroup(UID), host);
    let mut told = String::new();
    world::until("a process that stays in the node is told", || {
        told = look()[UID].uncoverable.clone().unwrap_or_default();
        !told.is_empty()
    });
    assert!(told.contains(&format!("process {host}")), "{told}");
    // One that has only just started may be on its way.
    world.kill(host);
    world::until("a process that has only just started is not told", || {
        let young = world.host_process();
        enter_cgroup(&world.pod_cgroup(UID), young);
        let told = look()[UID].uncoverable.clone();
        world.kill(young);
        told.is_none()
    });
}

#[test]
fn needs_root_processes_out_of_sight_are_told() {
    if !have_root("needs_root_processes_out_of_sight_are_told") {
        return;
    }
    let _world = World::new();
    // As the kernel shows it in a PID namespace that does not hold the pods.
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("kubepods");
    let pod = path.join(format!("pod{UID}"));
    fs::create_dir_all(&pod).unwrap();
    fs::write(pod.join("cgroup.procs"), "0\n0\n").unwrap();
    let kubepods = Kubepods {
        path,
        id: 1,
        root: root.path().to_owned(),
    };
    let seen = Scout::new(kubepods)
        .unwrap()
        .sight([UID])
        .unwrap()
        .pods
        .remove(UID)
        .unwrap();
    assert!(seen.running);
    assert!(seen.uncoverable.unwrap().contains("hostPID"));
}

#[test]
fn needs_root_a_namespace_that_two_pods_share_is_told() {
    if !have_root("needs_root_a_namespace_that_two_pods_share_is_told") {
        return;
    }
    let mut world = World::new();
    let mut scout = Scout::new(world.kubepods()).unwrap();
    let pid = world.pod(UID);
    veth("one", pid, "eth0");
    let guest = in_namespace(pid, || world.host_process());
    enter_cgroup(&world.pod_cgroup(OTHER), guest);
    let seen = scout.sight([UID, OTHER]).unwrap().pods;
    for uid in [UID, OTHER] {
        let told = seen[uid].uncoverable.as_deref().unwrap_or_default();
        assert!(told.contains("another pod's process"), "{uid}: {told}");
    }
}

#[test]
fn needs_root_the_nodes_addresses_are_those_of_its_own_namespace() {
    if !have_root("needs_root_the_nodes_addresses_are_those_of_its_own_namespace") {
        return;
    }
    let world = World::new();
    ip(&[
        "link", "add", "veth0", "type", "veth", "peer", "name", "veth1",
    ]);
    ip(&["addr", "add", "172.31.5.1/24", "dev", "veth0"]);
    ip(&["addr", "add", "fd31::1/64", "dev", "veth0", "nodad"]);
    ip(&[
        "addr",
        "add",
        "172.31.6.1",
        "peer",
        "172.31.6.2",
        "dev",
        "veth1",
    ]);
    let found = Scout::new(world.kubepods())
        .unwrap()
        .local_addresses()
        .unwrap();
    let expected: Vec<IpAddr> = ["127.0.0.1", "172.31.5.1", "172.31.6.1", "::1", "fd31::1"]
        .map(|address| address.parse().unwrap())
        .to_vec();
    let global: Vec<_> = found
        .into_iter()
        .filter(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .collect();
    assert_eq!(global, expected);
}

#[test]
fn needs_root_the_watcher_wakes_for_each_step_of_a_pods_life() {
    if !have_root("needs_root_the_watcher_wakes_for_each_step_of_a_pods_life") {
        return;
    }
    let mut world = World::new();
    let mut scout = Scout::new(world.kubepods()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let quiet = Duration::from_millis(200);
    runtime.block_on(async {
        let mut watcher = Watcher::new(world.kubepods(), Duration::from_mins(10)).unwrap();
        watcher.looked(false);
        let wait = async |watcher: &mut Watcher| {
            let change = tokio::time::timeout(Duration::from_secs(5), watcher.changed()).await;
            let change = change.expect("woken within 5 s").unwrap();
            watcher.looked(false);
            // What else the same step causes.
            while tokio::time::timeout(quiet, watcher.changed()).await.is_ok() {}
            change
        };
        assert!(
            tokio::time::timeout(quiet, watcher.changed())
                .await
                .is_err(),
            "nothing happened"
        );

        let container = world.pod_cgroup(UID);
        assert!(wait(&mut watcher).await.cgroups, "a pod's cgroup");
        let pid = world.process();
        enter_cgroup(&container, pid);
        assert!(wait(&mut watcher).await.cgroups, "its first process");
        veth("one", pid, "eth0");
        assert!(wait(&mut watcher).await.links, "its device");
        assert_eq!(scout.sight([UID]).unwrap().pods[UID].devices.len(), 1);
        fs::create_dir(world.pod_dir(UID).join("second")).unwrap();
        assert!(wait(&mut watcher).await.cgroups, "a second container");
        world.kill(pid);
        assert!(wait(&mut watcher).await.cgroups, "its last process's end");
        world::until("the cgroup is free", || remove(&world.pod_dir(UID)).is_ok());
        assert!(wait(&mut watcher).await.cgroups, "its end");

        // A class directory that comes later is watched too.
        let best = world.root.join("kubepods/besteffort");
        fs::create_dir(&best).unwrap();
        assert!(wait(&mut watcher).await.cgroups, "a class");
        fs::create_dir(best.join(format!("pod{OTHER}"))).unwrap();
        assert!(wait(&mut watcher).await.cgroups, "a pod in it");
    });
}

#[test]
fn needs_root_the_watcher_comes_back_while_a_pod_is_not_complete() {
    if !have_root("needs_root_the_watcher_comes_back_while_a_pod_is_not_complete") {
        return;
    }
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut watcher = Watcher::new(world.kubepods(), Duration::from_mins(10)).unwrap();
        let start = Instant::now();
        let mut looks = 0;
        while looks < 6 {
            watcher.looked(true);
            let change = tokio::time::timeout(Duration::from_secs(5), watcher.changed()).await;
            looks += u32::from(change.expect("woken within 5 s").unwrap().timer);
        }
        // 2 + 5 + 10 + 20 + 50 + 100 ms.
        assert!(
            start.elapsed() >= Duration::from_millis(187),
            "{:?}",
            start.elapsed()
        );
        watcher.looked(false);
        let quiet = tokio::time::timeout(Duration::from_millis(300), watcher.changed()).await;
        assert!(quiet.is_err(), "{quiet:?}");
    });
}

/// A client outside comes in by a node port with DNAT and masquerade, and the pod goes out to a
/// Service address: the flows are those that the pod's own sockets show.
#[test]
fn needs_root_standing_connections_are_adopted_as_the_pod_sees_them() {
    if !have_root("needs_root_standing_connections_are_adopted_as_the_pod_sees_them") {
        return;
    }
    let mut world = World::new();
    let (pod, client) = (world.process(), world.process());
    for (pid, device, net) in [(pod, "pod", 1), (client, "client", 2)] {
        veth(device, pid, "eth0");
        for (family, address) in [
            ("-4", format!("10.77.{net}")),
            ("-6", format!("fd77:{net}:")),
        ] {
            let (dot, length) = if family == "-4" {
                (".", "24")
            } else {
                (":", "64")
            };
            let (ours, theirs) = (
                format!("{address}{dot}1"),
                format!("{address}{dot}2/{length}"),
            );
            let node = format!("{ours}/{length}");
            let mut add = vec![family, "addr", "add", &node, "dev", device];
            let mut add_theirs = vec![family, "addr", "add", &theirs, "dev", "eth0"];
            if family == "-6" {
                add.push("nodad");
                add_theirs.push("nodad");
            }
            ip(&add);
            inside(pid, &add_theirs);
            if family == "-4" {
                ip(&["link", "set", device, "up"]);
                inside(pid, &["link", "set", "eth0", "up"]);
            }
            inside(pid, &[family, "route", "add", "default", "via", &ours]);
        }
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    nft(
        "table ip t {
        chain pre { type nat hook prerouting priority -100;
            ip daddr 10.77.2.1 tcp dport 30080 dnat to 10.77.1.2:8080;
            ip daddr 10.96.0.10 tcp dport 443 dnat to 10.77.1.1:8443; }
        chain post { type nat hook postrouting priority 100;
            ip saddr 10.77.2.0/24 masquerade; }
    }
    table ip6 t { chain input { type filter hook input priority 0; ct state established accept; }; }",
    );

    let listener = in_namespace(pod, || TcpListener::bind("10.77.1.2:8080").unwrap());
    let six = in_namespace(pod, || TcpListener::bind("[fd77:1::2]:8080").unwrap());
    let behind = TcpListener::bind("10.77.1.1:8443").unwrap();
    let _outside = in_namespace(client, || TcpStream::connect("10.77.2.1:30080").unwrap());
    let (_inside, seen) = listener.accept().unwrap();
    assert_eq!(
        seen.ip(),
        "10.77.1.1".parse::<IpAddr>().unwrap(),
        "masqueraded"
    );
    let _probe = TcpStream::connect("[fd77:1::2]:8080").unwrap();
    let (_answer, seen6) = six.accept().unwrap();
    let out = in_namespace(pod, || TcpStream::connect("10.96.0.10:443").unwrap());
    let (end, _) = behind.accept().unwrap();

    let flows = StandingFlows::new(&conntrack::dump().unwrap());
    let v4 = flows.adopt(Some("10.77.1.2".parse().unwrap()), None);
    let flow = |peer: std::net::SocketAddr, pod_port| StandingFlow {
        peer: peer.ip(),
        peer_port: peer.port(),
        pod_port,
        proto: 6,
    };
    assert_eq!(v4.inbound, [flow(seen, 8080)]);
    let port = out.local_addr().unwrap().port();
    assert_eq!(v4.outbound, [flow("10.96.0.10:443".parse().unwrap(), port)]);
    let v6 = flows.adopt(None, Some("fd77:1::2".parse().unwrap()));
    assert_eq!((v6.inbound, v6.outbound), (vec![flow(seen6, 8080)], vec![]));

    drop((out, end));
    world::until("the closed connection is left out", || {
        StandingFlows::read()
            .adopt(Some("10.77.1.2".parse().unwrap()), None)
            .outbound
            .is_empty()
    });
}
