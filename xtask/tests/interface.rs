//! A pod's device is renamed, moved and replaced, under traffic.

mod support;

mod needs_root {
    use std::net::SocketAddr;
    use std::thread::sleep;
    use std::time::Duration;

    use xtask::node::{Pod, PodSpec, Process, objects, plan};

    use super::support::held::under_counted_traffic;
    use super::support::traffic::{SECRET, tries};
    use super::support::{Agent, Cluster};

    /// As `tries`, without end.
    fn flood(pod: &Pod) -> Process {
        let to = |ip| SocketAddr::new(ip, plan::OUTSIDE_UDP).to_string();
        let [v4, v6] = plan::OUTSIDE.all().map(to);
        let args = ["flood", "--to", &v4, "--to", &v6, "--payload", SECRET];
        let flood = pod.helper("flood", &args).expect("a process");
        flood.spawn("flood").expect("a process")
    }

    fn covered(cluster: &Cluster, agent: &mut Agent, pod: &Pod) -> u64 {
        agent.wait(cluster, "its cover", |cluster| {
            let (_, got) = cluster.egressctl(&["pods", "get", &pod.id()]);
            let text = got.to_string();
            let covered = text.contains("\"covered\"");
            covered.then(|| super::support::find(&got, "ifindex")?.as_u64())?
        })
    }

    fn guest(cluster: &Cluster, name: &str, number: u8) -> Pod {
        let spec = PodSpec::new("bookinfo", name, number);
        cluster
            .state
            .apply(&objects::pod(&spec))
            .expect("an object");
        cluster.node.pod(&spec).expect("a pod")
    }

    #[test]
    fn renamed_under_traffic_it_is_the_same() {
        under_counted_traffic("renamed_under_traffic_it_is_the_same", |cluster| {
            let mut agent = cluster.agent(true);
            let before = covered(cluster, &mut agent, &cluster.web);
            let (host, device) = (cluster.node.host(), cluster.web.device());
            for (from, to) in [(device, "renamed0"), ("renamed0", device)] {
                host.ip(&format!("link set {from} name {to}\n"))
                    .expect("rename it");
                sleep(Duration::from_millis(700));
                assert_eq!(covered(cluster, &mut agent, &cluster.web), before);
                let netns = cluster.web.netns();
                for (from, to) in [("eth0", "mine0"), ("mine0", "eth0")] {
                    netns
                        .ip(&format!("link set {from} name {to}\n"))
                        .expect("rename it");
                    sleep(Duration::from_millis(200));
                }
            }
            agent.stop();
        });
    }

    #[test]
    fn moved_or_hooked_anew_it_lets_nothing_out() {
        under_counted_traffic("moved_or_hooked_anew_it_lets_nothing_out", |cluster| {
            let mut agent = cluster.agent(true);
            let pod = guest(cluster, "guest", 30);
            let first = covered(cluster, &mut agent, &pod);
            tries(&pod);

            // Replaced: as a CNI does it, with the same name and another index. Its processes send all the
            // time, and go on when the agent does not.
            let mut flood = flood(&pod);
            for stopped in [false, false, false, true] {
                let before = covered(cluster, &mut agent, &pod);
                if stopped {
                    agent.stall(true);
                }
                pod.replace_device().expect("another device");
                sleep(Duration::from_millis(100));
                if stopped {
                    agent.stall(false);
                }
                agent.wait(cluster, "the new device's hooks", |cluster| {
                    let (_, got) = cluster.egressctl(&["pods", "get", &pod.id()]);
                    let now = super::support::find(&got, "ifindex")?.as_u64()?;
                    (now != before && got.to_string().contains("\"covered\"")).then_some(())
                });
                tries(&pod);
            }
            flood.kill().expect("its end");
            let last = covered(cluster, &mut agent, &pod);
            assert_ne!(first, last);

            // Its end of the pair goes to a pod that nobody holds, addresses and all.
            let netns = cluster.ratings.netns();
            pod.netns()
                .ip(&format!(
                    "link set eth0 netns {} name stolen0\n",
                    netns.name()
                ))
                .expect("move it");
            let ips = plan::pod(30);
            netns
                .ip(&format!(
                    "addr add {}/32 dev stolen0\nlink set stolen0 up\n\
                     route add {}/32 dev stolen0\n",
                    ips.v4,
                    plan::OUTSIDE.v4
                ))
                .expect("use it");
            // The route is IPv4's: only that leads through it.
            let to = SocketAddr::new(plan::OUTSIDE.v4.into(), plan::OUTSIDE_UDP).to_string();
            for _ in 0..5 {
                let probe = [
                    "udp",
                    "--to",
                    &to,
                    "--payload",
                    SECRET,
                    "--timeout-ms",
                    "30",
                ];
                cluster.ratings.probe(&probe).expect("a probe");
                sleep(Duration::from_millis(200));
            }
            netns.ip("link del stolen0\n").expect("its end");
            agent.stop();
        });
    }
}
