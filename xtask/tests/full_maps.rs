//! Every map is full, each in its turn. The agent is one whose maps are small.

mod support;

mod needs_root {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::thread::sleep;
    use std::time::Duration;

    use egress_common::maps::{name, schema};
    use serde_json::{Value, json};
    use xtask::node::{Pod, PodSpec, objects, plan};

    use super::support::held::{other_layout, under_traffic};
    use super::support::stranger::Pins;
    use super::support::traffic::SECRET;
    use super::support::{Agent, Cluster, find, skipped};

    /// What comes of it when a map is full.
    #[derive(Clone, Copy, Debug)]
    enum Full {
        /// The policy that stands, stands; told, and tried again until there is room.
        Policy(fn() -> Value),
        /// As many policies at once don't fit; as some go, the others come.
        Policies,
        /// Pods without room are denied or uncovered; told, and tried again until there is room.
        Pods,
        /// The oldest entry makes room.
        Oldest(fn(&Cluster)),
        /// Events are left out and counted: `full.rs`.
        Ring,
        /// Never: there is a place for each index.
        Never,
    }

    /// Every map of the kernel object.
    const MAPS: [(&str, Full); 19] = [
        (name::DEVICES, Full::Pods),
        (name::CGROUPS, Full::Pods),
        (name::COVERED, Full::Never),
        (name::WAYS, Full::Never),
        (name::EXACT4, Full::Policy(resolvers4)),
        (name::EXACT6, Full::Policy(resolvers6)),
        (name::PREFIX4, Full::Policy(nets4)),
        (name::PREFIX6, Full::Policy(nets6)),
        (name::FLOWS_IN, Full::Oldest(flows_in)),
        (name::INBOUND, Full::Never),
        (name::FLOWS_OUT, Full::Oldest(flows_out)),
        (name::FRAGMENTS, Full::Oldest(fragments)),
        (name::ORIGINS, Full::Oldest(origins)),
        (name::COUNTERS, Full::Never),
        (name::EVENTS, Full::Ring),
        (name::CONFIG, Full::Never),
        (name::POD_INFO, Full::Pods),
        (name::POLICY_INFO, Full::Policies),
        (name::RULE_INFO, Full::Policy(rules)),
    ];
    /// Pods that are one too many for the maps of pods, all but three of them.
    const GUESTS: u8 = 14;
    const UDP: &str = "UDP";

    fn numbered(count: u16, name: impl Fn(u16) -> String) -> Vec<Value> {
        (0..count).map(|n| json!(name(n))).collect()
    }

    fn nets(nets: Vec<Value>) -> Value {
        let cidrs: Vec<Value> = nets.into_iter().map(|net| json!({ "cidr": net })).collect();
        json!({ "allow": { "cidrs": cidrs } })
    }

    fn net4(n: u16) -> String {
        format!("198.{}.{}.0/24", 18 + n / 256, n % 256)
    }

    fn net6(n: u16) -> String {
        format!("2001:db8:{n:x}::/48")
    }

    fn nets4() -> Value {
        nets(numbered(600, net4))
    }

    fn nets6() -> Value {
        nets(numbered(600, net6))
    }

    /// Prefixes of both families fit, and the words for each don't.
    fn rules() -> Value {
        nets([numbered(300, net4), numbered(300, net6)].concat())
    }

    /// Each is open for UDP and TCP.
    fn resolvers4() -> Value {
        let all = numbered(300, |n| format!("198.19.{}.{}", n / 256, n % 256));
        json!({ "allow": { "dns": { "resolvers": all } } })
    }

    fn resolvers6() -> Value {
        let all = numbered(300, |n| format!("2001:db8::{n:x}"));
        json!({ "allow": { "dns": { "resolvers": all } } })
    }

    fn socket(ip: IpAddr) -> UdpSocket {
        let any = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        UdpSocket::bind(any).expect("a socket")
    }

    /// From sockets that many of `from`, a datagram to each of these.
    fn flood(from: &xtask::node::Netns, sockets: usize, to: Vec<SocketAddr>, bytes: usize) {
        let send = move || {
            let payload = vec![b'x'; bytes];
            for _ in 0..sockets {
                let socket = socket(to[0].ip());
                for to in &to {
                    // Refusals of earlier ones are no matter.
                    let _ = socket.send_to(&payload, to);
                }
            }
            Ok(())
        };
        from.within(send).expect("sent");
    }

