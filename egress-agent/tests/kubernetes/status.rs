//! Node reports, statuses and Events of several agents.

use std::time::Duration;

use egress_agent::agent::status::{Notice, Regarding};
use egress_agent::reconcile::{Coverage, PodStatus};
use serde_json::{Value, json};
use xtask::apiserver::gloo_definitions;

use crate::agents::{Agent, condition, events, get, holder, object, until, until_holds};
use crate::objects::{NODE, gloo};
use crate::world::cluster;

fn lockdown(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "sallyport.dev/v1alpha1", "kind": "EgressLockdown",
        "metadata": { "name": name }, "spec": spec })
}

fn service(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "sallyport.dev/v1alpha1", "kind": "ExternalService",
        "metadata": { "name": name, "namespace": "bookinfo" }, "spec": spec })
}

fn uncovered_pod() -> PodStatus {
    PodStatus {
        uid: "uid-web".into(),
        namespace: "bookinfo".into(),
        name: "web".into(),
        service_account: "default".into(),
        mode: "enforce",
        gateway: false,
        coverage: Coverage::Uncovered,
        reason: Some("no device of it was found on the node".into()),
        slot: None,
        cgroup: None,
        policy: None,
        lockdowns: vec!["all".into()],
        devices: vec![],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_report_and_one_of_them_writes_the_statuses() {
    let api = cluster();
    api.apply(&lockdown("all", &json!({ "mode": "Enforce" })))
        .expect("it");
    let one = Agent::begin(&api, NODE).await;
    let two = Agent::begin(&api, "node-2").await;
    let told = until_holds(&api, "EgressLockdown", "all", "Realized", "True").await;
    until("both nodes count", || {
        let object = get(&api, "EgressLockdown", "all").expect("it");
        let nodes = &object["status"]["nodes"];
        let both = nodes["total"] == 2 && nodes["realized"] == 2 && nodes["since"].is_string();
        both.then_some(()).ok_or(object.to_string())
    })
    .await;
    assert_eq!(condition(&told, "Accepted")["status"], "True");
    let report = get(&api, "EgressNode", "node-2").expect("a report");
    let node = api.get(&object("v1", "Node", "", "node-2")).expect("it");
    assert_eq!(
        report["metadata"]["ownerReferences"][0]["uid"],
        node["metadata"]["uid"]
    );

    // A pod that is not held is told at once, by the node, by the lockdown, and as an Event.
    two.set(|held| held.status.pods = vec![uncovered_pod()]);
    let told = until_holds(&api, "EgressLockdown", "all", "Covered", "False").await;
    let message = condition(&told, "Covered")["message"]
        .as_str()
        .expect("text");
    assert!(message.contains("bookinfo/web on node-2"), "{message}");
    assert_eq!(told["status"]["pods"]["uncovered"], 1);
    let notice = Notice {
        regarding: Regarding {
            api_version: "v1".into(),
            kind: "Pod".into(),
            namespace: "bookinfo".into(),
            name: "web".into(),
            uid: "uid-web".into(),
        },
        warning: true,
        reason: "EgressUncovered",
        action: "Hold",
        note: "its egress is not held".into(),
    };
    for _ in 0..3 {
        two.board.lock().expect("it").notice(notice.clone());
    }
    until("an Event", || {
        let events = events(&api, "bookinfo");
        (events.len() == 1 && events[0]["regarding"]["uid"] == "uid-web")
            .then_some(())
            .ok_or(format!("{events:?}"))
    })
    .await;

    // A node that can't do it is named, and says why.
    one.set(|held| held.failures = ["map sp_exact4 is full".to_owned()].into());
    until("the failure", || {
        let report = get(&api, "EgressNode", NODE).expect("a report");
        (report["failures"][0] == "map sp_exact4 is full")
            .then_some(())
            .ok_or(report.to_string())
    })
    .await;
    api.apply(&lockdown("all", &json!({ "mode": "Audit" })))
        .expect("it");
    until("one is behind", || {
        let object = get(&api, "EgressLockdown", "all").expect("it");
        let nodes = &object["status"]["nodes"];
        let behind = nodes["realized"] == 1 && nodes["behind"] == json!([NODE]);
        behind.then_some(()).ok_or(object.to_string())
    })
    .await;
    one.set(|held| held.failures.clear());
    until_holds(&api, "EgressLockdown", "all", "Realized", "True").await;

    // Nothing changes: only the Lease is written.
    tokio::time::sleep(Duration::from_secs(3)).await;
    api.take_asked();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let asked = api.take_asked();
    let writes: Vec<_> = asked
        .iter()
        .filter(|(verb, what)| {
            matches!(*verb, "patch" | "create" | "update") && !what.starts_with("leases")
        })
        .collect();
    assert!(writes.is_empty(), "{writes:?}");

    // A node that is gone takes its report with it, and holds up nobody.
    two.kill();
    api.delete(&object("v1", "Node", "", "node-2")).expect("it");
    until("one node", || {
        let object = get(&api, "EgressLockdown", "all").expect("it");
        (object["status"]["nodes"]["total"] == 1)
            .then_some(())
            .ok_or(object.to_string())
    })
    .await;
    assert!(get(&api, "EgressNode", "node-2").is_none());
    one.end().await;
    assert_eq!(holder(&api), "", "it was given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_takes_over_when_the_writer_is_killed_and_nothing_flaps() {
    let api = cluster();
    api.apply(&lockdown("all", &json!({ "mode": "Enforce" })))
        .expect("it");
    let one = Agent::begin(&api, NODE).await;
    until("it leads", || match holder(&api).as_str() {
        NODE => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    let two = Agent::begin(&api, "node-2").await;
    until("both nodes count", || {
        let object = get(&api, "EgressLockdown", "all").expect("it");
        (object["status"]["nodes"]["realized"] == 2)
            .then_some(())
            .ok_or(object.to_string())
    })
    .await;
    // Envoys are another manager's, and stay.
    let before = get(&api, "EgressLockdown", "all").expect("it");
    assert_eq!(holder(&api), NODE);
    one.kill();
    until("the other leads", || match holder(&api).as_str() {
        "node-2" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = get(&api, "EgressLockdown", "all").expect("it");
    assert_eq!(before["status"], after["status"], "nothing flaps");
    api.apply(&lockdown("all", &json!({ "mode": "Audit" })))
        .expect("it");
    until("the dead node is behind", || {
        let object = get(&api, "EgressLockdown", "all").expect("it");
        let nodes = &object["status"]["nodes"];
        let told = nodes["realized"] == 1 && nodes["behind"] == json!([NODE]);
        told.then_some(()).ok_or(object.to_string())
    })
    .await;
    two.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_object_is_told_with_field_and_reason_and_holds_up_no_other() {
    let api = cluster();
    api.apply(&service(
        "good",
        &json!({ "hosts": ["a.example.com"], "ports": [{ "number": 80 }] }),
    ))
    .expect("it");
    api.apply(&service(
        "bad",
        &json!({ "hosts": ["b.example.com"], "ports": [{ "number": 80 }] }),
    ))
    .expect("it");
    let one = Agent::begin(&api, NODE).await;
    let two = Agent::begin(&api, "node-2").await;
    until_holds(&api, "ExternalService", "bad", "Realized", "True").await;
    // It can't be read any more, and at once another changes.
    api.apply(&service("bad", &json!({ "hosts": 7 })))
        .expect("it");
    api.apply(&service(
        "good",
        &json!({ "hosts": ["c.example.com"], "ports": [{ "number": 81 }] }),
    ))
    .expect("it");
    let bad = until_holds(&api, "ExternalService", "bad", "Accepted", "False").await;
    let message = condition(&bad, "Accepted")["message"]
        .as_str()
        .expect("text");
    assert!(message.starts_with("spec.hosts: "), "{message}");
    assert_eq!(bad["status"]["unsupported"][0]["field"], "spec.hosts");
    assert_eq!(bad["status"]["unsupported"][0]["effect"], "Refused");
    assert_eq!(condition(&bad, "Realized")["status"], "False");
    until_holds(&api, "ExternalService", "good", "Realized", "True").await;
    let event = until("an Event", || {
        let events = events(&api, "bookinfo");
        let found = events.iter().find(|it| it["regarding"]["name"] == "bad");
        found.cloned().ok_or(format!("{events:?}"))
    })
    .await;
    assert_eq!(event["reason"], "Refused");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["regarding"]["uid"], bad["metadata"]["uid"]);
    assert!(
        event["note"]
            .as_str()
            .expect("text")
            .starts_with("spec.hosts: ")
    );
    // Read, but with something in it that is not honoured.
    let spec = json!({ "hosts": ["b.example.com"], "ports": [{ "number": 80, "colour": "red" }] });
    api.apply(&service("bad", &spec)).expect("it");
    let bad = until_holds(&api, "ExternalService", "bad", "Accepted", "True").await;
    until_holds(&api, "ExternalService", "bad", "Realized", "True").await;
    assert_eq!(condition(&bad, "Supported")["status"], "False");
    assert_eq!(
        bad["status"]["unsupported"][0]["field"],
        "spec.ports[0].colour"
    );
    // One Event for each, whoever leads.
    one.end().await;
    until("the other leads", || match holder(&api).as_str() {
        "node-2" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let reasons: Vec<String> = events(&api, "bookinfo")
        .iter()
        .map(|event| event["reason"].to_string())
        .collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    two.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_honoured_in_an_object_of_gloo_mesh_is_told_of_that_object() {
    let api = cluster();
    for definition in gloo_definitions() {
        api.apply(&definition).expect("a definition");
    }
    let spec = json!({ "hosts": ["a.example.com"], "ports": [{ "number": 80, "colour": "red" }] });
    let theirs = gloo(service("theirs", &spec));
    api.apply(&theirs).expect("it");
    let agent = Agent::begin(&api, NODE).await;
    let event = until("an Event", || {
        let events = events(&api, "bookinfo");
        let found = events.iter().find(|it| it["regarding"]["name"] == "theirs");
        found.cloned().ok_or(format!("{events:?}"))
    })
    .await;
    assert_eq!(event["reason"], "Ignored");
    let regarding = &event["regarding"];
    assert_eq!(regarding["apiVersion"], "networking.gloo.solo.io/v2");
    let note = event["note"].as_str().expect("text");
    assert!(note.starts_with("spec.ports[0].colour"), "{note}");
    // Its status is Gloo Mesh's to write.
    let there = api.get(&theirs).expect("it is there");
    assert!(there["status"].is_null(), "{there}");
    agent.end().await;
}
