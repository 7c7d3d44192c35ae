//! Pods whose first instruction sends a packet, on a node whose runtime asks the agent first, and on
//! one whose runtime doesn't.

mod support;

mod needs_root {
    use std::fs;
    use std::net::SocketAddr;
    use std::path::PathBuf;
    use std::time::{Duration, SystemTime};

    use serde_json::{Value, json};
    use xtask::node::wire::Wire;
    use xtask::node::{Pod, PodSpec, objects, plan};
    use xtask::nri::{Answer, Runtime, Sandbox, Settings};

    use super::support::{Agent, Cluster, skipped};

    const PATIENCE: Duration = Duration::from_secs(20);
    /// Pods that are started one after the other.
    const STARTS: u16 = 1000;

    /// A held cluster whose agent is a plugin of this runtime.
    fn with_runtime(flags: &[&str]) -> (Cluster, Agent, Runtime) {
        let mut cluster = held();
        let (agent, runtime) = join(&mut cluster, flags);
        (cluster, agent, runtime)
    }

    fn held() -> Cluster {
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        cluster
    }

    /// Starts a runtime, and an agent that is a plugin of it.
    fn join(cluster: &mut Cluster, flags: &[&str]) -> (Agent, Runtime) {
        let socket = socket(cluster);
        cluster.flags = vec!["--nri-socket".to_owned(), socket.display().to_string()];
        cluster
            .flags
            .extend(flags.iter().map(|&flag| flag.to_owned()));
        let runtime = Runtime::start(&socket, Settings::default()).expect("a socket");
        let agent = cluster.agent(true);
        runtime.plugin(PATIENCE).expect("the agent registers");
        (agent, runtime)
    }

    fn socket(cluster: &Cluster) -> PathBuf {
        cluster.node.directory().join("nri.sock")
    }

    /// Addresses are used again, soon after their pod has gone.
    fn spec(i: u16) -> PodSpec {
        let number = 60 + u8::try_from(i % 180).expect("below 180");
        PodSpec::new("bookinfo", &format!("burst-{i}"), number)
    }

    /// That what follows can fail: before the agent was there, such a packet gets out.
    fn leaks_without_the_agent(cluster: &Cluster, wire: &Wire) {
        let mark = wire.mark();
        let pod = cluster.node.pod(&spec(0)).expect("a pod");
        first_packet(&pod, "nobody asked");
        assert_eq!(seen(wire, mark, "nobody asked"), 1);
        pod.delete().expect("a clean end");
    }

    /// The object goes when its pod has gone.
    fn forget(cluster: &Cluster, spec: &PodSpec) {
        let file = objects::file_name(&objects::pod(spec));
        cluster.state.remove(&file).expect("remove it");
    }

    /// The pod's first instruction: a packet to the outside, past its own IP stack, which only the
    /// device hook sees.
    fn first_packet(pod: &Pod, tag: &str) {
        let from = pod.ips().v4.to_string();
        let to = SocketAddr::new(plan::OUTSIDE.v4.into(), 9999).to_string();
        let args = ["packet", "--from", &from, "--to", &to, "--payload", tag];
        let answer = pod.probe(&args).expect("a probe");
        assert_eq!(answer.outcome, "sent", "{answer:?}");
    }

    fn seen(wire: &Wire, mark: usize, tag: &str) -> usize {
        let seen = wire.since(mark);
        seen.iter().filter(|packet| packet.contains(tag)).count()
    }