    /// Where `web` may send by UDP: see the lockdown.
    fn allowed() -> Vec<SocketAddr> {
        let hosts = (1..127_u8).map(|host| IpAddr::from([198, 51, 100, host]));
        hosts
            .flat_map(|ip| (80..=90).map(move |port| SocketAddr::new(ip, port)))
            .collect()
    }

    fn flows_out(cluster: &Cluster) {
        flood(cluster.web.netns(), 110, allowed(), 1);
    }

    fn flows_in(cluster: &Cluster) {
        let web = plan::pod(11).v4.into();
        let ports = (1..=u16::MAX).map(|port| SocketAddr::new(web, port));
        flood(cluster.node.outside(), 3, ports.collect(), 1);
    }

    fn fragments(cluster: &Cluster) {
        flood(cluster.web.netns(), 2, allowed(), 2_000);
    }

    fn origins(cluster: &Cluster) {
        let to = SocketAddr::new(plan::OUTSIDE.v4.into(), 20_000).to_string();
        let many = ["udp", "--to", &to, "--payload", SECRET, "--ports", "3000"];
        let probe = [&many[..], &["--timeout-ms", "30"]].concat();
        cluster.web.probe(&probe).expect("a probe");
    }

    /// Waits until it is told that this map is full, since the log had this length.
    fn told(cluster: &Cluster, agent: &mut Agent, map: &str, since: usize) {
        let map = format!("map {map}: ");
        agent.wait(cluster, &map, |cluster| {
            let log = cluster.log();
            let told = |line: &str| {
                line.contains("reconcile_failed")
                    && line.contains(&map)
                    && line.contains("the map is full")
            };
            log[since..].lines().any(told).then_some(())
        });
    }

    fn out_of_step(cluster: &Cluster, agent: &mut Agent) {
        let out = |cluster: &Cluster| cluster.ready().is_none().then_some(());
        agent.wait(cluster, "being out of step", out);
    }

    fn in_step(cluster: &Cluster, agent: &mut Agent) {
        agent.wait(cluster, "being in step", Cluster::ready);
        let (code, status) = cluster.egressctl(&["status"]);
        assert_eq!(code, Some(0), "{status}");
    }

    fn policy(cluster: &Cluster, agent: &mut Agent, map: &str, spec: &Value) {
        let since = cluster.log().len();
        cluster.lockdown("Enforce", spec);
        told(cluster, agent, map, since);
        out_of_step(cluster, agent);
        let (_, status) = cluster.egressctl(&["status"]);
        let in_sync = find(&status, "inSync");
        assert_eq!(in_sync, Some(&Value::Bool(false)), "{map}: {status}");
        sleep(Duration::from_millis(300));
        cluster.lockdown("Enforce", &json!({}));
        in_step(cluster, agent);
    }

    fn guests(cluster: &Cluster, count: u8) -> Vec<Pod> {
        let guest = |n: u8| {
            let spec = PodSpec::new("bookinfo", &format!("guest-{n}"), 30 + n);
            let spec = spec.label("guest", &format!("g{n}"));
            let object = objects::pod(&spec);
            cluster.state.apply(&object).expect("an object");
            cluster.node.pod(&spec).expect("a pod")
        };
        (0..count).map(guest).collect()
    }

    fn send_off(cluster: &Cluster, pods: Vec<Pod>) {
        for pod in pods {
            let file = objects::file_name(&objects::pod(pod.spec()));
            pod.delete().expect("its end");
            cluster.state.remove(&file).expect("its object's");
        }
    }

    /// A lockdown of its own for this guest.
    fn own_lockdown(n: u8) -> Value {
        json!({
            "apiVersion": "sallyport.dev/v1alpha1",
            "kind": "EgressLockdown",
            "metadata": { "name": format!("guest-{n}") },
            "spec": {
                "podSelector": { "matchLabels": { "guest": format!("g{n}") } },
                "mode": "Enforce",
                "allow": { "cidrs": [{ "cidr": format!("192.0.2.{n}/32"),
                    "ports": [{ "protocol": UDP, "port": 5000 }] }] },
            },
        })
    }

    /// Each has its own, and all change at once: for a moment there are twice as many.
    fn policies(cluster: &Cluster, agent: &mut Agent) {
        let pods = guests(cluster, 4);
        let own: Vec<Value> = (0..4).map(own_lockdown).collect();
        for lockdown in &own {
            cluster.state.apply(lockdown).expect("a lockdown");
        }
        let five = |cluster: &Cluster| {
            let (_, dump) = cluster.egressctl(&["maps", "dump", name::POLICY_INFO]);
            let count = dump["items"].as_array().map(Vec::len);
            (count == Some(5) && cluster.ready().is_some()).then_some(())
        };
        agent.wait(cluster, "five policies", five);
        let since = cluster.log().len();
        cluster.lockdown("Enforce", &json!({ "allow": { "cluster": ["Services"] } }));
        told(cluster, agent, name::POLICY_INFO, since);
        agent.wait(cluster, "five policies again", five);
        cluster.lockdown("Enforce", &json!({}));
        for lockdown in &own {
            let file = objects::file_name(lockdown);
            cluster.state.remove(&file).expect("its object's");
        }
        send_off(cluster, pods);
        in_step(cluster, agent);
    }

