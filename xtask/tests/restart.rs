//! Restarts, kills, broken files and the end, under traffic: nothing forbidden gets out, nothing
//! allowed breaks.

mod support;

mod needs_root {
    use std::hash::{BuildHasher as _, Hasher as _};
    use std::net::SocketAddr;
    use std::thread::sleep;
    use std::time::Duration;

    use serde_json::json;
    use xtask::node::{objects, plan};

    use super::support::traffic::{SECRET, Traffic};
    use super::support::{Cluster, skipped};

    /// Agents that are killed, each at another moment of its life.
    const KILLS: u64 = 20;
    const LONGEST_LIFE_MS: u64 = 1_500;

    /// A held cluster with its agent, and traffic; `during` happens to it.
    fn under_traffic(name: &str, during: impl FnOnce(&Cluster)) {
        if skipped(name) {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();
        let traffic = Traffic::start(&cluster);
        sleep(Duration::from_millis(300));
        agent.stop();
        during(&cluster);
        let (answered, sent) = traffic.stop();
        println!("{name}: {answered:?} requests answered, {sent} forbidden packets sent");
        assert!(
            answered.iter().all(|n| *n > 100) && sent > 100,
            "there was traffic"
        );
        let out = wire.since(mark);
        let out: Vec<_> = out
            .iter()
            .filter(|packet| packet.contains(SECRET))
            .collect();
        assert!(
            out.is_empty(),
            "{} got out, such as {:?}",
            out.len(),
            out[0]
        );
    }

    #[test]
    fn a_restart_with_unchanged_state_writes_nothing() {
        under_traffic("a_restart_with_unchanged_state_writes_nothing", |cluster| {
            for _ in 0..3 {
                let agent = cluster.agent(true);
                let (_, writes) = cluster.ready().expect("ready");
                assert_eq!(writes, 0, "{}", cluster.log());
                sleep(Duration::from_millis(300));
                agent.stop();
            }
        });
    }

    #[test]
    fn killed_at_any_moment_it_holds() {
        // A seed of the day; printed, so that a failure can be looked into.
        let seed = std::collections::hash_map::RandomState::new()
            .build_hasher()
            .finish();
        println!("seed {seed}");
        under_traffic("killed_at_any_moment_it_holds", |cluster| {
            let mut random = seed;
            for i in 0..KILLS {
                let agent = cluster.agent(false);
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(i | 1);
                let life = Duration::from_millis((random >> 33) % LONGEST_LIFE_MS);
                sleep(life / 2);
                // The policy changes while the agent lives, or is just being killed.
                cluster.lockdown(
                    "Enforce",
                    &json!({ "allow": { "cidrs": [{
                    "cidr": "198.51.100.0/24", "ports": [{ "port": 1000 + i }],
                }] } }),
                );
                sleep(life / 2);
                agent.kill();
            }
            let agent = cluster.agent(true);
            let (code, status) = cluster.egressctl(&["status"]);
            assert_eq!(code, Some(0), "{status}");
            let (_, rules) = cluster.egressctl(&["maps", "dump", "sp_prefix4"]);
            let last = (1000 + KILLS - 1).to_string();
            assert!(
                rules.to_string().contains(&last),
                "the last state is in force: {rules}"
            );
            agent.stop();
        });
    }

    #[test]
    fn a_broken_file_is_told_and_changes_nothing() {
        under_traffic("a_broken_file_is_told_and_changes_nothing", |cluster| {
            let mut agent = cluster.agent(true);
            let broken = "apiVersion: sallyport.dev/v1alpha1\nkind: EgressLockdown\n\
                          metadata:\n  name: bookinfo\nspec:\n  mode: Sometimes\n";
            let file = "egresslockdown-bookinfo.yaml";
            cluster.state.write(file, broken).expect("write");
            agent.wait(cluster, "the error", |cluster| {
                let log = cluster.log();
                let told = |line: &str| {
                    ["source_error", file, "spec.mode", "\"line\":6"]
                        .iter()
                        .all(|it| line.contains(it))
                };
                log.lines().any(told).then_some(())
            });
            sleep(Duration::from_millis(300));
            agent.stop();

            // An agent that starts now has no last good version: it leaves the kernel alone.
            let mut agent = cluster.agent(false);
            agent.wait(cluster, "held_back", |cluster| {
                cluster.log().contains("held_back").then_some(())
            });
            assert!(cluster.ready().is_none(), "it is not in step");
            sleep(Duration::from_millis(300));

            cluster.lockdown("Enforce", &json!({}));
            agent.wait(cluster, "being in step again", Cluster::ready);
            agent.stop();
        });
    }

    #[test]
    fn what_changes_while_it_is_down_holds_when_it_is_back() {
        under_traffic(
            "what_changes_while_it_is_down_holds_when_it_is_back",
            |cluster| {
                let ratings = SocketAddr::new(plan::pod(12).v4.into(), 9).to_string();
                let dns = SocketAddr::new(plan::pod(10).v4.into(), 9).to_string();
                let refused = |to: &str| {
                    let answer = cluster
                        .web
                        .probe(&["tcp", "--to", to, "--timeout-ms", "400"]);
                    answer.expect("a probe").outcome == "refused"
                };
                assert!(refused(&ratings) && refused(&dns), "pods are reached");
                // Only Services from now on; the standing connections go to one.
                cluster.lockdown("Enforce", &json!({ "allow": { "cluster": ["Services"] } }));
                assert!(refused(&ratings), "nobody has told the kernel");
                let agent = cluster.agent(true);
                assert!(
                    !refused(&ratings) && !refused(&dns),
                    "pods are not reached any more"
                );
                agent.stop();
            },
        );
    }

    #[test]
    fn after_uninstall_the_node_is_as_before() {
        if skipped("after_uninstall_the_node_is_as_before") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let agent = cluster.agent(true);
        let open = || {
            let to = SocketAddr::new(plan::OUTSIDE.v4.into(), plan::OUTSIDE_UDP).to_string();
            let wire = cluster.node.wire().expect("a recorder");
            let mark = wire.mark();
            let probe = [
                "udp",
                "--to",
                &to,
                "--payload",
                "is it open?",
                "--timeout-ms",
                "300",
            ];
            cluster.web.probe(&probe).expect("a probe");
            wire.since(mark)
                .iter()
                .any(|packet| packet.contains("is it open?"))
        };
        assert!(!open());
        let (code, _) = cluster.egressctl(&["uninstall", "--yes"]);
        assert_eq!(code, Some(1), "not while the agent runs");
        agent.stop();
        assert!(!open());
        let (code, removed) = cluster.egressctl(&["uninstall", "--yes"]);
        assert_eq!(code, Some(0), "{removed}");
        assert!(!cluster.node.bpffs().join("sallyport").exists());
        assert!(open(), "no program is left");
        // And it can come back.
        cluster
            .state
            .apply(&objects::namespace("another"))
            .expect("an object");
        let agent = cluster.agent(true);
        assert!(!open());
        agent.stop();
    }
}
