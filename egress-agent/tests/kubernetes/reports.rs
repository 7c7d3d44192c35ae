//! Reports that go, and nodes that have none.

use serde_json::{Value, json};
use xtask::apiserver::ApiServer;

use crate::agents::{Agent, condition, events, get, object, until, until_holds};
use crate::objects::{self, NODE};
use crate::world::cluster;

/// The only lockdown, when such a condition holds of it.
async fn told(api: &ApiServer, of: &str, status: &str, reason: &str) -> Value {
    until(&format!("{of} {reason}"), || {
        let lockdown = get(api, "EgressLockdown", "all").unwrap_or_default();
        let it = condition(&lockdown, of);
        let holds = it["status"] == status && it["reason"] == reason;
        holds
            .then(|| lockdown.clone())
            .ok_or_else(|| lockdown.to_string())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_comes_back_with_a_node_that_is_registered_anew() {
    let api = cluster();
    let agent = Agent::begin(&api, NODE).await;
    let report = || get(&api, "EgressNode", NODE).ok_or_else(String::new);
    let first = until("a report", report).await;
    // The old report goes with the old Node, and its contents are as they were.
    let node = objects::node(NODE, 1);
    api.delete(&node).expect("it");
    assert!(report().is_err());
    api.apply(&node).expect("it");
    let uid = api.get(&node).expect("it")["metadata"]["uid"].clone();
    let second = until("a report again", report).await;
    let owner = |report: &Value| report["metadata"]["ownerReferences"][0]["uid"].clone();
    assert_eq!(owner(&second), uid);
    assert_ne!(owner(&first), uid);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_an_agent_is_counted_and_named() {
    let api = cluster();
    let mut windows = objects::node("windows", 9);
    windows["metadata"]["labels"] = json!({ "kubernetes.io/os": "windows" });
    api.apply(&windows).expect("it");
    api.apply(&objects::lockdown("all", "bookinfo", &[]))
        .expect("it");
    let one = Agent::begin(&api, NODE).await;
    for of in ["Realized", "Covered"] {
        let lockdown = told(&api, of, "False", "NodesWithoutAgent").await;
        let it = condition(&lockdown, of);
        assert!(
            it["message"].as_str().expect("text").contains("node-2"),
            "{it}"
        );
        assert_eq!(lockdown["status"]["nodes"]["withoutAgent"], 1, "{lockdown}");
    }
    let two = Agent::begin(&api, "node-2").await;
    let lockdown = told(&api, "Realized", "True", "OnAllNodes").await;
    assert_eq!(lockdown["status"]["nodes"]["total"], 2);
    assert!(lockdown["status"]["nodes"]["withoutAgent"].is_null());
    told(&api, "Covered", "True", "NoPods").await;
    // One that joins has some time, and then is missed.
    let mut third = objects::node("node-3", 3);
    third["metadata"]["labels"] = json!({ "kubernetes.io/os": "linux" });
    api.apply(&third).expect("it");
    let lockdown = told(&api, "Realized", "False", "NodesWithoutAgent").await;
    let message = &condition(&lockdown, "Realized")["message"];
    assert!(
        message.as_str().expect("text").contains("node-3"),
        "{message}"
    );
    api.delete(&object("v1", "Node", "", "node-3")).expect("it");
    told(&api, "Realized", "True", "OnAllNodes").await;
    one.end().await;
    two.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_refused_is_told_later() {
    let api = cluster();
    api.forbid(&["events.events.k8s.io"]);
    let service = |name: &str| {
        json!({ "apiVersion": "sallyport.dev/v1alpha1", "kind": "ExternalService",
            "metadata": { "name": name, "namespace": "bookinfo" }, "spec": { "hosts": 7 } })
    };
    api.apply(&service("bad")).expect("it");
    let agent = Agent::begin(&api, NODE).await;
    until_holds(&api, "ExternalService", "bad", "Accepted", "False").await;
    until("a try", || {
        let asked = api.take_asked();
        let tried = asked.contains(&("create", "events.events.k8s.io".to_owned()));
        tried.then_some(()).ok_or_else(|| format!("{asked:?}"))
    })
    .await;
    api.forbid(&[]);
    until("the Event", || {
        let events = events(&api, "bookinfo");
        (events.len() == 1)
            .then_some(())
            .ok_or_else(|| format!("{events:?}"))
    })
    .await;
    agent.end().await;
}
