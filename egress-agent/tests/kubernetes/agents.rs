//! Agents whose passes are played: they hold whatever is declared.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use egress_agent::agent::status::{Board, Telling, Terms};
use egress_agent::index::{Index, Problem};
use egress_agent::reconcile::NodeStatus;
use egress_agent::source::kubernetes::{Kubernetes, Settings, client};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use xtask::apiserver::ApiServer;

use crate::world::{PACE, PATIENCE, log};

/// Quick, so that a test is.
pub const TERMS: Terms = Terms {
    duration: Duration::from_secs(2),
    renew: Duration::from_millis(400),
    poll: Some(Duration::from_millis(400)),
    refresh: Duration::from_mins(10),
    stale: Duration::from_mins(45),
    grace: Duration::from_secs(2),
};

/// What a pass would know of this node.
#[derive(Clone, Default)]
pub struct Held {
    pub status: NodeStatus,
    /// The node can't bring what is declared into force.
    pub failures: BTreeSet<String>,
}

pub struct Agent {
    telling: Telling,
    passes: JoinHandle<()>,
    source: JoinHandle<()>,
    held: Arc<Mutex<Held>>,
    pub board: Arc<Mutex<Board>>,
}

impl Agent {
    pub async fn begin(api: &ApiServer, node: &str) -> Self {
        Self::with(&api.kubeconfig(), node, true).await
    }

    pub async fn with(kubeconfig: &str, node: &str, gloo: bool) -> Self {
        log();
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("config");
        std::fs::write(&file, kubeconfig).expect("write it");
        let client = client(Some(&file)).await.expect("a client");
        let settings = Settings {
            node: node.to_owned(),
            cluster: None,
            clients: false,
            gloo,
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

    pub fn set(&self, change: impl FnOnce(&mut Held)) {
        change(&mut self.held.lock().expect("it"));
    }

    /// As SIGTERM does.
    pub async fn end(self) {
        self.passes.abort();
        self.source.abort();
        self.telling.end().await;
    }

    /// As SIGKILL does.
    pub fn kill(self) {
        self.passes.abort();
        self.source.abort();
        drop(self.telling);
    }
}

pub fn object(version: &str, kind: &str, namespace: &str, name: &str) -> Value {
    json!({ "apiVersion": version, "kind": kind,
        "metadata": { "name": name, "namespace": namespace } })
}

pub fn get(api: &ApiServer, kind: &str, name: &str) -> Option<Value> {
    let of = |namespace| object("sallyport.dev/v1alpha1", kind, namespace, name);
    let found = api.get(&of("bookinfo"));
    found.map(|object| (*object).clone())
}

pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.and_then(|all| all.iter().find(|it| it["type"] == kind));
    found.unwrap_or(&Value::Null)
}

pub fn holds(object: Option<&Value>, kind: &str, status: &str) -> bool {
    object.is_some_and(|object| {
        let condition = condition(object, kind);
        condition["status"] == status
            && condition["observedGeneration"] == object["metadata"]["generation"]
    })
}

pub async fn until<T>(what: &str, mut found: impl FnMut() -> Result<T, String>) -> T {
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
pub async fn until_holds(api: &ApiServer, kind: &str, name: &str, of: &str, status: &str) -> Value {
    until(&format!("{kind} {name}: {of} {status}"), || {
        let object = get(api, kind, name);
        if holds(object.as_ref(), of, status) {
            return Ok(object.expect("it holds"));
        }
        Err(format!("{object:?}"))
    })
    .await
}

pub fn holder(api: &ApiServer) -> String {
    holder_in(api, "default")
}

pub fn holder_in(api: &ApiServer, namespace: &str) -> String {
    let lease = object(
        "coordination.k8s.io/v1",
        "Lease",
        namespace,
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

pub fn events(api: &ApiServer, namespace: &str) -> Vec<Value> {
    let all = api.list("events.k8s.io", "v1", "events");
    let of = |event: &Value| event["metadata"]["namespace"] == namespace;
    all.into_iter().filter(of).collect()
}
