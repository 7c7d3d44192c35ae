//! A source that follows a double of the API server.

use std::time::Duration;

use egress_agent::index::Index;
use egress_agent::source::kubernetes::{Kubernetes, Pace, Settings, client};
use egress_agent::source::{Health, SourceError, Updates};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use xtask::apiserver::{ApiServer, own_definitions};

use super::objects::{self, NODE};

pub const PATIENCE: Duration = Duration::from_secs(90);

/// Quick to try again, so that a test is.
pub const PACE: Pace = Pace {
    first: Duration::from_millis(10),
    longest: Duration::from_millis(200),
    answer: Duration::from_secs(3),
    watch: Duration::from_secs(30),
    silence: Duration::from_secs(2),
    forbidden: Duration::from_millis(500),
};

/// Logs as `RUST_LOG` says.
pub fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    // Another test may have been first.
    let _ = log.with_test_writer().try_init();
}

/// An API server with Sallyport's kinds and an empty cluster of two nodes.
pub fn cluster() -> ApiServer {
    let api = ApiServer::start().expect("a port");
    for definition in own_definitions() {
        api.apply(&definition).expect("a definition");
    }
    for object in [
        objects::node(NODE, 1),
        objects::node("node-2", 2),
        objects::namespace("bookinfo"),
        objects::namespace("istio-egress"),
        objects::service_account("bookinfo", "default"),
        objects::pod("bookinfo", "web", NODE, "10.244.1.10", "web"),
        objects::pod("bookinfo", "elsewhere", "node-2", "10.244.2.10", "web"),
        objects::pod("istio-egress", "gw", "node-2", "10.244.2.20", "gateway"),
    ] {
        api.apply(&object).expect("an object");
    }
    api
}

/// What the source has told.
pub struct Follower {
    pub updates: Updates,
    pub index: Index,
    pub problems: Vec<SourceError>,
    pub unread: usize,
    pub health: Health,
    /// Updates that changed something.
    pub changes: usize,
    task: JoinHandle<()>,
}

impl Follower {
    pub async fn new(api: &ApiServer) -> Self {
        Self::at(api, PACE).await
    }

    pub async fn at(api: &ApiServer, pace: Pace) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, api.kubeconfig()).expect("write it");
        let client = client(Some(file.path())).await.expect("a client");
        let settings = Settings {
            node: NODE.to_owned(),
            cluster: None,
            clients: true,
            gloo: true,
            pace,
        };
        let (source, updates) = Kubernetes::new(client, settings);
        Self {
            updates,
            index: Index::default(),
            problems: Vec::new(),
            unread: 0,
            health: Health::default(),
            changes: 0,
            task: tokio::spawn(source.run()),
        }
    }

    /// Takes what has come. Whether it changed anything.
    pub fn take(&mut self) -> bool {
        let mut update = self.updates.take();
        let changed = update.apply(&mut self.index);
        self.changes += usize::from(changed);
        self.problems = update.problems;
        self.unread = update.unread;
        self.health = update.health;
        changed
    }

    /// Takes updates until it is so.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            while !holds(self) {
                self.updates.changed().await.expect("the source runs");
                self.take();
            }
        };
        let late = timeout(PATIENCE, wait).await.is_err();
        assert!(!late, "waiting for {what}: {:#?}", self.index);
    }

    /// Nothing comes for some time.
    pub async fn quiet(&mut self) {
        let wait = timeout(Duration::from_millis(500), self.updates.changed());
        assert!(wait.await.is_err(), "{:?}", self.updates.take());
    }

    /// Names of the pods that are known.
    pub fn pods(&self) -> Vec<&str> {
        self.index
            .pods()
            .keys()
            .map(|key| key.name.as_str())
            .collect()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}
