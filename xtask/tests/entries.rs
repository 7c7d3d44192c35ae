//! Somebody with root on the node removes entries of policies, writes others, and changes them.

mod support;

mod needs_root {
    use std::fs;
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::{JoinHandle, sleep, spawn};
    use std::time::Duration;

    use egress_common::Reason;
    use egress_common::maps::{NO_RULE, NO_WAYS, covered_mark, covered_place, name};
    use serde_json::json;
    use xtask::node::{PodSpec, objects, plan};

    use super::support::held::nothing_got_out;
    use super::support::stranger::{Metrics, Pins, settled, undone};
    use super::support::traffic::Traffic;
    use super::support::{Agent, Cluster, bpf, skipped};

    /// The maps of policies, with the bytes of key and value.
    const MAPS: [(&str, usize, usize); 5] = [
        (name::EXACT4, 12, 4),
        (name::EXACT6, 24, 4),
        (name::PREFIX4, 12, 132),
        (name::PREFIX6, 24, 132),
        (name::RULE_INFO, 8, 192),
    ];
    const UDP: u8 = 17;
    /// Where nobody may send to, and nobody does but who looks whether it is open.
    const DOOR: u16 = 4711;
    /// In every packet there.
    const KNOCK: &str = "knock";
    /// Of the policy's number in front of a prefix.
    const POLICY_BITS: u32 = 32;

    /// All entries of a map.
    fn entries(map: &Path, key: usize, value: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let keys = bpf::keys(map, key).expect("keys").into_iter();
        let get = |key: Vec<u8>| Some((key.clone(), bpf::get(map, &key, value)?));
        let mut entries: Vec<_> = keys.filter_map(get).collect();
        entries.sort();
        entries
    }

    /// Each is gone, each is another one, and all are gone at once; the traffic goes on.
    fn deleted_and_changed(cluster: &Cluster, agent: &mut Agent, pins: &Pins) {
        for (name, key, value) in MAPS {
            let map = pins.map(name);
            let before = entries(&map, key, value);
            assert!(!before.is_empty(), "{name} is empty");
            let is_back = || entries(&map, key, value) == before;
            let (first, theirs) = &before[0];
            let what = format!("an entry of {name} deleted");
            let deed = || bpf::delete(&map, first).expect("delete");
            undone(cluster, agent, "entries_changed", &what, deed, is_back);
            let what = format!("an entry of {name} changed");
            let mut changed = theirs.clone();
            changed[0] ^= 1;
            let deed = || bpf::update(&map, first, &changed).expect("update");
            undone(cluster, agent, "entries_changed", &what, deed, is_back);
        }
        let state = || MAPS.map(|(name, key, value)| entries(&pins.map(name), key, value));
        let before = state();
        let deed = || {
            for (name, key, _) in MAPS {
                let map = pins.map(name);
                for key in bpf::keys(&map, key).expect("keys") {
                    bpf::delete(&map, &key).expect("delete");
                }
            }
        };
        let is_back = || state() == before;
        let what = "all entries deleted";
        undone(cluster, agent, "entries_changed", what, deed, is_back);
    }

    /// A pod of the node's network is said to have its hooks elsewhere: the cgroup hook lets it go.
    fn marked(cluster: &Cluster, agent: &mut Agent, pins: &Pins) {
        let spec = PodSpec::new("bookinfo", "on-the-node", 50).host_network();
        let object = objects::pod(&spec);
        cluster.state.apply(&object).expect("an object");
        let pod = cluster.node.pod(&spec).expect("a pod");
        let cgroup = fs::metadata(pod.cgroup()).expect("its cgroup").ino();
        let cgroups = pins.map(name::CGROUPS);
        agent.wait(cluster, "its entry", |_| {
            bpf::has(&cgroups, &cgroup.to_ne_bytes()).then_some(())
        });
        settled(cluster);
        let map = pins.map(name::COVERED);
        let place = covered_place(cgroup).to_ne_bytes();
        let mark = covered_mark(cgroup).to_ne_bytes();
        let nothing = Some(vec![0; 16]);
        assert_eq!(bpf::get(&map, &place, 16), nothing, "it is held");
        let passes = [&[0; 4][..], &NO_WAYS.to_ne_bytes(), &mark].concat();
        let deed = || bpf::update(&map, &place, &passes).expect("update");
        let is_back = || bpf::get(&map, &place, 16) == nothing;
        undone(cluster, agent, "entries_changed", "a mark", deed, is_back);
        pod.delete().expect("its end");
        let file = objects::file_name(&object);
        cluster.state.remove(&file).expect("its object's");
        agent.wait(cluster, "being in step", Cluster::ready);
    }

