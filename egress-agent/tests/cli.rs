//! `egressctl` and the telemetry against real pins: the kernel object loaded, attached and pinned
//! as the agent does it, in a network namespace, cgroup and bpffs of this test's own.
//!
//! Needs root and an agent built with its kernel object; `SALLYPORT_SKIP_ROOT_TESTS=1` leaves it out by
//! name.

#[path = "cli/node.rs"]
mod node;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use egress_agent::datapath::pinned::Pinned;
use egress_agent::telemetry::{Consumer, Hub, Metrics, socket};
use node::{Node, on_a_node};
use serde_json::Value;

fn items(node: &Node, args: &[&str]) -> (Option<i32>, Vec<Value>) {
    let output = node
        .egressctl(args)
        .args(["-o", "json"])
        .output()
        .expect("run egressctl");
    let text = String::from_utf8_lossy(&output.stdout);
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
        let words = String::from_utf8_lossy(&output.stderr);
        panic!("egressctl {args:?}: {error}: {text}{words}")
    });
    assert_eq!(value["apiVersion"], "sallyport.dev/ctl/v1");
    let items = value["items"].as_array().expect("items").clone();
    (output.status.code(), items)
}

#[test]
fn needs_root_status_tells_what_covers_whom() {
    on_a_node("status", |node| {
        let (code, status) = items(node, &["status"]);
        assert_eq!(code, Some(0), "{status:#?}");
        let status = &status[0];
        assert_eq!(status["agent"]["running"], false);
        assert_eq!(status["pods"][0]["name"], "reviews-v1");
        assert_eq!(status["pods"][0]["coverage"], "covered");
        assert_eq!(status["pods"][0]["devices"][0]["name"], "lo");
        assert_eq!(status["hooks"].as_array().expect("hooks").len(), 6);
        for hook in status["hooks"].as_array().expect("hooks") {
            assert_eq!(hook["state"], "attached");
            assert_eq!(hook["programTag"].as_str().expect("tag").len(), 16);
        }
        let kubepods = status["kubepods"].as_str().expect("path");
        assert_eq!(kubepods, node.cgroup.display().to_string());

        node.unpin("dev-1-ingress");
        let (code, status) = items(node, &["status"]);
        assert_eq!(code, Some(2), "{status:#?}");
        assert_eq!(status[0]["pods"][0]["coverage"], "uncovered");
        assert_eq!(status[0]["pods"][0]["devices"][0]["fromPod"], "missing");
        let text = node.egressctl(&["status"]).output().expect("run").stdout;
        let text = String::from_utf8(text).expect("UTF-8");
        assert!(
            text.contains("UNCOVERED: bookinfo/reviews-v1: a hook"),
            "{text}"
        );

        node.unpin("cg-egress");
        let (code, status) = items(node, &["status"]);
        assert_eq!(code, Some(2));
        assert_eq!(status[0]["hooks"][0]["state"], "missing");
    });
}

#[test]
fn needs_root_pods_and_maps_are_decoded() {
    on_a_node("maps", |node| {
        node.send_denied(3);
        let (_, pods) = items(node, &["pods", "list"]);
        assert_eq!(pods.len(), 1);
        let (code, pods) = items(node, &["pods", "get", "bookinfo/reviews-v1"]);
        assert_eq!(code, Some(0));
        assert_eq!(pods[0]["counters"][0]["reason"], "not-allowed");
        assert_eq!(pods[0]["counters"][0]["packets"], 3);
        assert_eq!(pods[0]["droppedPackets"], 3);
        assert_eq!(pods[0]["v4"], "10.244.1.5");
        assert_eq!(pods[0]["rules"][0], "EgressLockdown/web allow.cidrs[0]");

        let missing = node
            .egressctl(&["pods", "get", "a/b"])
            .output()
            .expect("run");
        assert_eq!(missing.status.code(), Some(1));

        let (_, maps) = items(node, &["maps", "list"]);
        let exact = maps
            .iter()
            .find(|map| map["name"] == "sp_exact4")
            .expect("listed");
        assert_eq!(
            (&exact["type"], &exact["used"]),
            (&"hash".into(), &1.into())
        );
        assert!(exact["memory"].as_u64().expect("memory") > 0);

        let (_, entries) = items(node, &["maps", "dump", "sp_exact4"]);
        assert_eq!(entries[0]["address"], "10.244.1.9");
        assert_eq!(entries[0]["port"], 8443);
        assert_eq!(entries[0]["protocol"], "tcp");
        assert_eq!(entries[0]["reason"], "gateway");
        assert_eq!(entries[0]["rule"], "EgressLockdown/web allow.cidrs[0]");
        let (_, entries) = items(node, &["maps", "dump", "exact4", "-n"]);
        assert_eq!(entries[0]["protocol"], 6);
        assert_eq!(entries[0]["rule"], 0);
        let (_, entries) = items(node, &["maps", "dump", "prefix4"]);
        assert_eq!(entries[0]["prefix"], "10.244.0.0/16");
        assert_eq!(entries[0]["allow"][0], "ANY ANY cluster");
        for map in maps.iter().filter(|map| map["name"] != "sp_events") {
            let name = map["name"].as_str().expect("name");
            let (code, _) = items(node, &["maps", "dump", name]);
            assert_eq!(code, Some(0), "{name}");
        }
        let ring = node
            .egressctl(&["maps", "dump", "events"])
            .output()
            .expect("run");
        assert_eq!(ring.status.code(), Some(1));
    });
}

