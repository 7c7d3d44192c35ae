//! The startup taint, which others' taints must outlive.

use std::time::{Duration, Instant};

use egress_agent::agent::startup_taint::follow;
use egress_agent::source::kubernetes::client;
use serde_json::{Value, json};
use tokio::sync::watch;
use xtask::apiserver::ApiServer;

use crate::world::{PATIENCE, cluster};

const KEY: &str = "sallyport.dev/agent-not-ready";

fn node(name: &str, taints: &[(&str, &str)]) -> Value {
    let taint = |(key, effect): &(&str, &str)| json!({ "key": key, "effect": effect });
    let taints: Vec<Value> = taints.iter().map(taint).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name },
        "spec": { "podCIDR": "10.1.0.0/24", "taints": taints },
    })
}

fn taints(api: &ApiServer, name: &str) -> Vec<String> {
    let node = api.get(&node(name, &[])).expect("a node");
    let taints = node["spec"]["taints"].as_array().cloned();
    let taints = taints.unwrap_or_default().into_iter();
    taints
        .map(|taint| taint["key"].as_str().unwrap_or_default().to_owned())
        .collect()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waiting for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An agent of `node-1`, which is ready when the sender says so.
async fn agent(api: &ApiServer) -> watch::Sender<bool> {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config");
    std::fs::write(&file, api.kubeconfig()).expect("write it");
    let client = client(Some(&file)).await.expect("a client");
    let synced = watch::Sender::new(false);
    let ready = synced.subscribe();
    tokio::spawn(follow(client, "node-1".to_owned(), KEY.to_owned(), ready));
    synced
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_when_the_agent_is_ready_and_whenever_it_comes_back() {
    let api = cluster();
    let other = "node.kubernetes.io/unreachable";
    let mixed = [
        (KEY, "NoSchedule"),
        (other, "NoExecute"),
        (KEY, "NoExecute"),
    ];
    api.apply(&node("node-1", &mixed)).expect("a node");
    api.apply(&node("node-2", &mixed)).expect("a node");
    let synced = agent(&api).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(taints(&api, "node-1").len(), 3, "it is not ready");
    synced.send_replace(true);
    until("the removal", || taints(&api, "node-1") == [other]).await;
    assert_eq!(taints(&api, "node-2").len(), 3, "it is another agent's");
    let kept = api.get(&node("node-1", &[])).expect("a node");
    assert_eq!(kept["spec"]["podCIDR"], "10.1.0.0/24");

    // The node registers anew while the agent isn't ready.
    synced.send_replace(false);
    tokio::time::sleep(Duration::from_secs(3)).await;
    api.apply(&node("node-1", &[(KEY, "NoSchedule")]))
        .expect("a node");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(taints(&api, "node-1"), [KEY]);
    synced.send_replace(true);
    until("the removal", || taints(&api, "node-1").is_empty()).await;
    let patches = api.take_asked();
    let patches = patches.iter().filter(|(verb, _)| *verb == "patch");
    assert_eq!(patches.count(), 2, "nothing is written in vain");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taint_that_came_meanwhile_is_not_lost() {
    let api = cluster();
    api.apply(&node("node-1", &[(KEY, "NoSchedule")]))
        .expect("a node");
    let synced = agent(&api).await;
    until("the agent's look", || {
        let asked = api.take_asked();
        asked.contains(&("list", "nodes".to_owned()))
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    // What the agent has seen is no longer so, and it goes on from what it has seen.
    let other = "example.com/maintenance";
    api.apply(&node(
        "node-1",
        &[(other, "NoExecute"), (KEY, "NoSchedule")],
    ))
    .expect("a node");
    synced.send_replace(true);
    until("the removal", || taints(&api, "node-1") == [other]).await;
    let patches = api.take_asked();
    let patches = patches.iter().filter(|(verb, _)| *verb == "patch");
    assert_eq!(patches.count(), 2, "the first one was refused");
}
