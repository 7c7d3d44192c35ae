//! Agents that are killed, each at another moment of its life, while policy changes and pods come
//! and go. `cargo xtask soak` does it a thousand times.

mod support;

mod needs_root {
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use serde_json::json;
    use xtask::node::{Pod, PodSpec, objects};

    use super::support::Cluster;
    use super::support::held::{Random, number, under_counted_traffic};
    use super::support::traffic::tries;

    /// The first agents live at most this much longer than one takes to be ready, in percent.
    const LONGEST_LIFE: u128 = 160;

    /// A pod that is held, or not known yet.
    fn guest(cluster: &Cluster) -> Pod {
        let spec = PodSpec::new("bookinfo", "guest", 30);
        cluster
            .state
            .apply(&objects::pod(&spec))
            .expect("an object");
        cluster.node.pod(&spec).expect("a pod")
    }

    #[test]
    fn killed_at_any_moment_it_holds() {
        let kills = number("SALLYPORT_KILLS", 40);
        under_counted_traffic("killed_at_any_moment_it_holds", |cluster| {
            let mut random = Random::new();
            let begun = Instant::now();
            let agent = cluster.agent(true);
            let start = begun.elapsed();
            agent.stop();
            println!("a start takes {start:?}");
            let mut longest = u64::try_from(start.as_millis() * LONGEST_LIFE / 100).expect("small");
            let mut visitor = None;
            let mut ready = 0;
            for i in 0..kills {
                let begun = Instant::now();
                let agent = cluster.agent(false);
                let life = Duration::from_millis(random.below(longest));
                sleep(life / 2);
                // Policy changes and pods come and go while the agent lives, or is being killed.
                cluster.lockdown(
                    "Enforce",
                    &json!({ "allow": { "cidrs": [{
                        "cidr": "198.51.100.0/24", "ports": [{ "port": 1 + i % 60_000 }],
                    }] } }),
                );
                if random.below(4) == 0 {
                    visitor = match visitor.take() {
                        None => Some(guest(cluster)),
                        Some(guest) => {
                            let guest: Pod = guest;
                            let object = objects::pod(guest.spec());
                            guest.delete().expect("its end");
                            let file = objects::file_name(&object);
                            cluster.state.remove(&file).expect("its object's");
                            None
                        }
                    };
                }
                if let Some(guest) = &visitor {
                    tries(guest);
                }
                sleep((life / 2).saturating_sub(begun.elapsed().saturating_sub(life / 2)));
                let is_ready = cluster.ready().is_some();
                ready += u64::from(is_ready);
                // So that about half of them are, whatever else the machine does.
                longest = if is_ready {
                    longest * 9 / 10
                } else {
                    longest * 11 / 10
                };
                longest = longest.max(200);
                agent.kill();
                if (i + 1) % 100 == 0 {
                    println!("{} kills", i + 1);
                }
            }
            println!("{kills} kills, {ready} of them of an agent that was ready");
            assert!(
                kills < 20 || (kills / 10..kills * 9 / 10).contains(&ready),
                "killed before and after they were ready"
            );
            let agent = cluster.agent(true);
            let (code, status) = cluster.egressctl(&["status"]);
            assert_eq!(code, Some(0), "{status}");
            let (_, rules) = cluster.egressctl(&["maps", "dump", "sp_prefix4"]);
            let last = (1 + (kills - 1) % 60_000).to_string();
            assert!(
                rules.to_string().contains(&last),
                "the last state is in force: {rules}"
            );
            agent.stop();
        });
    }
}
