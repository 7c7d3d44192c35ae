//! Pods whose first instruction sends a packet, where no runtime asks the agent first: the gate on their
//! cgroup, and the hook that comes with their device.

mod support;

mod needs_root {
    use std::fs;
    use std::net::{SocketAddr, UdpSocket};
    use std::thread::sleep;
    use std::time::Duration;

    use serde_json::{Value, json};
    use xtask::node::wire::Wire;
    use xtask::node::{Pod, PodSpec, objects, plan};

    use super::support::held::number;
    use super::support::stranger::Pins;
    use super::support::{Agent, Cluster, find, skipped};

    /// Pods that are started one after the other.
    const STARTS: u64 = 1000;

    /// Addresses are used again, soon after their pod has gone.
    fn spec(i: u64) -> PodSpec {
        let number = 60 + u8::try_from(i % 180).expect("below 180");
        PodSpec::new("bookinfo", &format!("burst-{i}"), number)
    }

    fn outside() -> String {
        SocketAddr::new(plan::OUTSIDE.v4.into(), plan::OUTSIDE_UDP).to_string()
    }

    /// Past the pod's own IP stack, where no gate on a cgroup sees it.
    fn frame(pod: &Pod, tag: &str) {
        let (from, to) = (pod.ips().v4.to_string(), outside());
        let args = ["packet", "--from", &from, "--to", &to, "--payload", tag];
        let answer = pod.probe(&args).expect("a probe");
        assert_eq!(answer.outcome, "sent", "{answer:?}");
    }

    /// Through its IP stack.
    fn datagram(pod: &Pod, tag: &str) {
        let to = outside();
        let args = ["udp", "--to", &to, "--payload", tag, "--timeout-ms", "1"];
        pod.probe(&args).expect("a probe");
    }