    #[test]
    fn the_first_packets_of_pods_that_are_held_meet_their_hooks() {
        if skipped("the_first_packets_of_pods_that_are_held_meet_their_hooks") {
            return;
        }
        let mut cluster = held();
        let wire = cluster.node.wire().expect("a recorder");
        leaks_without_the_agent(&cluster, &wire);
        let (agent, runtime) = join(&mut cluster, &[]);
        let mark = wire.mark();
        let ratings = SocketAddr::new(plan::pod(12).v4.into(), 9).to_string();
        let (mut held, mut refused) = (Vec::new(), 0);
        for i in 1..=STARTS {
            let spec = spec(i);
            // Of every third pod the object is there first, of the others it comes late or never.
            if i % 3 == 0 {
                cluster.state.apply(&objects::pod(&spec)).expect("write it");
            }
            let pod = cluster.node.pod(&spec).expect("a pod");
            let sandbox = Sandbox::of(&pod);
            // Who is refused for an agent that is late is tried again, as the kubelet does.
            let took = (0..10).find_map(|_| match runtime.run_pod_sandbox(&sandbox) {
                Answer::Done(took) => Some(took),
                Answer::Refused(..) => {
                    refused += 1;
                    runtime.stop_pod_sandbox(&sandbox);
                    None
                }
                other => panic!("pod {i}: {other:?}; log:\n{}", cluster.log()),
            });
            held.push(took.unwrap_or_else(|| panic!("pod {i}; log:\n{}", cluster.log())));
            first_packet(&pod, "first packet");
            // What is allowed passes from the first packet on, too: its address is known.
            if i % 10 == 1 {
                let answer = pod.probe(&["tcp", "--to", &ratings, "--timeout-ms", "400"]);
                assert_eq!(answer.expect("a probe").outcome, "refused", "it is reached");
            }
            if i % 3 == 1 {
                cluster.state.apply(&objects::pod(&spec)).expect("write it");
            }
            let told = runtime.stop_pod_sandbox(&sandbox);
            assert!(matches!(told, Answer::Done(_)), "{told:?}");
            pod.delete().expect("a clean end");
            if i % 3 != 2 {
                forget(&cluster, &spec);
            }
        }
        assert_eq!(seen(&wire, mark, "first packet"), 0, "of {STARTS} pods");
        held.sort_unstable();
        let median = held[held.len() / 2];
        println!(
            "{STARTS} sandboxes held for {median:?} (median), {:?} (longest), {refused} refused once",
            held[held.len() - 1]
        );
        assert!(median < Duration::from_millis(500), "{held:?}");
        assert_eq!(runtime.faults(), Vec::<String>::new());
        agent.stop();
    }

    #[test]
    fn a_pod_without_a_process_is_found_by_its_namespace() {
        if skipped("a_pod_without_a_process_is_found_by_its_namespace") {
            return;
        }
        let (cluster, agent, runtime) = with_runtime(&[]);
        let pod = cluster.node.pod(&spec(1)).expect("a pod");
        // As CRI-O has it, which needs no process to keep the namespace.
        fs::write(pod.cgroup().join("cgroup.kill"), "1").expect("end its processes");
        let answer = runtime.run_pod_sandbox(&Sandbox::of(&pod));
        assert!(matches!(answer, Answer::Done(_)), "{answer:?}");
        assert!(covered_at(&cluster.log(), &pod.spec().name).is_some());
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();
        first_packet(&pod, "first packet");
        assert_eq!(seen(&wire, mark, "first packet"), 0);
        agent.stop();
    }

    #[test]
    fn who_can_not_be_held_is_not_started_or_started_as_chosen() {
        if skipped("who_can_not_be_held_is_not_started_or_started_as_chosen") {
            return;
        }
        for (chosen, starts) in [("deny", false), ("allow", true)] {
            let flags = ["--nri-on-timeout", chosen, "--nri-timeout", "300"];
            let (cluster, agent, runtime) = with_runtime(&flags);
            // Its network isn't there.
            let nowhere = |namespace: &str| Sandbox {
                id: format!("sandbox-{namespace}"),
                name: "nowhere".to_owned(),
                uid: "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0".to_owned(),
                namespace: namespace.to_owned(),
                netns: Some("/run/netns/nowhere".into()),
                ..Sandbox::default()
            };
            let answer = runtime.run_pod_sandbox(&nowhere("bookinfo"));
            assert_eq!(matches!(answer, Answer::Done(_)), starts, "{answer:?}");
            assert!(cluster.log().contains("sandbox_timeout"));
            // Nobody waits for a pod that no lockdown selects.
            match runtime.run_pod_sandbox(&nowhere("other")) {
                Answer::Done(took) => assert!(took < Duration::from_millis(300), "{took:?}"),
                other => panic!("{other:?}"),
            }
            agent.stop();
        }
    }

