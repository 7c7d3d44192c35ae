//! Restarts, kills, broken files and the end, under traffic: nothing forbidden gets out, nothing
//! allowed breaks.

mod support;

mod needs_root {
    use std::net::SocketAddr;
    use std::thread::sleep;
    use std::time::Duration;

    use serde_json::json;
    use xtask::node::{objects, plan};

    use super::support::held::{under_counted_traffic, under_traffic};
    use super::support::{Cluster, skipped};

    #[test]
    fn a_restart_with_unchanged_state_writes_nothing() {
        under_counted_traffic("a_restart_with_unchanged_state_writes_nothing", |cluster| {
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
    fn a_broken_file_is_told_and_changes_nothing() {
        under_counted_traffic("a_broken_file_is_told_and_changes_nothing", |cluster| {
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
        // Where the pins were removed by hand, the tables are still taken down; and then nothing is there.
        let host = cluster.node.host();
        let tables = || host.nft("list tables\n").expect("nft");
        let before = tables();
        host.nft("add table inet sallyport-gate\nadd table bridge sallyport\n")
            .expect("nft");
        let (code, removed) = cluster.egressctl(&["uninstall", "--yes"]);
        assert_eq!((code, tables()), (Some(0), before), "{removed}");
        let (code, _) = cluster.egressctl(&["uninstall", "--yes"]);
        assert_eq!(code, Some(1), "nothing is installed");
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