    /// By a process of the node, not of the pod, from the pod's network namespace.
    fn by_a_stranger(pod: &Pod, tag: &str) {
        let tag = tag.to_owned();
        let send = move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(tag.as_bytes(), outside())?;
            Ok(())
        };
        pod.netns().within(send).expect("sent");
    }

    fn seen(wire: &Wire, mark: usize, tag: &str) -> usize {
        let seen = wire.since(mark);
        seen.iter().filter(|packet| packet.contains(tag)).count()
    }

    /// Which hooks stand on the pod's device: `ingress` is for packets from the pod.
    fn hooks(cluster: &Cluster, pod: &Pod) -> Vec<&'static str> {
        let device = pod.device().to_owned();
        let index = cluster
            .node
            .host()
            .within(move || Ok(nix::net::if_::if_nametoindex(device.as_str())?))
            .expect("its device");
        let pins = Pins::of(cluster);
        let pinned = |hook: &&str| pins.link(&format!("dev-{index}-{hook}")).exists();
        ["ingress", "egress"].into_iter().filter(pinned).collect()
    }

    fn hooked(cluster: &Cluster, agent: &mut Agent, pod: &Pod, wanted: &[&str]) {
        agent.wait(cluster, "the hooks of its device", |cluster| {
            (hooks(cluster, pod) == wanted).then_some(())
        });
    }

    /// Packets that were dropped because their pod was not known.
    fn unknown(cluster: &Cluster) -> u64 {
        let key = (0, "unknown-pod".to_owned());
        cluster.counters().get(&key).copied().unwrap_or(0)
    }

    #[test]
    fn the_first_packets_of_a_thousand_pods_stay_in() {
        if skipped("the_first_packets_of_a_thousand_pods_stay_in") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Off", &json!({}));
        let mut agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        // So that what follows can fail.
        let mark = wire.mark();
        datagram(&cluster.web, "nobody holds it");
        frame(&cluster.web, "nobody holds it");
        assert_eq!(seen(&wire, mark, "nobody holds it"), 2);
        agent.declare(&cluster, || cluster.lockdown("Enforce", &json!({})));
        let mark = wire.mark();
        let starts = number("SALLYPORT_STARTS", STARTS);
        for i in 1..=starts {
            let spec = spec(i);
            let apply = || cluster.state.apply(&objects::pod(&spec)).expect("write it");
            // Of one in three the object is there first, of one it comes late, and of one never.
            if i % 3 == 1 {
                apply();
            }
            let pod = cluster.node.pod(&spec).expect("a pod");
            frame(&pod, &format!("first frame of {i}"));
            datagram(&pod, "first datagram");
            if i % 3 == 2 {
                apply();
                frame(&pod, &format!("first frame of the known {i}"));
            }
            pod.delete().expect("a clean end");
            if i % 3 != 0 {
                let file = objects::file_name(&objects::pod(&spec));
                cluster.state.remove(&file).expect("remove it");
            }
        }
        let frames = seen(&wire, mark, "first frame");
        let datagrams = seen(&wire, mark, "first datagram");
        println!("{starts} pods: {frames} frames and {datagrams} datagrams got out");
        let out = wire.since(mark);
        let out = out.iter().map(|it| String::from_utf8_lossy(&it.payload));
        let out: Vec<_> = out.filter(|it| it.contains("first")).collect();
        assert_eq!(out, [""; 0], "of {starts} pods");
        agent.stop();
    }

    /// Packets that the gate for devices has dropped.
    fn at_the_gate(cluster: &Cluster) -> u64 {
        let (_, status) = cluster.egressctl(&["status"]);
        let dropped = find(&status, "gate").and_then(|gate| find(gate, "droppedPackets"));
        dropped.and_then(Value::as_u64).expect("a gate")
    }

    #[test]
    fn nothing_leaves_by_a_device_that_comes_while_no_agent_runs() {
        if skipped("nothing_leaves_by_a_device_that_comes_while_no_agent_runs") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let other = PodSpec::new("other", "nobodys", 70);
        cluster
            .state
            .apply(&objects::pod(&other))
            .expect("write it");
        let known = cluster.node.pod(&other).expect("a pod");
        let mut agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        agent.wait(&cluster, "a closed gate", |cluster| {
            let (_, status) = cluster.egressctl(&["status"]);
            let families = find(&status, "gate").and_then(|gate| find(gate, "families"))?;
            (families.as_array()?.len() == 3).then_some(())
        });
        agent.kill();
        let (mark, before) = (wire.mark(), at_the_gate(&cluster));
        let spec = PodSpec::new("other", "newcomer", 71);
        let newcomer = cluster.node.pod(&spec).expect("a pod");
        frame(&newcomer, "of a new pod");
        datagram(&newcomer, "of a new pod");
        by_a_stranger(&newcomer, "of a new pod's sandbox");
        frame(&known, "of a known pod");
        datagram(&known, "of a known pod");
        assert_eq!(seen(&wire, mark, "of a new pod"), 0);
        assert_eq!(seen(&wire, mark, "of a known pod"), 2, "nobody holds it");
        assert!(at_the_gate(&cluster) > before, "it is counted");

        // The next agent lets it through, before and after it knows whose it is.
        let mut agent = cluster.agent(true);
        hooked(&cluster, &mut agent, &newcomer, &["ingress"]);
        let mark = wire.mark();
        agent.wait(&cluster, "an open gate", |_| {
            by_a_stranger(&newcomer, "of a stranger");
            (seen(&wire, mark, "of a stranger") > 0).then_some(())
        });
        frame(&newcomer, "of an unknown pod");
        assert_eq!(seen(&wire, mark, "of an unknown pod"), 0);
        agent.declare(&cluster, || {
            cluster.state.apply(&objects::pod(&spec)).expect("write it");
        });
        hooked(&cluster, &mut agent, &newcomer, &[]);
        let mark = wire.mark();
        frame(&newcomer, "it is known");
        assert_eq!(seen(&wire, mark, "it is known"), 1, "nobody holds it");
        agent.stop();
    }

    #[test]
    fn a_pair_that_is_made_on_the_node_and_moved_is_no_way_out() {
        if skipped("a_pair_that_is_made_on_the_node_and_moved_is_no_way_out") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let mut agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        agent.wait(&cluster, "a closed gate", |cluster| {
            cluster.log().contains("\"gate_closed\"").then_some(())
        });
        let spec = PodSpec::new("other", "newcomer", 60);
        let pod = cluster.node.pod(&spec).expect("a pod");
        hooked(&cluster, &mut agent, &pod, &["ingress"]);
        let host = cluster.node.host();
        let met = |device: &str| {
            let set = host.nft("list set inet sallyport-gate met\n");
            set.expect("the gate").contains(&format!("\"{device}\""))
        };
        // A stranger's stays on the node, and is let through before long.
        host.ip("link add here0 type veth peer name here1\n")
            .expect("a pair");
        assert!(!met("here0"), "it may go to a pod yet");
        agent.wait(&cluster, "an open gate", |_| {
            (met("here0") && met("here1")).then_some(())
        });
        // A plugin's is moved while the agent, which has seen it, hangs.
        host.ip("link add second0 type veth peer name second1\n")
            .expect("a pair");
        sleep(Duration::from_millis(300));
        agent.stall(true);
        let (inside, outside) = (pod.netns().name(), plan::OUTSIDE.v4);
        host.ip(&format!(
            "link set second1 netns {inside}\naddr add 10.99.0.1/24 dev second0\nlink set second0 up\n"
        ))
        .expect("it is moved");
        pod.netns()
            .ip(&format!(
                "addr add 10.99.0.2/24 dev second1\nlink set second1 up\n\
                 route add {outside}/32 via 10.99.0.1 dev second1 src 10.99.0.2\n"
            ))
            .expect("the way through it");
        let mark = wire.mark();
        by_a_stranger(&pod, "past an agent that hangs");
        frame(&pod, "past an agent that hangs");
        assert_eq!(seen(&wire, mark, "past an agent that hangs"), 0);
        agent.stall(false);
        agent.wait(&cluster, "an open gate", |_| {
            by_a_stranger(&pod, "of a stranger");
            (seen(&wire, mark, "of a stranger") > 0).then_some(())
        });
        frame(&pod, "of a pod that is not known");
        assert_eq!(seen(&wire, mark, "of a pod that is not known"), 0);
        agent.stop();
    }

    #[test]
    fn a_device_that_may_be_a_pods_is_judged_by_who_sends() {
        if skipped("a_device_that_may_be_a_pods_is_judged_by_who_sends") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let mut agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        // In a namespace that nobody holds: it is not known yet that nobody does.
        let spec = PodSpec::new("other", "newcomer", 60);
        let pod = cluster.node.pod(&spec).expect("a pod");
        hooked(&cluster, &mut agent, &pod, &["ingress"]);
        let (mark, before) = (wire.mark(), unknown(&cluster));
        frame(&pod, "of an unknown pod");
        datagram(&pod, "of an unknown pod");
        by_a_stranger(&pod, "of a stranger");
        assert_eq!(seen(&wire, mark, "of an unknown pod"), 0);
        assert_eq!(seen(&wire, mark, "of a stranger"), 1, "strangers pass");
        assert!(unknown(&cluster) >= before + 2, "both are counted");
        // It is known, and nobody holds it: nothing is left on its device.
        agent.declare(&cluster, || {
            cluster.state.apply(&objects::pod(&spec)).expect("write it");
        });
        hooked(&cluster, &mut agent, &pod, &[]);
        let mark = wire.mark();
        frame(&pod, "it is known");
        assert_eq!(seen(&wire, mark, "it is known"), 1, "nobody holds it");

        // A namespace without any pod: another container engine's, a VPN's.
        let engine = PodSpec::new("none", "engine", 61);
        let engine = cluster.node.pod(&engine).expect("a namespace");
        fs::write(engine.cgroup().join("cgroup.kill"), "1").expect("end its process");
        hooked(&cluster, &mut agent, &engine, &["ingress"]);
        let mark = wire.mark();
        by_a_stranger(&engine, "of another engine");
        assert_eq!(seen(&wire, mark, "of another engine"), 1);

        // And one that is held gets its own.
        let held = PodSpec::new("bookinfo", "held", 62);
        cluster.state.apply(&objects::pod(&held)).expect("write it");
        let held = cluster.node.pod(&held).expect("a pod");
        hooked(&cluster, &mut agent, &held, &["ingress", "egress"]);
        let mark = wire.mark();
        frame(&held, "of a held pod");
        assert_eq!(seen(&wire, mark, "of a held pod"), 0);
        agent.stop();
    }
}
