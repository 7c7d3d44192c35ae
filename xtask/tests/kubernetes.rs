//! The agent with its declared state from an API server (a double of one), which comes and goes.

mod support;

mod needs_root {
    use std::fs;
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};
    use std::path::PathBuf;
    use std::thread::sleep;
    use std::time::Duration;

    use serde_json::{Value, json};
    use xtask::apiserver::ApiServer;
    use xtask::node::{Netns, PodSpec, objects, plan};

    use super::support::api::{self, mirror};
    use super::support::traffic::{SECRET, Traffic};
    use super::support::{Agent, Cluster, skipped};

    /// What the directory holds, in an API server on the node's loopback.
    fn serve(cluster: &Cluster) -> (ApiServer, PathBuf) {
        serve_at(cluster, cluster.node.host(), Ipv4Addr::LOCALHOST)
    }

    fn serve_at(cluster: &Cluster, netns: &Netns, ip: Ipv4Addr) -> (ApiServer, PathBuf) {
        let listener = netns
            .within(move || Ok(TcpListener::bind((ip, 0))?))
            .expect("a port");
        api::serve(cluster, listener)
    }

    fn status(cluster: &Cluster) -> Option<Value> {
        let text = fs::read(cluster.run_dir().join("status.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn connected(cluster: &Cluster) -> Option<bool> {
        status(cluster)?["source"]["connected"].as_bool()
    }

    #[test]
    fn it_enforces_what_the_api_server_says_and_goes_on_without_it() {
        if skipped("it_enforces_what_the_api_server_says_and_goes_on_without_it") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let (api, kubeconfig) = serve(&cluster);
        let mut agent = cluster.agent_of_api_server(&kubeconfig, true);
        let ratings = SocketAddr::new(plan::pod(12).v4.into(), 9).to_string();
        let reached = || {
            let answer = cluster
                .web
                .probe(&["tcp", "--to", &ratings, "--timeout-ms", "400"]);
            answer.expect("a probe").outcome == "refused"
        };
        assert!(reached(), "pods of the cluster are open");
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();
        let traffic = Traffic::start(&cluster);
        sleep(Duration::from_millis(300));

        // A change is enforced.
        agent.declare(&cluster, || {
            cluster.lockdown("Enforce", &json!({ "allow": { "cluster": ["Services"] } }));
            mirror(&cluster, &api);
        });
        assert!(!reached(), "they are no more");

        // Without the API server everything stands, and how old it is can be read.
        api.set_away(true);
        agent.wait(&cluster, "the loss", |cluster| {
            (connected(cluster) == Some(false)).then_some(())
        });
        let since = &status(&cluster).expect("a status")["source"]["staleSince"];
        assert!(since.is_string(), "{since}");
        assert!(!reached() && cluster.ready().is_some());

        // An agent that begins without it changes nothing.
        agent.stop();
        let mut agent = cluster.agent_of_api_server(&kubeconfig, false);
        agent.wait(&cluster, "its first try", |cluster| {
            let log = cluster.log();
            let (_, last) = log.rsplit_once("\"loaded\"")?;
            last.contains("source_watch_failed").then_some(())
        });
        assert!(!reached() && cluster.ready().is_none());

        // When it is back there is nothing to write.
        api.compact();
        api.set_away(false);
        let (_, writes) = agent.wait(&cluster, "being in step", Cluster::ready);
        assert_eq!(writes, 0, "{}", cluster.log());
        assert_eq!(connected(&cluster), Some(true));
        assert!(!reached());

        // It goes away again and forgets what was: one list each, and nothing to write.
        api.take_asked();
        api.set_away(true);
        agent.wait(&cluster, "the loss", |cluster| {
            (connected(cluster) == Some(false)).then_some(())
        });
        mirror(&cluster, &api);
        api.compact();
        api.set_away(false);
        agent.wait(&cluster, "its return", |cluster| {
            (connected(cluster) == Some(true)).then_some(())
        });
        let asked = api.take_asked();
        for (verb, resource) in &asked {
            let same = |(v, r): &&(&str, String)| *v == "list" && r == resource;
            let most = match resource.split_once('.') {
                // Those of this node, and gateways' elsewhere.
                None if resource == "pods" => 2,
                // The definitions of three kinds are watched one by one.
                Some(("customresourcedefinitions", _)) => 3,
                // The only agent is the one that writes statuses, too.
                Some((_, "sallyport.dev")) => 2,
                _ => 1,
            };
            let lists = asked.iter().filter(same).count();
            assert!(
                *verb != "list" || lists <= most,
                "{resource} {lists}: {asked:?}"
            );
        }
        let (_, writes) = cluster.ready().expect("it is in step");
        assert_eq!(writes, 0, "{}", cluster.log());

        let (answered, sent) = traffic.stop();
        assert!(
            answered.iter().all(|n| *n > 100) && sent > 100,
            "there was traffic: {answered:?} {sent}"
        );
        let out = wire.since(mark);
        let out = out.iter().filter(|packet| packet.contains(SECRET)).count();
        assert_eq!(out, 0, "nothing got out");
        agent.stop();
    }
    #[test]
    fn an_agent_in_a_new_pod_gets_through_the_closed_gate() {
        if skipped("an_agent_in_a_new_pod_gets_through_the_closed_gate") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        // Not on loopback, which is open to all.
        let (api, kubeconfig) = serve_at(&cluster, cluster.node.outside(), plan::OUTSIDE.v4);
        cluster.agent_of_api_server(&kubeconfig, true).stop();
        let spec = PodSpec::new("sallyport-system", "agent-2", 40).host_network();
        let pod = cluster.node.pod(&spec).expect("a pod");
        let to = api.address().to_string();
        let reached = || {
            let answer = pod.probe(&["tcp", "--to", &to, "--timeout-ms", "400"]);
            answer.expect("a probe").outcome
        };
        let before = reached();
        assert_ne!(before, "connected", "the gate is closed");
        api.apply(&objects::namespace("sallyport-system"))
            .expect("it is taken");
        api.apply(&objects::pod(&spec)).expect("it is taken");
        let mut agent = cluster.agent_in(&pod, &kubeconfig);
        agent.wait(&cluster, "being in step", Cluster::ready);
        let (code, status) = cluster.egressctl(&["status"]);
        assert_eq!(code, Some(0), "{status}");
        agent.stop();
        assert_eq!(reached(), "connected", "{before} before");
    }

    /// In kind the node is a container, and its cgroup namespace hides how deep kubepods is.
    #[test]
    fn an_agent_on_a_node_that_is_a_container_finds_the_pods() {
        if skipped("an_agent_on_a_node_that_is_a_container_finds_the_pods") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let level = || {
            let (code, dump) = cluster.egressctl(&["maps", "dump", "sp_config"]);
            assert_eq!(code, Some(0), "{dump}");
            let items = dump["items"].as_array().expect("items");
            let found = items.iter().find(|item| item["setting"] == "kubepodsLevel");
            found.expect("it is a setting")["value"].clone()
        };
        cluster.agent(true).stop();
        let on_the_node = level();
        let (code, _) = cluster.egressctl(&["uninstall", "--yes"]);
        assert_eq!(code, Some(0));
        let spec = PodSpec::new("sallyport-system", "agent", 40).host_network();
        let pod = cluster.node.pod(&spec).expect("a pod");
        let mut agent = cluster.agent_in_nested(&pod);
        agent.wait(&cluster, "being in step", Cluster::ready);
        assert_eq!(level(), on_the_node);
        agent.stop();
    }

    /// Resident memory in KiB and processor time in milliseconds.
    fn cost(agent: &Agent) -> (u64, u64) {
        let proc = PathBuf::from(format!("/proc/{}", agent.pid()));
        let status = fs::read_to_string(proc.join("status")).expect("its status");
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.expect("VmRSS").trim().trim_end_matches(" kB");
        let stat = fs::read_to_string(proc.join("stat")).expect("its times");
        let (_, stat) = stat.rsplit_once(')').expect("a name");
        let times: Vec<u64> = stat
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|time| time.parse().expect("a number"))
            .collect();
        // A tick is 10 ms on every architecture that matters here.
        (rss.parse().expect("a number"), (times[0] + times[1]) * 10)
    }

    fn elsewhere(i: u32, ready: &str) -> Value {
        let ip = format!("10.{}.{}.{}", 128 + i / 65536, (i / 256) % 256, i % 256);
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("app-{i}"), "namespace": "other", "uid": format!("uid-{i}"),
                "labels": { "app": format!("app-{}", i % 500), "pod-template-hash": "5d4f8c7b9c" },
                "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": "x".repeat(1500) } }] },
            "spec": { "nodeName": format!("node-{}", 100 + i % 100), "serviceAccountName": "default",
                "containers": [{ "name": "app", "image": "example.com/app", "args": ["y".repeat(500)] }] },
            "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
                "conditions": [{ "type": "Ready", "status": ready }] },
        })
    }

    #[test]
    fn ten_thousand_pods_of_other_nodes_cost_next_to_nothing() {
        const PODS: u32 = 10_000;
        if skipped("ten_thousand_pods_of_other_nodes_cost_next_to_nothing") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let (api, kubeconfig) = serve(&cluster);
        let gateway = objects::pod(cluster.gateway.spec());
        api.delete(&gateway).expect("it is there");
        let mut agent = cluster.agent_of_api_server(&kubeconfig, true);
        let applied = |object: &Value| drop(api.apply(object).expect("it is taken"));
        sleep(Duration::from_secs(1));
        let (alone, before) = cost(&agent);
        let mut cpu = before;
        let mut tell = |what: &str, agent: &Agent| {
            let (rss, now) = cost(agent);
            println!("{what}: {rss} KiB, {} ms", now - cpu);
            cpu = now;
            rss
        };
        (0..PODS).for_each(|i| applied(&elsewhere(i, "False")));
        (0..PODS).for_each(|i| applied(&elsewhere(i, "True")));
        sleep(Duration::from_secs(1));
        println!("alone: {alone} KiB");
        let rss = tell("pods of other nodes are made and change", &agent);
        let (_, spent) = cost(&agent);
        assert!(rss < alone + 4096, "{rss} KiB, {alone} before");
        assert!(spent - before < 1000, "{} ms", spent - before);

        // What every node has to know grows with Services and their endpoints.
        for service in 0..1000_u32 {
            let ip = format!("10.97.{}.{}", service / 250, service % 250 + 1);
            let (meta, name) = (format!("svc-{service}"), "kubernetes.io/service-name");
            applied(&json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": { "name": meta, "namespace": "other" },
                "spec": { "clusterIP": ip, "clusterIPs": [ip], "selector": { "app": meta },
                    "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }] },
            }));
            let endpoints: Vec<Value> = (0..10)
                .map(|i| {
                    let pod = elsewhere(service * 10 + i, "True");
                    json!({ "addresses": [pod["status"]["podIP"]], "targetRef": {
                        "kind": "Pod", "namespace": "other", "name": pod["metadata"]["name"],
                        "uid": pod["metadata"]["uid"] } })
                })
                .collect();
            applied(&json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": { "name": meta, "namespace": "other", "labels": { name: meta } },
                "endpoints": endpoints,
                "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
            }));
        }
        sleep(Duration::from_secs(3));
        tell("1,000 Services with 10 endpoints each", &agent);
        agent.declare(&cluster, || applied(&gateway));
        sleep(Duration::from_secs(3));
        tell("a gateway here: all pods are read", &agent);
        agent.stop();
    }
}
