//! The agent with filters of clsact on devices, as kernels without tcx have them: killed, restarted,
//! disturbed and taken off, under traffic.

mod support;

mod needs_root {
    use std::path::Path;
    use std::thread::sleep;
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::support::held::nothing_got_out;
    use super::support::stranger::{Metrics, undone};
    use super::support::traffic::Traffic;
    use super::support::{Agent, Cluster, bpf, skipped};

    const OURS: [(&str, &str); 2] = [("ingress", "sp_from_pod"), ("egress", "sp_to_pod")];

    fn cluster() -> Cluster {
        let mut cluster = Cluster::new();
        let flags = ["--device-hooks", "clsact"].map(str::to_owned);
        cluster.flags.extend(flags);
        cluster.lockdown("Enforce", &json!({}));
        cluster
    }

    /// `tc` on the node, about the device of the held pod.
    fn tc(cluster: &Cluster, arguments: &str) -> String {
        let mut command = cluster.node.host_command(Path::new("tc")).expect("tc");
        let arguments = arguments.replace("DEV", cluster.web.device());
        let output = command.args(arguments.split(' ')).output().expect("run tc");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tc {arguments}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Names of the filters in the order in which they run.
    fn filters(cluster: &Cluster, direction: &str) -> Vec<String> {
        let text = tc(cluster, &format!("-j filter show dev DEV {direction}"));
        let listed: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
        let name = |filter: &Value| Some(filter["options"]["bpf_name"].as_str()?.to_owned());
        listed.iter().filter_map(name).collect()
    }

    fn stand(cluster: &Cluster) -> bool {
        let first = |(direction, name): (&str, &str)| {
            filters(cluster, direction)
                .first()
                .is_some_and(|it| it == name)
        };
        OURS.into_iter().all(first)
    }

    /// Nothing that is forbidden gets out, and what is allowed goes on, for a while.
    fn holds(cluster: &Cluster) {
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();
        sleep(Duration::from_millis(500));
        nothing_got_out(&wire, mark);
        assert!(stand(cluster));
    }

    fn disturbed(cluster: &Cluster, agent: &mut Agent) {
        let wrong = |event, what, agent: &mut Agent, deed: &dyn Fn()| {
            undone(cluster, agent, event, what, deed, || stand(cluster));
        };
        for (direction, _) in OURS {
            wrong("hook_lost", "a filter deleted", agent, &|| {
                tc(cluster, &format!("filter del dev DEV {direction} pref 1"));
            });
        }
        wrong("hook_lost", "the clsact deleted", agent, &|| {
            tc(cluster, "qdisc del dev DEV clsact");
        });
        let pin = cluster.node.bpffs().join("stranger");
        bpf::pin_harmless(&pin).expect("a program");
        let add = format!(
            "filter add dev DEV ingress pref 1 bpf direct-action object-pinned {}",
            pin.display()
        );
        wrong("hook_displaced", "a filter first", agent, &|| {
            tc(cluster, &add);
        });
        std::fs::remove_file(&pin).expect("unpin");
        assert_eq!(filters(cluster, "ingress").len(), 4, "theirs are left");
    }

    #[test]
    fn filters_hold_without_an_agent_and_against_strangers() {
        if skipped("filters_hold_without_an_agent_and_against_strangers") {
            return;
        }
        let mut cluster = cluster();
        let metrics = Metrics::asked_for(&mut cluster);
        let agent = cluster.agent(true);
        let traffic = Traffic::start(&cluster);
        holds(&cluster);
        agent.kill();
        holds(&cluster);

        // The next one finds everything as it should be.
        let mut agent = cluster.agent(true);
        let (_, writes) = cluster.ready().expect("ready");
        assert_eq!(writes, 0, "{}", cluster.log());
        let (code, status) = cluster.egressctl(&["status"]);
        assert_eq!(code, Some(0), "{status}");
        assert_eq!(status["items"][0]["deviceHooks"], json!(["clsact"]));

        disturbed(&cluster, &mut agent);
        for kind in ["device-hook", "displaced"] {
            assert!(metrics.disturbances(&cluster, kind) > 0, "{kind}");
        }
        holds(&cluster);
        let (code, status) = cluster.egressctl(&["status"]);
        assert_eq!(code, Some(0), "{status}");
        let (answered, sent) = traffic.stop();
        println!("{answered:?} requests answered, {sent} forbidden packets sent");
        assert!(answered.iter().all(|n| *n > 20) && sent > 100);

        // The end leaves what strangers have; without them nothing.
        agent.stop();
        let (code, removed) = cluster.egressctl(&["uninstall", "--yes"]);
        assert_eq!(code, Some(0), "{removed}");
        let left = filters(&cluster, "ingress");
        assert!(
            left.len() == 3 && !left.contains(&"sp_from_pod".to_owned()),
            "{left:?}"
        );
        assert!(filters(&cluster, "egress").is_empty());
        tc(&cluster, "qdisc del dev DEV clsact");
        let agent = cluster.agent(true);
        assert!(stand(&cluster));
        agent.stop();
        let (code, removed) = cluster.egressctl(&["uninstall", "--yes"]);
        assert_eq!(code, Some(0), "{removed}");
        let left = tc(&cluster, "qdisc show dev DEV");
        assert!(!left.contains("clsact"), "{left}");
    }
}