    #[test]
    fn an_agent_that_hangs_is_given_up_and_the_gate_holds() {
        if skipped("an_agent_that_hangs_is_given_up_and_the_gate_holds") {
            return;
        }
        let (cluster, agent, runtime) = with_runtime(&[]);
        agent.stall(true);
        let pod = cluster.node.pod(&spec(1)).expect("a pod");
        assert_eq!(runtime.run_pod_sandbox(&Sandbox::of(&pod)), Answer::Late);
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();
        let to = SocketAddr::new(plan::OUTSIDE.v4.into(), plan::OUTSIDE_UDP).to_string();
        let args = [
            "udp",
            "--to",
            &to,
            "--payload",
            "the gate",
            "--timeout-ms",
            "300",
        ];
        let answer = pod.probe(&args).expect("a probe");
        assert_ne!(answer.outcome, "answered");
        assert_eq!(seen(&wire, mark, "the gate"), 0);
        // It comes to itself, is a plugin again, and the next pod is held.
        agent.stall(false);
        runtime.plugin(PATIENCE).expect("it registers again");
        let next = cluster.node.pod(&spec(2)).expect("a pod");
        let answer = runtime.run_pod_sandbox(&Sandbox::of(&next));
        assert!(matches!(answer, Answer::Done(_)), "{answer:?}");
        agent.stop();
    }

    /// Milliseconds since 1970 of the line that says that this pod is covered.
    fn covered_at(log: &str, pod: &str) -> Option<f64> {
        let line = log.lines().rev().find(|line| {
            line.contains("\"pod_covered\"") && line.contains(&format!("\"name\":\"{pod}\""))
        })?;
        let line: Value = serde_json::from_str(line).ok()?;
        let time = line["timestamp"].as_str()?;
        // 2026-01-31T12:34:56.789012Z
        let (_, clock) = time.trim_end_matches('Z').split_once('T')?;
        let parts: Vec<f64> = clock
            .split(':')
            .filter_map(|part| part.parse().ok())
            .collect();
        let [hours, minutes, seconds] = parts[..] else {
            return None;
        };
        Some((hours * 3600.0 + minutes * 60.0 + seconds) * 1000.0)
    }

    #[test]
    fn without_a_runtime_that_asks_hooks_come_soon_after_the_device() {
        const PODS: u16 = 20;
        if skipped("without_a_runtime_that_asks_hooks_come_soon_after_the_device") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        for i in 1..=PODS {
            let object = objects::pod(&spec(i));
            cluster.state.apply(&object).expect("write it");
        }
        let mut agent = cluster.agent(true);
        let mut took = Vec::new();
        for i in 1..=PODS {
            let spec = spec(i);
            let pod = cluster.node.pod(&spec).expect("a pod");
            let made = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .expect("a time")
                .as_secs_f64();
            let covered = agent.wait(&cluster, "the hooks", |cluster| {
                covered_at(&cluster.log(), &spec.name)
            });
            took.push(covered - (made % 86400.0) * 1000.0);
            pod.delete().expect("a clean end");
        }
        took.sort_by(f64::total_cmp);
        let median = took[took.len() / 2];
        println!(
            "hooks stand {median:.1} ms (median), {:.1} ms (longest) after a pod's process is there",
            took[took.len() - 1]
        );
        assert!(median < 250.0, "{took:?}");
        agent.stop();
    }
}
