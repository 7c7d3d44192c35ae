//! From a version to one whose maps have another layout, and back, under traffic.

mod support;

mod needs_root {
    use std::fs;
    use std::path::PathBuf;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::support::held::{Random, number, other_layout, under_traffic};
    use super::support::{Cluster, skipped};

    /// An agent lives at most this much longer than one takes to be ready, in percent.
    const LONGEST_LIFE: u128 = 130;

    /// Directories of pins, by layout.
    fn layouts(cluster: &Cluster) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(cluster.node.bpffs().join("sallyport")) else {
            return Vec::new();
        };
        let paths = entries.map(|entry| entry.expect("a layout").path());
        // Beside them is a link that tells which was last.
        paths.filter(|path| !path.is_symlink()).collect()
    }

    /// Links of the only layout that is left.
    fn links(cluster: &Cluster) -> usize {
        let layouts = layouts(cluster);
        let [only] = &layouts[..] else {
            panic!("one layout is left: {layouts:?}")
        };
        fs::read_dir(only.join("links")).expect("links").count()
    }

    /// What was counted of the pod that sends what is forbidden.
    fn forbidden(cluster: &Cluster) -> u64 {
        let slot = cluster.slot(&cluster.web);
        let counted = cluster.counters();
        counted[&(slot, "not-allowed".to_owned())]
    }

    #[test]
    fn another_layout_takes_over_and_is_taken_over_without_a_gap() {
        under_traffic(
            "another_layout_takes_over_and_is_taken_over_without_a_gap",
            |cluster| {
                let versions = [Some(other_layout()), None];
                let hooks = links(cluster);
                let mut counted = forbidden(cluster);
                let slot = cluster.slot(&cluster.web);
                for round in 0..2 {
                    for version in &versions {
                        let before = layouts(cluster);
                        cluster.version.clone_from(version);
                        let (code, _) = cluster.egressctl(&["status"]);
                        assert_eq!(code, Some(1), "it can't read the other layout");
                        let agent = cluster.agent(true);
                        assert_ne!(layouts(cluster), before, "{}", cluster.log());
                        assert_eq!(links(cluster), hooks, "round {round}");
                        let (code, status) = cluster.egressctl(&["status"]);
                        assert_eq!(code, Some(0), "{status}");
                        assert_eq!(cluster.slot(&cluster.web), slot, "pods keep their slots");
                        sleep(Duration::from_millis(300));
                        let now = forbidden(cluster);
                        assert!(now > counted, "counters go on: {counted} {now}");
                        counted = now;
                        agent.stop();
                        // The same again is an ordinary restart.
                        let agent = cluster.agent(true);
                        let (_, writes) = cluster.ready().expect("ready");
                        assert_eq!(writes, 0, "{}", cluster.log());
                        agent.stop();
                    }
                }
            },
        );
    }

    #[test]
    fn killed_at_any_moment_of_an_upgrade_it_holds() {
        under_traffic("killed_at_any_moment_of_an_upgrade_it_holds", |cluster| {
            let mut random = Random::new();
            let other = other_layout();
            let mut both = 0;
            cluster.version = Some(other.clone());
            let begun = Instant::now();
            let agent = cluster.agent(true);
            let longest = begun.elapsed().as_millis() * LONGEST_LIFE / 100;
            let longest = u64::try_from(longest).expect("small");
            agent.stop();
            for count in 0..number("SALLYPORT_UPGRADES", 12) {
                cluster.version = (random.below(2) == 0).then(|| other.clone());
                let agent = cluster.agent(false);
                let life = Duration::from_millis(random.below(longest));
                sleep(life / 2);
                cluster.lockdown(
                    "Enforce",
                    &json!({ "allow": { "cidrs": [{
                        "cidr": "198.51.100.0/24", "ports": [{ "port": 1000 + count }],
                    }] } }),
                );
                sleep(life / 2);
                agent.kill();
                both += usize::from(layouts(cluster).len() > 1);
            }
            println!("{both} times it was killed in between");
            for version in [Some(other), None] {
                cluster.version = version;
                let agent = cluster.agent(true);
                let (code, status) = cluster.egressctl(&["status"]);
                assert_eq!(code, Some(0), "{status}");
                links(cluster);
                agent.stop();
            }
        });
    }

    #[test]
    fn uninstall_removes_what_any_version_has_left() {
        if skipped("uninstall_removes_what_any_version_has_left") {
            return;
        }
        let mut cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        cluster.agent(true).stop();
        // Cut off after its first step, when it has a directory of its own.
        cluster.version = Some(other_layout());
        let cut = ("SALLYPORT_CUT_AFTER".to_owned(), "1".to_owned());
        cluster.environment.extend([cut]);
        let mut agent = cluster.agent(false);
        assert!(!agent.ended().success());
        assert_eq!(layouts(&cluster).len(), 2);
        // Either may be had.
        cluster.version = None;
        let (code, removed) = cluster.egressctl(&["uninstall", "--yes"]);
        assert_eq!(code, Some(0), "{removed}");
        assert!(!cluster.node.bpffs().join("sallyport").exists());
    }
}