    /// Somebody in `web` who tries the door all the time.
    struct Knocking(Arc<AtomicBool>, Vec<JoinHandle<()>>);

    impl Knocking {
        fn begin(cluster: &Cluster) -> Self {
            let stop = Arc::new(AtomicBool::new(false));
            let knock = |ip: IpAddr| {
                let open = move || {
                    let any = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = UdpSocket::bind(any)?;
                    socket.connect(SocketAddr::new(ip, DOOR))?;
                    Ok(socket)
                };
                let socket = cluster.web.netns().within(open).expect("a socket");
                let stop = stop.clone();
                spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let _ = socket.send(KNOCK.as_bytes());
                        sleep(Duration::from_millis(2));
                    }
                })
            };
            let threads = plan::OUTSIDE.all().map(knock).into();
            Self(stop, threads)
        }

        fn end(self) {
            self.0.store(true, Ordering::Relaxed);
            for thread in self.1 {
                thread.join().expect("a sender");
            }
        }
    }

    /// `PrefixRule` that opens the door.
    fn open_door() -> Vec<u8> {
        let mut rule = vec![1, Reason::NotAllowed as u8];
        rule.extend(NO_RULE.to_ne_bytes());
        for half in [DOOR, DOOR, 0] {
            rule.extend(half.to_ne_bytes());
        }
        rule.extend([UDP, Reason::Cluster as u8]);
        rule.resize(132, 0);
        rule
    }

    fn trie_key(bits: u32, policy: u32, ip: IpAddr) -> Vec<u8> {
        let mut key = bits.to_ne_bytes().to_vec();
        key.extend(policy.to_be_bytes());
        match ip {
            IpAddr::V4(ip) => key.extend(ip.octets()),
            IpAddr::V6(ip) => key.extend(ip.octets()),
        }
        key
    }

    /// A door is opened, packets go through it, and it is shut within a second.
    fn added(cluster: &Cluster, agent: &mut Agent, pins: &Pins, policy: u32) {
        let wire = cluster.node.wire().expect("a recorder");
        let knocking = Knocking::begin(cluster);
        let [v4, v6] = plan::OUTSIDE.all();
        let doors = [
            (name::PREFIX4, 12, trie_key(POLICY_BITS + 32, policy, v4)),
            (name::PREFIX4, 12, trie_key(POLICY_BITS + 8, policy, v4)),
            // For all policies at once.
            (name::PREFIX4, 12, trie_key(0, 0, v4)),
            (name::PREFIX6, 24, trie_key(POLICY_BITS + 128, policy, v6)),
            (name::PREFIX6, 24, trie_key(7, policy, v6)),
        ];
        for (name, size, key) in doors {
            let map = pins.map(name);
            let before = bpf::keys(&map, size).expect("keys").len();
            let mark = wire.mark();
            let deed = || bpf::update(&map, &key, &open_door()).expect("update");
            let is_back = || bpf::keys(&map, size).expect("keys").len() == before;
            let what = format!("an entry added to {name}: {key:?}");
            undone(cluster, agent, "entries_changed", &what, deed, is_back);
            let out = wire.since(mark);
            let through = out.iter().filter(|packet| packet.contains(KNOCK)).count();
            assert!(through > 0, "{what}: the door was not open at all");
            let mark = wire.mark();
            sleep(Duration::from_millis(200));
            let out = wire.since(mark);
            let still = out.iter().any(|packet| packet.contains(KNOCK));
            assert!(!still, "{what}: it is still open");
        }
        knocking.end();
        // Of no policy's number, until one is given it.
        let rest = [203, 0, 113, 10, 1, 1, 6, 0];
        for number in [0, policy + 1, u32::MAX] {
            let key = [&number.to_ne_bytes()[..], &rest].concat();
            let map = pins.map(name::EXACT4);
            let value = [0, 0, Reason::Cluster as u8, 0];
            let deed = || bpf::update(&map, &key, &value).expect("update");
            let is_back = || !bpf::has(&map, &key);
            let what = format!("an entry of policy {number}");
            undone(cluster, agent, "entries_changed", &what, deed, is_back);
        }
    }

    #[test]
    fn entries_of_policies_that_strangers_touch_are_as_before_within_a_second() {
        if skipped("entries_of_policies_that_strangers_touch_are_as_before_within_a_second") {
            return;
        }
        let mut cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let metrics = Metrics::asked_for(&mut cluster);
        let mut agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();
        let traffic = Traffic::start(&cluster);
        let pins = Pins::of(&cluster);
        let policy = bpf::first_key(&pins.map(name::POLICY_INFO), 4).expect("a policy");
        let policy = u32::from_ne_bytes(policy.try_into().expect("a number"));

        deleted_and_changed(&cluster, &mut agent, &pins);
        added(&cluster, &mut agent, &pins, policy);
        marked(&cluster, &mut agent, &pins);

        let told = cluster.log().matches("entries_changed").count();
        assert!(metrics.disturbances(&cluster, "entries") >= told as u64);
        let (answered, sent) = traffic.stop();
        println!("{answered:?} requests answered, {sent} forbidden packets sent");
        assert!(answered.iter().all(|n| *n > 100) && sent > 100);
        nothing_got_out(&wire, mark);
        let (code, status) = cluster.egressctl(&["status"]);
        assert_eq!(code, Some(0), "{status}");

        // While no agent runs nobody puts it back; the next one does before it says that it is ready.
        agent.stop();
        let map = pins.map(name::EXACT4);
        let before = entries(&map, 12, 4);
        bpf::delete(&map, &before[0].0).expect("delete");
        cluster.agent(true).stop();
        assert_eq!(entries(&map, 12, 4), before);
    }

    /// Time of the processor that the agent has used, in milliseconds.
    fn used(agent: &Agent) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid())).expect("its times");
        let (_, stat) = stat.rsplit_once(')').expect("a name");
        let times = stat.split_whitespace().skip(11).take(2);
        let ticks: u64 = times
            .map(|time| time.parse::<u64>().expect("a number"))
            .sum();
        // A tick is 10 ms on every architecture that matters here.
        ticks * 10
    }

    #[test]
    fn an_entry_among_ten_thousand_is_as_before_as_soon() {
        const PREFIXES: usize = 10_000;
        /// Seconds of looking on.
        const WATCHED: u64 = 10;
        if skipped("an_entry_among_ten_thousand_is_as_before_as_soon") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let mut agent = cluster.agent(true);
        let watch = |agent: &Agent| {
            sleep(Duration::from_secs(2));
            let before = used(agent);
            sleep(Duration::from_secs(WATCHED));
            used(agent) - before
        };
        let few = watch(&agent);
        for lockdown in 0..10 {
            let cidr = |n: usize| {
                let n = lockdown * PREFIXES / 10 + n;
                json!({ "cidr": format!("198.18.{}.{}/32", n / 256, n % 256) })
            };
            let cidrs: Vec<_> = (0..PREFIXES / 10).map(cidr).collect();
            let more = json!({
                "apiVersion": "sallyport.dev/v1alpha1",
                "kind": "EgressLockdown",
                "metadata": { "name": format!("more-{lockdown}") },
                "spec": {
                    "namespaceSelector": {
                        "matchLabels": { "kubernetes.io/metadata.name": "bookinfo" },
                    },
                    "mode": "Enforce",
                    "allow": { "cidrs": cidrs },
                },
            });
            cluster.state.apply(&more).expect("a lockdown");
        }
        let map = Pins::of(&cluster).map(name::PREFIX4);
        agent.wait(&cluster, "its entries", |cluster| {
            let all = bpf::keys(&map, 12).expect("keys").len() > PREFIXES;
            (all && cluster.ready().is_some()).then_some(())
        });
        let many = watch(&agent);
        println!(
            "the agent uses {many} ms in {WATCHED} s with {PREFIXES} prefixes, {few} ms with few"
        );
        let keys = bpf::keys(&map, 12).expect("keys");
        let key = &keys[PREFIXES / 2];
        let theirs = bpf::get(&map, key, 132).expect("its value");
        // However long a comparison takes, what comes or goes is noticed at once.
        let deed = || bpf::delete(&map, key).expect("delete");
        let is_back = || bpf::get(&map, key, 132).as_ref() == Some(&theirs);
        let what = "an entry among ten thousand deleted";
        undone(&cluster, &mut agent, "entries_changed", what, deed, is_back);
        agent.stop();
    }
}
