//! Where runtime and agent meet: the runtime's sandboxes on one side, on the other what the last
//! pass says of each pod.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// A pod's sandbox, as the runtime tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    pub id: String,
    /// The pod's UID; of a static pod the hash that the kubelet uses in its place.
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// The pod's own.
    pub labels: BTreeMap<String, String>,
    /// Empty where the runtime does not tell them.
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
    /// File that stands for the pod's network namespace, by the path that the runtime sees.
    pub netns: Option<PathBuf>,
    /// The kubelet has the pod from a file of the node, not from the API server.
    pub is_static: bool,
    /// It ran already when the agent came.
    pub running_before: bool,
}

/// All sandboxes, by the pod's UID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandboxes {
    /// Grows with each change.
    pub version: u64,
    pub by_uid: BTreeMap<String, Sandbox>,
}

/// What the last pass says of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its hooks stand with its policy, or no lockdown selects it.
    Ready,
    /// Not yet, and why; `audited` if nothing of it would be dropped.
    Waits { reason: String, audited: bool },
}

/// What a pass says of all pods that the runtime tells of.
#[derive(Clone, Debug, Default)]
struct Passed {
    /// Version of the sandboxes that it knew; none before the first pass.
    version: Option<u64>,
    pods: BTreeMap<String, Standing>,
}

/// See the module.
#[derive(Debug)]
pub struct Board {
    sandboxes: Mutex<State>,
    changed: watch::Sender<()>,
    passed: watch::Sender<Passed>,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// By sandbox id, with the version in which it came: a pod's newest sandbox counts.
    by_id: BTreeMap<String, (u64, Sandbox)>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            sandboxes: Mutex::default(),
            changed: watch::Sender::new(()),
            passed: watch::Sender::new(Passed::default()),
        }
    }
}

impl Board {
    /// A panic while it was held can't have left it half changed: nothing in there panics.
    fn state(&self) -> MutexGuard<'_, State> {
        self.sandboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State, u64)) -> u64 {
        let version = {
            let mut state = self.state();
            state.version += 1;
            let version = state.version;
            change(&mut state, version);
            version
        };
        self.changed.send_replace(());
        version
    }

    /// Takes a sandbox that is being made; gives the version from which on a pass knows it.
    pub(super) fn add(&self, sandbox: Sandbox) -> u64 {
        self.change(|state, version| {
            state.by_id.insert(sandbox.id.clone(), (version, sandbox));
        })
    }

    pub(super) fn remove(&self, id: &str) {
        if self.state().by_id.contains_key(id) {
            self.change(|state, _| {
                state.by_id.remove(id);
            });
        }
    }

    /// Takes these for all there are.
    pub(super) fn replace(&self, sandboxes: Vec<Sandbox>) {
        self.change(|state, version| {
            let entry = |sandbox: Sandbox| (sandbox.id.clone(), (version, sandbox));
            state.by_id = sandboxes.into_iter().map(entry).collect();
        });
    }

    /// Tells of each change from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The sandboxes as they are now.
    pub fn sandboxes(&self) -> Sandboxes {
        let state = self.state();
        let mut newest: BTreeMap<&str, &(u64, Sandbox)> = BTreeMap::new();
        for entry in state.by_id.values() {
            let before = newest.entry(&entry.1.uid).or_insert(entry);
            if entry.0 > before.0 {
                *before = entry;
            }
        }
        let by_uid = newest.into_iter();
        Sandboxes {
            version: state.version,
            by_uid: by_uid
                .map(|(uid, (_, sandbox))| (uid.to_owned(), sandbox.clone()))
                .collect(),
        }
    }

    /// A pass has ended that knew the sandboxes of this version.
    pub fn publish(&self, version: u64, pods: BTreeMap<String, Standing>) {
        let version = Some(version);
        self.passed.send_replace(Passed { version, pods });
    }

    /// Waits for the first pass.
    pub(super) async fn first_pass(&self) {
        let mut passed = self.passed.subscribe();
        // The sender lives as long as this.
        let _ = passed.wait_for(|passed| passed.version.is_some()).await;
    }

    /// Waits until a pass that knows sandboxes of `version` says that the pod is ready; at the
    /// deadline gives what was said of it last, if anything.
    pub(super) async fn hold(
        &self,
        uid: &str,
        version: u64,
        deadline: Instant,
    ) -> Result<(), Option<Standing>> {
        let mut passed = self.passed.subscribe();
        let ready = |passed: &Passed| {
            passed.version >= Some(version) && passed.pods.get(uid) == Some(&Standing::Ready)
        };
        if let Ok(Ok(_)) = timeout_at(deadline, passed.wait_for(ready)).await {
            return Ok(());
        }
        let last = self.passed.borrow();
        let known = last.version >= Some(version);
        Err(last.pods.get(uid).filter(|_| known).cloned())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn sandbox(id: &str, uid: &str) -> Sandbox {
        Sandbox {
            id: id.to_owned(),
            uid: uid.to_owned(),
            ..Sandbox::default()
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(100)
    }

    #[test]
    fn the_newest_sandbox_of_a_pod_counts_and_the_old_ones_end_does_not_end_it() {
        let board = Board::default();
        let mut changes = board.changes();
        board.add(sandbox("z", "pod"));
        board.add(sandbox("a", "pod"));
        assert!(changes.has_changed().unwrap());
        assert_eq!(board.sandboxes().by_uid["pod"].id, "a");
        board.remove("z");
        assert_eq!(board.sandboxes().by_uid["pod"].id, "a");
        changes.mark_unchanged();
        board.remove("unknown");
        assert!(!changes.has_changed().unwrap());
        board.replace(vec![sandbox("b", "other")]);
        let sandboxes = board.sandboxes();
        assert_eq!(sandboxes.by_uid.keys().collect::<Vec<_>>(), ["other"]);
    }

    #[tokio::test]
    async fn only_a_pass_that_knew_the_sandbox_lets_it_go() {
        let board = Arc::new(Board::default());
        let ready = || BTreeMap::from([("pod".to_owned(), Standing::Ready)]);
        // The pod's last sandbox was covered; that says nothing of the new one's device.
        board.publish(0, ready());
        let version = board.add(sandbox("a", "pod"));
        assert_eq!(board.hold("pod", version, soon()).await, Err(None));

        let waiting = Standing::Waits {
            reason: "no device".into(),
            audited: false,
        };
        let pods = BTreeMap::from([("pod".to_owned(), waiting.clone())]);
        board.publish(version, pods);
        assert_eq!(board.hold("pod", version, soon()).await, Err(Some(waiting)));

        let held = tokio::spawn({
            let board = Arc::clone(&board);
            async move { board.hold("pod", version, soon()).await }
        });
        tokio::task::yield_now().await;
        board.publish(version + 1, ready());
        assert_eq!(held.await.unwrap(), Ok(()));
    }
}
