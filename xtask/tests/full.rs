//! Maps, the ring of events and the disk are full. The agent is one whose maps are small.

mod support;

mod needs_root {
    use std::fs;
    use std::net::{SocketAddr, UdpSocket};
    use std::thread::sleep;
    use std::time::Duration;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use serde_json::{Value, json};
    use xtask::node::{Pod, PodSpec, objects, plan};

    use super::support::held::{
        nothing_got_out, other_layout, under_counted_traffic, under_traffic,
    };
    use super::support::traffic::SECRET;
    use super::support::{Cluster, skipped};

    /// Datagrams of one family.
    const BURST: u64 = 2_000;

    /// More than the small tables take.
    fn too_many() -> Value {
        let cidr = |n: u32| json!({ "cidr": format!("198.{}.{}.0/24", 18 + n / 256, n % 256) });
        json!({ "allow": { "cidrs": (0..600).map(cidr).collect::<Vec<_>>() } })
    }

    #[test]
    fn a_full_table_keeps_the_old_policy_until_there_is_room() {
        under_traffic(
            "a_full_table_keeps_the_old_policy_until_there_is_room",
            |cluster| {
                cluster.version = Some(other_layout());
                let mut agent = cluster.agent(true);
                cluster.lockdown("Enforce", &too_many());
                agent.wait(cluster, "the failure", |cluster| {
                    let log = cluster.log();
                    let told = |line: &str| {
                        line.contains("reconcile_failed") && line.contains("the map is full")
                    };
                    log.lines().any(told).then_some(())
                });
                assert!(cluster.ready().is_none(), "it is not in step");
                let (_, status) = cluster.egressctl(&["status"]);
                let in_sync = super::support::find(&status, "inSync");
                assert_eq!(in_sync, Some(&Value::Bool(false)), "{status}");
                sleep(Duration::from_millis(500));
                cluster.lockdown("Enforce", &json!({}));
                agent.wait(cluster, "being in step", Cluster::ready);
                let (code, status) = cluster.egressctl(&["status"]);
                assert_eq!(code, Some(0), "{status}");
                agent.stop();
            },
        );
    }

    #[test]
    fn pods_that_have_no_room_are_denied_told_and_held_when_there_is() {
        under_traffic(
            "pods_that_have_no_room_are_denied_told_and_held_when_there_is",
            |cluster| {
                cluster.version = Some(other_layout());
                let mut agent = cluster.agent(true);
                let mut pods: Vec<Pod> = (0..10)
                    .map(|n| {
                        let spec = PodSpec::new("bookinfo", &format!("guest-{n}"), 30 + n);
                        cluster
                            .state
                            .apply(&objects::pod(&spec))
                            .expect("an object");
                        cluster.node.pod(&spec).expect("a pod")
                    })
                    .collect();
                agent.wait(cluster, "the failure", |cluster| {
                    let log = cluster.log();
                    log.contains("the map is full").then_some(())
                });
                let to = SocketAddr::new(plan::OUTSIDE.v4.into(), plan::OUTSIDE_UDP).to_string();
                for pod in &pods {
                    let probe = [
                        "udp",
                        "--to",
                        &to,
                        "--payload",
                        SECRET,
                        "--timeout-ms",
                        "30",
                    ];
                    pod.probe(&probe).expect("a probe");
                }
                let (code, status) = cluster.egressctl(&["status"]);
                assert_ne!(code, Some(0), "{status}");
                assert!(cluster.ready().is_none());
                for pod in pods.drain(..5) {
                    let file = objects::file_name(&objects::pod(pod.spec()));
                    pod.delete().expect("its end");
                    cluster.state.remove(&file).expect("its object's");
                }
                agent.wait(cluster, "being in step", Cluster::ready);
                let (code, status) = cluster.egressctl(&["status"]);
                assert_eq!(code, Some(0), "{status}");
                agent.stop();
            },
        );
    }

    #[test]
    fn with_a_full_ring_every_packet_is_counted() {
        if skipped("with_a_full_ring_every_packet_is_counted") {
            return;
        }
        let mut cluster = Cluster::new();
        cluster.version = Some(other_layout());
        cluster.lockdown("Enforce", &json!({}));
        // Then nobody reads, and a few events fill the ring.
        cluster.agent(true).stop();
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();
        let slot = cluster.slot(&cluster.web);
        let counted = |cluster: &Cluster| {
            let counters = cluster.counters();
            let denied = counters.get(&(slot, "not-allowed".to_owned()));
            denied.copied().unwrap_or_default()
        };
        let lost = |cluster: &Cluster| {
            let (_, got) = cluster.egressctl(&["pods", "get", &cluster.web.id()]);
            let lost = super::support::find(&got, "eventsLost").and_then(Value::as_u64);
            lost.unwrap_or_else(|| panic!("no eventsLost in {got}"))
        };
        let (before, lost_before) = (counted(&cluster), lost(&cluster));
        for ip in plan::OUTSIDE.all() {
            let burst = move || {
                let socket = UdpSocket::bind(if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
                for _ in 0..BURST {
                    socket.send_to(SECRET.as_bytes(), SocketAddr::new(ip, plan::OUTSIDE_UDP))?;
                    sleep(Duration::from_micros(200));
                }
                Ok(())
            };
            cluster.web.netns().within(burst).expect("sent");
        }
        assert_eq!(
            counted(&cluster) - before,
            2 * BURST,
            "each packet is counted"
        );
        let lost = lost(&cluster) - lost_before;
        // Those that found room, a packet's element being 88 bytes.
        let room = 4096 / 88;
        assert!(
            (2 * BURST - room..=2 * BURST).contains(&lost),
            "{lost} events were lost"
        );
        nothing_got_out(&wire, mark);
    }

    #[test]
    fn with_a_full_disk_it_goes_on_and_says_so() {
        if skipped("with_a_full_disk_it_goes_on_and_says_so") {
            return;
        }
        under_counted_traffic("with_a_full_disk_it_goes_on_and_says_so", |cluster| {
            let run_dir = cluster.run_dir();
            let tmpfs = Some("tmpfs");
            let size = Some("size=8k");
            mount(tmpfs, &run_dir, tmpfs, MsFlags::empty(), size).expect("a small disk");
            let full = || fs::write(run_dir.join("ballast"), [1; 16 << 10]).is_err();
            assert!(full(), "the disk is full");
            let mut agent = cluster.agent(false);
            agent.wait(cluster, "its complaint", |cluster| {
                cluster.log().contains("run_dir_unwritable").then_some(())
            });
            // The kernel is brought in step all the same.
            cluster.lockdown(
                "Enforce",
                &json!({ "allow": { "cidrs": [{
                "cidr": "198.51.100.0/24", "ports": [{ "port": 4711 }],
            }] } }),
            );
            agent.wait(cluster, "the new policy", |cluster| {
                let (_, rules) = cluster.egressctl(&["maps", "dump", "sp_prefix4"]);
                rules.to_string().contains("4711").then_some(())
            });
            assert!(cluster.ready().is_none());
            fs::remove_file(run_dir.join("ballast")).expect("make room");
            agent.wait(cluster, "being in step", Cluster::ready);
            agent.stop();
            umount2(&run_dir, MntFlags::MNT_DETACH).expect("unmount");
        });
    }
}
