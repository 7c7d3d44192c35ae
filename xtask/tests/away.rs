//! The API server is away for long, in each way that real ones are, while pods come and go and agents
//! are killed and started.

mod support;

mod needs_root {
    use std::fs;
    use std::net::{Ipv4Addr, TcpListener};
    use std::path::{Path, PathBuf};
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use serde_json::{Value, json};
    use xtask::apiserver::{Absence, ApiServer};
    use xtask::node::{Pod, PodSpec, objects};

    use super::support::api;
    use super::support::held::{no_stranger_was_seen, nothing_got_out, number as set};
    use super::support::traffic::{Traffic, tries};
    use super::support::{Agent, Cluster, skipped};

    /// Each absence lasts so long, in seconds: longer than an answer is waited for.
    const AWAY: u64 = 35;
    /// After its return everything is in step within so long: twice the longest wait between tries.
    const RETURN: Duration = Duration::from_mins(1);

    /// All of them, or the one that `SALLYPORT_ABSENCE` names.
    fn absences() -> Vec<Absence> {
        let mut all = vec![Absence::Refuses, Absence::Silent, Absence::Fails];
        if let Ok(one) = std::env::var("SALLYPORT_ABSENCE") {
            all.retain(|absence| format!("{absence:?}") == one);
            assert!(!all.is_empty(), "SALLYPORT_ABSENCE={one} is none");
        }
        all
    }

    /// What the directory holds, in an API server on the node's loopback.
    fn serve(cluster: &Cluster) -> (ApiServer, PathBuf) {
        let bind = |port| move || Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?);
        let host = cluster.node.host();
        let drawn = host.within(bind(0)).expect("a port");
        // By its number, so that it stays its own while nobody listens.
        let port = drawn.local_addr().expect("an address").port();
        drop(drawn);
        api::serve(cluster, host.within(bind(port)).expect("the port"))
    }

    /// Pods that the lockdown's status says are held; none while it says nothing.
    fn enforced(api: &ApiServer) -> Option<u64> {
        let all = api.list("sallyport.dev", "v1alpha1", "egresslockdowns");
        all.first()?["status"]["pods"]["enforced"].as_u64()
    }

    /// One more held pod, that the API server knows of.
    fn guest(cluster: &Cluster, api: &ApiServer, number: u8) -> Pod {
        let spec = PodSpec::new("bookinfo", &format!("guest-{number}"), number);
        api.apply(&objects::pod(&spec)).expect("it is taken");
        cluster.node.pod(&spec).expect("a pod")
    }

    /// The log without what is denied.
    fn told(cluster: &Cluster) -> String {
        let log = cluster.log();
        let lines = log.lines().filter(|line| !line.contains("\"denied\""));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// What happens while it is away; ends with a pod that only the API server knows of.
    fn meanwhile(
        cluster: &Cluster,
        api: &ApiServer,
        kubeconfig: &Path,
        (agent, known): (Agent, Pod),
        number: u8,
    ) -> (Agent, Pod) {
        let begun = Instant::now();
        let away = Duration::from_secs(set("SALLYPORT_AWAY", AWAY));
        // A pod that is known ends, and its object stays.
        tries(&known);
        known.delete().expect("its end");
        // An agent that is killed, and one that starts: it knows nothing, and changes nothing.
        agent.kill();
        sleep(Duration::from_secs(1));
        let before = cluster.counters().len();
        let mut agent = cluster.agent_of_api_server(kubeconfig, false);
        let tried = |cluster: &Cluster| {
            let log = cluster.log();
            let last = log
                .rsplit_once("\"loaded\"")
                .map(|(_, last)| last.to_owned());
            last.is_some_and(|last| last.contains("source_watch_failed"))
        };
        while !tried(cluster) {
            assert!(
                agent.runs() && begun.elapsed() < 2 * away,
                "it does not say that it hears nothing:\n{}",
                told(cluster)
            );
            sleep(Duration::from_millis(100));
        }
        assert!(cluster.ready().is_none(), "it says that it is in step");
        assert!(cluster.counters().len() >= before, "somebody was let go");
        // One that nobody on the node has heard of: the gate is closed to it.
        let late = guest(cluster, api, number + 1);
        while begun.elapsed() < away {
            tries(&late);
            sleep(Duration::from_secs(1));
        }
        (agent, late)
    }

    #[test]
    fn without_an_api_server_for_long_all_stands_and_after_it_all_is_in_step() {
        if skipped("without_an_api_server_for_long_all_stands_and_after_it_all_is_in_step") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let (api, kubeconfig) = serve(&cluster);
        let mut agent = cluster.agent_of_api_server(&kubeconfig, true);
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();
        let traffic = Traffic::start(&cluster);
        agent.wait(&cluster, "its status", |_| {
            (enforced(&api) == Some(1)).then_some(())
        });
        let mut guests = Vec::new();
        for (number, absence) in (40_u8..).step_by(2).zip(absences()) {
            let known = guest(&cluster, &api, number);
            let held = 2 + guests.len() as u64;
            agent.wait(&cluster, "one pod more", |_| {
                (enforced(&api) == Some(held)).then_some(())
            });
            api.set_absence(Some(absence));
            let (last, late) = meanwhile(&cluster, &api, &kubeconfig, (agent, known), number);
            agent = last;
            // It forgets what was, and another policy is declared.
            let ports = json!([{ "protocol": "UDP", "port": number }]);
            let cidrs = json!([{ "cidr": "198.51.100.0/24", "ports": ports }]);
            cluster.lockdown("Enforce", &json!({ "allow": { "cidrs": cidrs } }));
            let lockdown =
                fs::read_to_string(cluster.state.path().join("egresslockdown-bookinfo.yaml"));
            let lockdown = serde_yaml_ng::from_str(&lockdown.expect("its file"));
            api.apply(&lockdown.expect("an object"))
                .expect("it is taken");
            // The object of the pod that has ended goes, too.
            let ended = PodSpec::new("bookinfo", &format!("guest-{number}"), number);
            api.delete(&objects::pod(&ended)).expect("it is there");
            api.compact();
            api.set_absence(None);
            let back = Instant::now();
            guests.push(late);
            let mut in_step = || {
                let (_, rules) = cluster.egressctl(&["maps", "dump", "sp_prefix4"]);
                let port = rules
                    .to_string()
                    .contains(&format!("udp {number} exception"));
                agent.runs() && port && cluster.ready().is_some() && enforced(&api) == Some(held)
            };
            while !in_step() {
                assert!(
                    back.elapsed() < RETURN,
                    "{absence:?}: {:?} {:?}, log:\n{}",
                    cluster.ready(),
                    enforced(&api),
                    told(&cluster)
                );
                sleep(Duration::from_millis(100));
            }
            println!("{absence:?}: in step {:?} after its return", back.elapsed());
            let (code, status) = cluster.egressctl(&["status"]);
            assert_eq!(code, Some(0), "{status}");
            let told = fs::read(cluster.run_dir().join("status.json")).expect("a status");
            let told: Value = serde_json::from_slice(&told).expect("JSON");
            assert_eq!(told["source"]["connected"], true, "{told}");
            tries(guests.last().expect("a pod"));
        }
        let (answered, sent) = traffic.stop();
        println!("{answered:?} requests answered, {sent} forbidden packets sent");
        assert!(answered.iter().all(|n| *n > 100) && sent > 100);
        nothing_got_out(&wire, mark);
        no_stranger_was_seen(&cluster);
        agent.stop();
    }
}
