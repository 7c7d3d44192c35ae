//! The agent ends between any two steps, each after the other, and the next one goes on from there.

mod support;

mod needs_root {
    use std::fs;
    use std::time::Duration;

    use serde_json::json;
    use xtask::node::{PodSpec, objects};

    use super::support::held::{nothing_got_out, number, other_layout, under_traffic};
    use super::support::traffic::{SECRET, Traffic};
    use super::support::{Cluster, skipped};

    /// More would mean that it gets nowhere.
    const STARTS: u32 = 400;

    /// Starts agents that are cut off after one step, or after more where the next one begins anew
    /// what was not finished, until one has nothing left to do. Tells the steps.
    fn step_by_step(cluster: &mut Cluster) -> Vec<String> {
        cut_after_each(cluster, |_| {})
    }

    /// As `step_by_step`; `look` is called after each cut.
    fn cut_after_each(cluster: &mut Cluster, mut look: impl FnMut(&str)) -> Vec<String> {
        let mut steps: Vec<String> = Vec::new();
        let mut after = 1;
        for _ in 0..STARTS {
            cluster
                .environment
                .insert("SALLYPORT_CUT_AFTER".to_owned(), after.to_string());
            let mut agent = cluster.agent(false);
            while agent.runs() {
                if cluster.ready().is_some() {
                    agent.stop();
                    cluster.environment.clear();
                    return steps;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let log = cluster.log();
            let last = log.lines().rev().find(|line| line.contains("\"cut\""));
            let last = last.unwrap_or_else(|| panic!("it was cut: {log}"));
            let line: serde_json::Value = serde_json::from_str(last).expect("a line of the log");
            let step = line["op"].as_str().expect("a step").to_owned();
            // What was not finished is begun anew: further, until there is something new.
            let again = steps.contains(&step);
            after = if again { after + 1 } else { 1 };
            look(&step);
            steps.push(step);
        }
        panic!("it gets nowhere: {steps:#?}");
    }

    fn told(what: &str, steps: &[String]) {
        println!("{what}: cut {} times: {steps:?}", steps.len());
    }

    #[test]
    fn cut_off_after_each_step_of_any_change_it_holds() {
        under_traffic(
            "cut_off_after_each_step_of_any_change_it_holds",
            |cluster| {
                // The first time all is taken over from another layout.
                cluster.version = Some(other_layout());
                let steps = step_by_step(cluster);
                told("upgrade", &steps);
                let has = |steps: &[String], what: &str| {
                    assert!(
                        steps.iter().any(|step| step.contains(what)),
                        "no step '{what}' among {steps:?}"
                    );
                };
                for what in [
                    "take over",
                    "swap ingress",
                    "swap egress of kubepods",
                    "remove layout",
                ] {
                    has(&steps, what);
                }

                cluster.lockdown("Enforce", &json!({ "allow": { "cluster": ["Services"] } }));
                let steps = step_by_step(cluster);
                told("policy", &steps);
                for what in [
                    "write policy",
                    "complete",
                    "set endpoint of device",
                    "clear policy",
                ] {
                    has(&steps, what);
                }

                let spec = PodSpec::new("bookinfo", "guest", 30);
                cluster
                    .state
                    .apply(&objects::pod(&spec))
                    .expect("an object");
                let guest = cluster.node.pod(&spec).expect("a pod");
                let steps = step_by_step(cluster);
                told("a pod more", &steps);
                for what in [
                    // The gate was opened for it first, with a hook that judges by the sender.
                    "ingress of device",
                    "adopt flows",
                    "set endpoint of cgroup",
                ] {
                    has(&steps, what);
                }

                if number("SALLYPORT_ALL_CUTS", 0) != 0 {
                    guest.replace_device().expect("another device");
                    let steps = step_by_step(cluster);
                    told("another device", &steps);
                    has(&steps, "ingress of device");
                }

                guest.delete().expect("its end");
                let object = objects::file_name(&objects::pod(&spec));
                cluster.state.remove(&object).expect("its object's");
                let steps = step_by_step(cluster);
                told("a pod less", &steps);
                has(&steps, "free slot");
            },
        );
    }

    /// Nothing of Sallyport was ever on the node, and its pods have connections. Until a pod's hook
    /// stands, what it sends goes out; from then on nothing does.
    #[test]
    fn cut_off_after_each_step_of_the_first_attach_it_breaks_nothing_and_holds_from_the_hook_on() {
        let name = "cut_off_after_each_step_of_the_first_attach_it_breaks_nothing_and_holds_from_the_hook_on";
        if skipped(name) {
            return;
        }
        let mut cluster = Cluster::new();
        cluster.version = Some(other_layout());
        cluster.lockdown("Enforce", &json!({}));
        let spec = PodSpec::new("bookinfo", "other", 30);
        cluster
            .state
            .apply(&objects::pod(&spec))
            .expect("an object");
        let _other = cluster.node.pod(&spec).expect("a pod");
        let device = cluster.web.device().to_owned();
        let index = move || Ok(nix::net::if_::if_nametoindex(device.as_str())?);
        let ifindex = cluster.node.host().within(index).expect("an index");
        let wire = cluster.node.wire().expect("a recorder");
        let begin = wire.mark();
        let traffic = Traffic::start(&cluster);
        std::thread::sleep(Duration::from_millis(300));
        let out = wire.since(begin);
        assert!(
            out.iter().any(|packet| packet.contains(SECRET)),
            "nobody holds it yet"
        );
        let mut held = None;
        let mut begun = 0;
        let closes = format!("attach ingress of device {ifindex}");
        let steps = cut_after_each(&mut cluster, |step| {
            begun += usize::from(held.is_none());
            if step == closes {
                held.get_or_insert_with(|| wire.mark());
            }
        });
        println!("the first attach: cut {} times: {steps:?}", steps.len());
        for what in [
            "set config",
            "write policy",
            "complete",
            "zero counters",
            "give slot",
            "set endpoint of device",
            "attach egress of device",
            "adopt flows",
            "attach ingress of device",
            "set endpoint of cgroup",
            "attach connect4 of kubepods",
            "attach egress of kubepods",
        ] {
            assert!(
                steps.iter().any(|step| step.contains(what)),
                "no step '{what}' among {steps:?}"
            );
        }
        assert!(
            0 < begun && begun < steps.len(),
            "cut before and after the hook"
        );
        let (answered, sent) = traffic.stop();
        println!("{name}: {answered:?} requests answered, {sent} forbidden packets sent");
        assert!(answered.iter().all(|n| *n > 20) && sent > 100);
        nothing_got_out(&wire, held.expect("the hook was attached"));
        let mut agent = cluster.agent(true);
        let (code, status) = cluster.egressctl(&["status"]);
        assert_eq!(code, Some(0), "{status}");
        assert!(agent.runs());
        agent.stop();
    }

    /// What a power cut leaves: nothing in the kernel, and files cut short or filled with anything.
    #[test]
    fn after_a_power_cut_it_begins_with_whatever_is_in_its_directory() {
        if skipped("after_a_power_cut_it_begins_with_whatever_is_in_its_directory") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let agent = cluster.agent(true);
        let names: Vec<_> = fs::read_dir(cluster.run_dir())
            .expect("the run directory")
            .map(|entry| entry.expect("a file").file_name())
            .collect();
        agent.stop();
        let mut names: Vec<_> = names.iter().filter_map(|name| name.to_str()).collect();
        names.extend([
            "last-good.json",
            ".status.json.new",
            ".ready.new",
            ".last-good.json.new",
        ]);
        for garbage in [&b""[..], b"{\"half\":", b"\0\xff\0\xfe", b"[{}, 7, null]"] {
            let (code, _) = cluster.egressctl(&["uninstall", "--yes"]);
            assert_eq!(code, Some(0));
            for name in &names {
                let path = cluster.run_dir().join(name);
                let _ = fs::remove_file(&path);
                fs::write(path, garbage).expect("write it");
            }
            let agent = cluster.agent(true);
            let (code, status) = cluster.egressctl(&["status"]);
            assert_eq!(code, Some(0), "{names:?} {garbage:?}: {status}");
            agent.stop();
        }
    }
}