    fn pods(cluster: &Cluster, agent: &mut Agent) {
        let since = cluster.log().len();
        let mut pods = guests(cluster, GUESTS);
        for map in [name::DEVICES, name::CGROUPS] {
            told(cluster, agent, map, since);
        }
        // Who is given a slot has room in the map of slots.
        agent.wait(cluster, "slots run out", |cluster| {
            let log = cluster.log();
            log[since..].contains("no slot is free").then_some(())
        });
        let to = SocketAddr::new(plan::OUTSIDE.v4.into(), plan::OUTSIDE_UDP).to_string();
        let what = ["udp", "--to", &to, "--payload", SECRET];
        let probe = [&what[..], &["--timeout-ms", "30"]].concat();
        for pod in &pods {
            pod.probe(&probe).expect("a probe");
        }
        let (code, status) = cluster.egressctl(&["status"]);
        assert_ne!(code, Some(0), "{status}");
        out_of_step(cluster, agent);
        let rest = pods.split_off(3);
        send_off(cluster, rest);
        in_step(cluster, agent);
        send_off(cluster, pods);
        in_step(cluster, agent);
    }

    /// Entries that the map holds, and as many as it takes.
    fn fill(cluster: &Cluster, map: &str) -> (u64, u64) {
        let (code, list) = cluster.egressctl(&["maps", "list"]);
        assert_eq!(code, Some(0), "{list}");
        let items = list["items"].as_array().expect("items");
        let row = items.iter().find(|row| row["name"] == map);
        let row = row.unwrap_or_else(|| panic!("no {map} in {list}"));
        let number = |field: &str| row[field].as_u64().expect(field);
        (number("used"), number("maxEntries"))
    }

    fn oldest(cluster: &Cluster, map: &str, flood: fn(&Cluster)) {
        flood(cluster);
        let (used, most) = fill(cluster, map);
        println!("{map}: {used} of {most} after more than that");
        assert!((most / 2..=most).contains(&used), "{map}: {used} of {most}");
        // The traffic goes on, and so must the agent.
        sleep(Duration::from_millis(500));
        let (code, status) = cluster.egressctl(&["status"]);
        assert_eq!(code, Some(0), "{map}: {status}");
    }

    #[test]
    fn every_map_may_be_full() {
        if skipped("every_map_may_be_full") {
            return;
        }
        let known: BTreeSet<&str> = MAPS.iter().map(|(name, _)| *name).collect();
        let all: BTreeSet<&str> = schema::SCHEMAS.iter().map(|map| map.name).collect();
        assert_eq!(known, all, "each map has its line");
        for map in schema::SCHEMAS {
            let (_, full) = MAPS.iter().find(|(name, _)| *name == map.name).expect("it");
            let fits = match map.kind {
                // A place for each index; of `sp_ways` each slot has its own.
                "array" | "percpu_array" | "devmap" => matches!(full, Full::Never),
                "lru_hash" => matches!(full, Full::Oldest(_)),
                "ringbuf" => matches!(full, Full::Ring),
                _ => matches!(full, Full::Policy(_) | Full::Policies | Full::Pods),
            };
            assert!(fits, "{}: a {} is not full like that", map.name, map.kind);
        }
        under_traffic("every_map_may_be_full", |cluster| {
            cluster.version = Some(other_layout());
            let mut agent = cluster.agent(true);
            let pinned = Pins::of(cluster).maps();
            let listed = MAPS.iter().map(|(name, _)| (*name).to_owned());
            assert_eq!(
                pinned,
                listed.collect(),
                "each map that is pinned has its line"
            );
            for (map, full) in MAPS {
                if let Full::Policy(spec) = full {
                    policy(cluster, &mut agent, map, &spec());
                }
            }
            policies(cluster, &mut agent);
            pods(cluster, &mut agent);
            for (map, full) in MAPS {
                if let Full::Oldest(flood) = full {
                    oldest(cluster, map, flood);
                }
            }
            agent.stop();
        });
    }
}
