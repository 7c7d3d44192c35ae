//! Node reports, statuses and Events of several agents, whose passes are played: they hold whatever
//! is declared.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use egress_agent::agent::status::{Board, Notice, Regarding, Telling, Terms};
use egress_agent::index::{Index, Problem};
use egress_agent::reconcile::{Coverage, NodeStatus, PodStatus};
use egress_agent::source::kubernetes::{Kubernetes, Settings, client};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use xtask::apiserver::ApiServer;

use crate::objects::NODE;
use crate::world::{PACE, PATIENCE, cluster, log};

/// Quick, so that a test is.
const TERMS: Terms = Terms {
    duration: Duration::from_secs(2),
    renew: Duration::from_millis(400),
    poll: Some(Duration::from_millis(400)),
};

/// What a pass would know of this node.
#[derive(Clone, Default)]
struct Held {
    status: NodeStatus,
    /// The node can't bring what is declared into force.
    failures: BTreeSet<String>,
}

struct Agent {
    telling: Telling,
    passes: JoinHandle<()>,
    source: JoinHandle<()>,
    held: Arc<Mutex<Held>>,
    board: Arc<Mutex<Board>>,
}

impl Agent {
    async fn begin(api: &ApiServer, node: &str) -> Self {
        log();
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("config");
        std::fs::write(&file, api.kubeconfig()).expect("write it");
        let client = client(Some(&file)).await.expect("a client");
        let settings = Settings {
            node: node.to_owned(),
            cluster: None,
            clients: false,
            pace: PACE,
        };
        let (source, mut updates) = Kubernetes::new(client.clone(), settings);
        let source = tokio::spawn(source.run());
        let (board, following) = Board::new();
        let board = Arc::new(Mutex::new(board));
        let held = Arc::<Mutex<Held>>::default();
        let telling = Telling::begin(client, node, TERMS, following);
        let (known, passed) = (Arc::clone(&held), Arc::clone(&board));
        let passes = tokio::spawn(async move {
            let mut index = Index::default();
            loop {
                let ended = tokio::time::timeout(Duration::from_millis(50), updates.changed());
                if let Ok(Err(_)) = ended.await {
                    return;
                }
                let mut update = updates.take();
                let (changed, declared) = (update.apply(&mut index), update.declared.take());
                let mut board = passed.lock().expect("a board");
                let news = declared.is_some();
                if let Some(declared) = declared {
                    board.declare(declared);
                }
                if changed || news {
                    let problems: Vec<Problem> = index.problems().cloned().collect();
                    board.compiled(&index, &problems, std::iter::empty());
                }
                let Held { status, failures } = known.lock().expect("it").clone();
                if !index.nodes().is_empty() {
                    board.publish(failures.is_empty(), &status, &failures);
                }
            }
        });
        Self {
            telling,
            passes,
            source,
            held,
            board,
        }
    }

    fn set(&self, change: impl FnOnce(&mut Held)) {
        change(&mut self.held.lock().expect("it"));
    }

    /// As SIGTERM does.
    async fn end(self) {
        self.passes.abort();
        self.source.abort();
        self.telling.end().await;
    }

    /// As SIGKILL does.
    fn kill(self) {
        self.passes.abort();
        self.source.abort();
        drop(self.telling);
    }
}

fn object(version: &str, kind: &str, namespace: &str, name: &str) -> Value {
    json!({ "apiVersion": version, "kind": kind,
        "metadata": { "name": name, "namespace": namespace } })
}

fn get(api: &ApiServer, kind: &str, name: &str) -> Option<Value> {
    let of = |namespace| object("sallyport.dev/v1alpha1", kind, namespace, name);
    let found = api.get(&of("bookinfo"));
    found.map(|object| (*object).clone())
}

fn lockdown(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "sallyport.dev/v1alpha1", "kind": "EgressLockdown",
        "metadata": { "name": name }, "spec": spec })
}

fn service(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "sallyport.dev/v1alpha1", "kind": "ExternalService",
        "metadata": { "name": name, "namespace": "bookinfo" }, "spec": spec })
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.and_then(|all| all.iter().find(|it| it["type"] == kind));
    found.unwrap_or(&Value::Null)
}

fn holds(object: Option<&Value>, kind: &str, status: &str) -> bool {
    object.is_some_and(|object| {
        let condition = condition(object, kind);
        condition["status"] == status
            && condition["observedGeneration"] == object["metadata"]["generation"]
    })
}

async fn until<T>(what: &str, mut found: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match found() {
            Ok(found) => return found,
            Err(seen) => assert!(Instant::now() < deadline, "{what}: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits for a condition of an object at its own generation.
async fn until_holds(api: &ApiServer, kind: &str, name: &str, of: &str, status: &str) -> Value {
    until(&format!("{kind} {name}: {of} {status}"), || {
        let object = get(api, kind, name);
        if holds(object.as_ref(), of, status) {
            return Ok(object.expect("it holds"));
        }
        Err(format!("{object:?}"))
    })
    .await
}

fn holder(api: &ApiServer) -> String {
    let lease = object(
        "coordination.k8s.io/v1",
        "Lease",
        "default",
        "sallyport-status",
    );
    let lease = api.get(&lease);
    let holder = lease.map(|lease| lease["spec"]["holderIdentity"].clone());
    holder
        .unwrap_or_default()
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn events(api: &ApiServer, namespace: &str) -> Vec<Value> {
    let all = api.list("events.k8s.io", "v1", "events");
    let of = |event: &Value| event["metadata"]["namespace"] == namespace;
    all.into_iter().filter(of).collect()
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