#[test]
fn needs_root_events_without_an_agent_come_from_the_ring() {
    on_a_node("ring", |node| {
        node.send_denied(2);
        let (_, events) = items(node, &["events", "list"]);
        assert_eq!(events.len(), 2, "{events:#?}");
        let event = &events[0];
        assert_eq!(event["verdict"], "drop");
        assert_eq!(event["reason"], "not-allowed");
        assert_eq!(event["pod"]["name"], "reviews-v1");
        assert_eq!(event["destination"]["address"], "203.0.113.10");
        assert_eq!(event["destination"]["port"], 443);
        assert_eq!(event["process"]["comm"], "curl");
        assert_eq!(items(node, &["events", "list"]).1.len(), 0, "taken once");
        node.send_denied(1);
        let (_, events) = items(node, &["events", "--namespace", "other"]);
        assert!(events.is_empty());
        let wrong = node
            .egressctl(&["events", "--reason", "x"])
            .output()
            .expect("run");
        assert_eq!(wrong.status.code(), Some(1));
    });
}

/// The telemetry of an agent, for as long as it lives.
struct Agent {
    runtime: tokio::runtime::Runtime,
}

impl Agent {
    fn start(node: &Node) -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let pinned = Pinned::open(&node.bpffs).expect("pins");
        let hub = Hub::new();
        let consumer = Consumer::new(pinned, &node.run_dir, hub.clone(), Metrics::new(None));
        let guard = runtime.enter();
        let server = socket::Server::bind(&node.run_dir).expect("bind");
        drop(guard);
        runtime.spawn(server.run(hub));
        runtime.spawn(async { consumer.run().await.expect("the ring is read") });
        Self { runtime }
    }

    fn stop(self) {
        self.runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

#[test]
fn needs_root_following_goes_on_while_agents_come_and_go() {
    on_a_node("follow", |node| {
        let agent = Agent::start(node);
        let mut follower = node
            .egressctl(&["events", "-f", "-o", "json"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("run egressctl");
        let stdout = follower.stdout.take().expect("piped");
        let (send, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let next = || -> Value {
            let line = lines
                .recv_timeout(Duration::from_secs(10))
                .expect("an event");
            serde_json::from_str(&line).expect("a line of JSON")
        };
        let port = |event: &Value| event["destination"]["port"].as_u64();
        node.send_to_port(1001);
        assert_eq!(port(&next()), Some(1001));
        agent.stop();
        node.send_to_port(1002);
        assert_eq!(port(&next()), Some(1002), "read from the ring");
        let agent = Agent::start(node);
        // The follower holds the ring until it sees the agent; either hands the event out once.
        node.send_to_port(1003);
        assert_eq!(port(&next()), Some(1003));
        node.send_to_port(1004);
        assert_eq!(port(&next()), Some(1004));
        let silence = lines.recv_timeout(Duration::from_millis(500));
        assert!(silence.is_err(), "each once: {silence:?}");
        follower.kill().expect("kill");
        follower.wait().expect("wait");
        agent.stop();
    });
}

#[test]
fn needs_root_uninstall_leaves_nothing() {
    on_a_node("uninstall", |node| {
        let refused = node
            .egressctl(&["uninstall"])
            .stdin(Stdio::null())
            .output()
            .expect("run");
        assert_eq!(refused.status.code(), Some(1), "nobody confirmed");
        assert!(node::root(&node.bpffs).join("maps/sp_config").exists());

        let agent = Agent::start(node);
        let refused = node
            .egressctl(&["uninstall", "--yes"])
            .output()
            .expect("run");
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(words.contains("the agent runs"), "{words}");
        assert_eq!(refused.status.code(), Some(1));
        agent.stop();

        // Programs live on in their loader; it goes as an agent's process would.
        node.forget_programs();
        let pins = |folder: &str| {
            let folder = node::root(&node.bpffs).join(folder);
            std::fs::read_dir(folder).expect("pins").count()
        };
        let (links, maps) = (pins("links"), pins("maps"));
        assert!(links >= 8 && maps >= 17, "{links} links, {maps} maps");
        let (code, removed) = items(node, &["uninstall", "--yes"]);
        assert_eq!(code, Some(0));
        assert_eq!(removed.len(), links + maps, "{removed:#?}");
        assert!(!node.bpffs.join("sallyport").exists());
        let start = Instant::now();
        let again = node.egressctl(&["status"]).output().expect("run");
        let words = String::from_utf8_lossy(&again.stderr).into_owned();
        assert_eq!(again.status.code(), Some(1));
        assert!(words.contains("is the agent installed?"), "{words}");
        assert!(start.elapsed() < Duration::from_secs(5));
    });
}
