//! The agent ends between any two steps, each after the other, and the next one goes on from there.

mod support;

mod needs_root {
    use std::fs;
    use std::time::Duration;

    use serde_json::json;
    use xtask::node::{PodSpec, objects};

    use super::support::Cluster;
    use super::support::held::{number, other_layout, under_traffic};

    /// More would mean that it gets nowhere.
    const STARTS: u32 = 400;

    /// Starts agents that are cut off after one step, or after more where the next one begins anew
    /// what was not finished, until one has nothing left to do. Tells the steps.
    fn step_by_step(cluster: &mut Cluster) -> Vec<String> {
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
                for what in ["attach ingress", "adopt flows", "set endpoint of cgroup"] {
                    has(&steps, what);
                }

                if number("SALLYPORT_ALL_CUTS", 0) != 0 {
                    guest.replace_device().expect("another device");
                    let steps = step_by_step(cluster);
                    told("another device", &steps);
                    has(&steps, "attach ingress");
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

    /// What a power cut leaves: nothing in the kernel, and files cut short or filled with anything.
    #[test]
    fn after_a_power_cut_it_begins_with_whatever_is_in_its_directory() {
        if super::support::skipped("after_a_power_cut_it_begins_with_whatever_is_in_its_directory")
        {
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
