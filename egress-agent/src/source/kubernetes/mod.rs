//! The Kubernetes API as the source of objects.
//!
//! Every resource has a task that follows it (`follow`); one task puts together what they tell
//! (`store`), decides what else has to be watched (`wanted`), and hands changes on, first when every
//! list has been read once.

mod client;
mod error;
mod follow;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod read;
mod store;
mod wanted;
mod watches;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

pub use client::client;
pub use error::ConnectError;
pub use follow::Pace;

use super::error::SourceError;
use super::feed::{Feed, Health, Updates, feed};
use error::Trouble;
use follow::{Follower, Report};
use store::Store;
use wanted::Wanted;
use watches::Watch;

use crate::index::Heritage;

/// Reports that wait before followers do.
const QUEUE: usize = 64;
/// Reports that are taken before what they changed is handed on.
const BATCH: usize = 256;

/// What the source has to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this node's Node object.
    pub node: String,
    /// Name of this cluster in selectors that give one; without it every name is this cluster.
    pub cluster: Option<String>,
    /// While a gateway runs on this node, watch the pods of all nodes: who serves it policy has to
    /// know whose a client's address is.
    pub clients: bool,
    /// Read Gloo Mesh's kinds too, where they are defined.
    pub gloo: bool,
    pub pace: Pace,
}

/// Follows the API server.
pub struct Kubernetes {
    client: Client,
    settings: Settings,
    feed: Feed,
    store: Store,
    wanted: Wanted,
    running: BTreeMap<Watch, Running>,
    tasks: JoinSet<()>,
    generation: u64,
    sender: mpsc::Sender<Message>,
    receiver: mpsc::Receiver<Message>,
    /// Everything was read once, and is being handed on.
    live: bool,
    health: Health,
    known_problems: Vec<SourceError>,
    unread: usize,
}

#[derive(Debug)]
struct Message {
    watch: Watch,
    generation: u64,
    report: Report,
}

/// A watch, and how it does.
#[derive(Debug)]
struct Running {
    generation: u64,
    task: AbortHandle,
    /// It was read once, or there is nothing to be read.
    synced: bool,
    /// There is no such resource.
    absent: bool,
    /// It may not be read, and nothing of it is known.
    forbidden: bool,
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    since: Timestamp,
    told: String,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes")
            .field("settings", &self.settings)
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// Nothing is asked before [`Kubernetes::run`], and the first update comes when everything was
    /// read once.
    pub fn new(client: Client, settings: Settings) -> (Self, Updates) {
        let (feed, updates) = feed(true);
        let (sender, receiver) = mpsc::channel(QUEUE);
        let source = Self {
            client,
            wanted: Wanted::new(settings.cluster.clone(), settings.clients, settings.gloo),
            settings,
            feed,
            store: Store::default(),
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
            generation: 0,
            sender,
            receiver,
            live: false,
            health: Health {
                connected: false,
                stale_since: None,
                all_pods: false,
            },
            known_problems: Vec::new(),
            unread: 0,
        };
        (source, updates)
    }

    /// Gives it what an earlier agent of this node knew: where an object can't be read, its last
    /// good version comes from there.
    pub fn inherit(&mut self, heritage: Heritage) {
        self.store.inherit(heritage);
    }

    /// Follows it until nobody takes updates any more.
    pub async fn run(mut self) {
        loop {
            self.start_and_stop();
            self.publish();
            let message = tokio::select! {
                () = self.feed.closed() => return,
                message = self.receiver.recv() => message,
            };
            let mut next = message;
            let mut taken = 0;
            while let Some(message) = next {
                self.take(message);
                taken += 1;
                next = (taken < BATCH)
                    .then(|| self.receiver.try_recv().ok())
                    .flatten();
            }
            while self.tasks.try_join_next().is_some() {}
        }
    }

    /// Brings what is watched in step with what has to be.
    fn start_and_stop(&mut self) {
        loop {
            self.wanted.learn(&self.store);
            let running = self.running.iter();
            let synced = running.map(|(watch, running)| (watch, running.synced));
            let wanted = self.wanted.watches(&self.store, &synced.collect());
            let running: BTreeSet<Watch> = self.running.keys().cloned().collect();
            for watch in wanted.difference(&running) {
                self.start(watch.clone());
            }
            let mut ended = running.difference(&wanted).peekable();
            if ended.peek().is_none() {
                return;
            }
            // With their objects others may go.
            for watch in ended {
                self.stop(watch);
            }
        }
    }

    fn stop(&mut self, watch: &Watch) {
        tracing::info!(event = "source_watch_ended", %watch);
        if let Some(running) = self.running.remove(watch) {
            running.task.abort();
        }
        self.store.forget(watch);
    }

    fn start(&mut self, watch: Watch) {
        tracing::debug!(event = "source_watch_begun", %watch);
        self.generation += 1;
        let generation = self.generation;
        let (sender, told) = (self.sender.clone(), watch.clone());
        let follower = Follower {
            client: self.client.clone(),
            resource: watch.resource(&self.settings.node),
            watch: watch.clone(),
            pace: self.settings.pace,
            tell: move |report| {
                let message = Message {
                    watch: told.clone(),
                    generation,
                    report,
                };
                let sender = sender.clone();
                async move { sender.send(message).await.is_ok() }
            },
        };
        let running = Running {
            generation,
            task: self.tasks.spawn(follower.run()),
            synced: false,
            absent: false,
            forbidden: false,
            failing: None,
        };
        self.running.insert(watch, running);
    }

    fn take(&mut self, message: Message) {
        let Message {
            watch,
            generation,
            report,
        } = message;
        let Some(running) = self.running.get_mut(&watch) else {
            return;
        };
        // One that was ended may have had something left to say.
        if running.generation != generation {
            return;
        }
        match report {
            Report::Listed(items) => {
                running.synced = true;
                running.absent = false;
                let was_forbidden = std::mem::take(&mut running.forbidden);
                tracing::debug!(event = "source_listed", %watch, objects = items.len());
                self.store.listed(&watch, items);
                if was_forbidden {
                    self.ask_again();
                }
            }
            Report::Applied(item) => self.store.applied(&watch, item),
            Report::Gone(key) => self.store.gone(&watch, &key),
            Report::Connected => {
                if let Some(failing) = running.failing.take() {
                    tracing::info!(event = "source_watch_restored", %watch, since = %failing.since);
                }
            }
            Report::Absent => {
                // A definition without this version is none for us. What was there once may be
                // there still, though the API server says otherwise.
                if matches!(watch, Watch::Gloo(_)) && self.store.count(&watch) == 0 {
                    running.absent = true;
                    running.synced = true;
                    running.failing = None;
                }
            }
            Report::Forbidden(trouble) => {
                running.forbidden = self.store.count(&watch) == 0;
                let node = &self.settings.node;
                running.fail(&watch, node, &trouble);
            }
            Report::Failing(trouble) => {
                if !(running.absent && trouble.is_absent()) {
                    let node = &self.settings.node;
                    running.fail(&watch, node, &trouble);
                }
            }
        }
    }

    /// The right to read one of Gloo Mesh's kinds has come, and with it likely those to the others.
    fn ask_again(&mut self) {
        let forbidden = self.running.iter().filter(|(_, running)| running.forbidden);
        for watch in forbidden
            .map(|(watch, _)| watch.clone())
            .collect::<Vec<_>>()
        {
            if let Some(running) = self.running.remove(&watch) {
                running.task.abort();
            }
            self.start(watch);
        }
    }

    /// Whether one of Gloo Mesh's kinds is read. Then one that may not be read is missed: without it
    /// the others could say something else. Where none may be read, Gloo Mesh is not there for us.
    fn reads_gloo(&self) -> bool {
        let mut gloo = self
            .running
            .iter()
            .filter(|(watch, _)| matches!(watch, Watch::Gloo(_)));
        gloo.any(|(_, running)| !running.absent && !running.forbidden)
    }

    fn publish(&mut self) {
        let gloo = self.reads_gloo();
        let missed = |running: &Running| gloo || !running.forbidden;
        if !self.live {
            let waits = |running: &Running| !running.synced && missed(running);
            if self.running.values().any(waits) {
                return;
            }
            tracing::info!(
                event = "source_synced",
                objects = self.store.changes().len()
            );
        }
        let whole = !self.live;
        self.live = true;
        let since = self
            .running
            .values()
            .filter(|running| missed(running))
            .filter_map(|running| Some(running.failing.as_ref()?.since));
        let stale_since = since.min();
        let health = Health {
            connected: stale_since.is_none(),
            stale_since,
            all_pods: self.running.contains_key(&Watch::OtherPods),
        };
        let changes = self.store.take();
        if changes.is_none() && !whole && health == self.health {
            return;
        }
        if health.connected != self.health.connected {
            tracing::info!(event = "source_health", connected = health.connected);
        }
        self.health = health;
        let news = changes.map(|changes| {
            let mut problems = changes.problems;
            problems.extend(self.wanted.problems());
            problems.sort();
            self.tell_problems(&problems);
            self.known_problems = problems;
            self.unread = changes.unread;
            (changes.objects, changes.declared)
        });
        let (objects, declared) = news.unwrap_or_default();
        let problems = self.known_problems.clone();
        self.feed
            .change(whole, objects, declared, problems, self.unread, health);
    }

    /// Says each problem once, for as long as it lasts.
    fn tell_problems(&self, problems: &[SourceError]) {
        for problem in problems.iter().filter(|p| !self.known_problems.contains(p)) {
            tracing::error!(
                event = "source_error",
                object = problem.object,
                field = problem.field,
                reason = problem.reason,
                "{problem}; what was good before still stands"
            );
        }
        for problem in self.known_problems.iter().filter(|p| !problems.contains(p)) {
            tracing::info!(
                event = "source_error_gone",
                object = problem.object,
                field = problem.field
            );
        }
    }
}

impl Running {
    fn fail(&mut self, watch: &Watch, node: &str, trouble: &Trouble) {
        let text = trouble.explain(&watch.resource(node));
        let since = match &self.failing {
            Some(failing) if failing.told == text => return,
            Some(failing) => failing.since,
            None => Timestamp::now(),
        };
        if self.forbidden {
            tracing::warn!(
                event = "source_watch_forbidden", %watch,
                "{text}. Until then Gloo Mesh's objects of this kind are not taken; where there are \
                 none to be, --gloo off (rbac.gloo of the chart) says so. Asked again now and then"
            );
        } else {
            tracing::warn!(
                event = "source_watch_failed", %watch, synced = self.synced,
                "{text}; what is known stands, and it is tried again"
            );
        }
        self.failing = Some(Failing { since, told: text });
    }
}
