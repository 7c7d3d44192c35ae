//! How objects get from a source to who uses them: changes gather until they are taken, the latest
//! of each object wins, and what was put in at once is taken at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::declared::AllDeclared;
use super::error::SourceError;
use crate::index::{Index, Object, ObjectId};

/// Whether what is known can be trusted to be new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Everything that is watched is being watched.
    pub connected: bool,
    /// Since when something isn't: the state is at least as new as this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_since: Option<Timestamp>,
    /// Pods of the whole cluster are watched: a gateway runs here, or very many are declared.
    #[serde(skip_serializing_if = "is_not")]
    pub all_pods: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_not(fact: &bool) -> bool {
    !fact
}

impl Default for Health {
    fn default() -> Self {
        Self {
            connected: true,
            stale_since: None,
            all_pods: false,
        }
    }
}

/// What a source has had to say since it was last asked.
#[derive(Debug, Default)]
pub struct Update {
    /// `objects` is all there is: others are gone.
    pub whole: bool,
    pub objects: Vec<Object>,
    pub gone: Vec<ObjectId>,
    /// All that can't be taken now, sorted.
    pub problems: Vec<SourceError>,
    /// How many of the problems may hide something that holds pods.
    pub unread: usize,
    /// Many may write objects: one that is wrong and holds no pods must not hold up the agent.
    pub shared: bool,
    pub health: Health,
    /// What is known of all policy objects, where that has changed and the source tells it.
    pub declared: Option<AllDeclared>,
}

impl Update {
    /// Puts the objects into the index. Whether that changed anything.
    pub fn apply(&mut self, index: &mut Index) -> bool {
        let objects = std::mem::take(&mut self.objects);
        if self.whole {
            return index.reset(objects);
        }
        let mut changed = false;
        for id in self.gone.drain(..) {
            changed |= index.delete(&id);
        }
        for object in objects {
            changed |= index.apply(object);
        }
        changed
    }
}

#[derive(Debug, Default)]
struct Pending {
    whole: bool,
    /// None is an object that is gone.
    changes: BTreeMap<ObjectId, Option<Object>>,
    problems: Vec<SourceError>,
    unread: usize,
    health: Health,
    declared: Option<AllDeclared>,
}

/// Where a source puts what it finds.
#[derive(Debug)]
pub struct Feed {
    pending: Arc<Mutex<Pending>>,
    shared: bool,
    signal: watch::Sender<()>,
}

/// Where it is taken from.
#[derive(Debug)]
pub struct Updates {
    pending: Arc<Mutex<Pending>>,
    shared: bool,
    signal: watch::Receiver<()>,
}

/// The source has ended.
#[derive(Debug, thiserror::Error)]
#[error("the source of objects has ended")]
pub struct Ended;

/// Makes a feed. `shared`: see [`Update::shared`].
pub fn feed(shared: bool) -> (Feed, Updates) {
    let pending = Arc::<Mutex<Pending>>::default();
    let (sender, receiver) = watch::channel(());
    let feed = Feed {
        pending: Arc::clone(&pending),
        shared,
        signal: sender,
    };
    let updates = Updates {
        pending,
        shared,
        signal: receiver,
    };
    (feed, updates)
}

/// A panic while it was held can't have left it half changed: nothing in there panics.
fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Feed {
    /// Says what all there is.
    pub fn reset(&self, objects: Vec<Object>, problems: Vec<SourceError>) {
        {
            let mut pending = lock(&self.pending);
            pending.whole = true;
            pending.changes = objects.into_iter().map(|o| (o.id(), Some(o))).collect();
            pending.unread = problems.len();
            pending.problems = problems;
        }
        self.signal.send_replace(());
    }

    /// Says what has changed, all of it at once; `whole` if it is all there is. `problems` takes
    /// the place of those that were given before.
    pub fn change(
        &self,
        whole: bool,
        changes: BTreeMap<ObjectId, Option<Object>>,
        declared: Option<AllDeclared>,
        problems: Vec<SourceError>,
        unread: usize,
        health: Health,
    ) {
        debug_assert!(self.shared, "the other way is for sources of one writer");
        {
            let mut pending = lock(&self.pending);
            if whole {
                pending.whole = true;
                pending.changes = changes;
            } else {
                pending.changes.extend(changes);
            }
            pending.problems = problems;
            pending.unread = unread;
            pending.health = health;
            pending.declared = declared.or(pending.declared.take());
        }
        self.signal.send_replace(());
    }

    /// Waits until nobody listens any more.
    pub async fn closed(&self) {
        self.signal.closed().await;
    }
}

impl Updates {
    /// Waits for something new. Cancelling it loses nothing.
    ///
    /// # Errors
    /// If there will be nothing new any more.
    pub async fn changed(&mut self) -> Result<(), Ended> {
        self.signal.changed().await.map_err(|_| Ended)
    }

    /// Takes all that has come since the last time.
    pub fn take(&mut self) -> Update {
        self.signal.mark_unchanged();
        let mut pending = lock(&self.pending);
        let mut update = Update {
            whole: std::mem::take(&mut pending.whole),
            problems: pending.problems.clone(),
            unread: pending.unread,
            shared: self.shared,
            health: pending.health,
            declared: pending.declared.take(),
            ..Update::default()
        };
        for (id, object) in std::mem::take(&mut pending.changes) {
            match object {
                Some(object) => update.objects.push(object),
                None => update.gone.push(id),
            }
        }
        update
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;

    use super::*;

    fn namespace(name: &str, label: &str) -> Object {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.to_owned());
        namespace.metadata.labels = Some([("is".to_owned(), label.to_owned())].into());
        Object::Namespace(namespace)
    }

    fn change(feed: &Feed, changes: Vec<(Object, bool)>) {
        let changes = changes
            .into_iter()
            .map(|(o, there)| (o.id(), there.then_some(o)));
        feed.change(false, changes.collect(), None, vec![], 0, Health::default());
    }

    #[test]
    fn the_latest_of_each_object_is_taken_once() {
        let (feed, mut updates) = feed(true);
        let mut index = Index::default();
        change(
            &feed,
            vec![(namespace("a", "old"), true), (namespace("b", "b"), true)],
        );
        change(
            &feed,
            vec![(namespace("a", "new"), true), (namespace("b", "b"), false)],
        );
        let mut update = updates.take();
        assert_eq!((update.objects.len(), update.gone.len()), (1, 1));
        assert!(update.apply(&mut index));
        assert_eq!(index.namespace("a").unwrap()["is"], "new");
        assert!(index.namespace("b").is_none());
        change(&feed, vec![(namespace("a", "new"), true)]);
        assert!(!updates.take().apply(&mut index), "the same is no change");
        assert!(updates.take().objects.is_empty());
    }

    #[test]
    fn what_is_whole_replaces_what_waited() {
        let (feed, mut updates) = feed(true);
        let mut index = Index::default();
        change(&feed, vec![(namespace("a", "a"), true)]);
        updates.take().apply(&mut index);
        change(&feed, vec![(namespace("b", "b"), true)]);
        let c = namespace("c", "c");
        let all = BTreeMap::from([(c.id(), Some(c))]);
        feed.change(true, all, None, vec![], 0, Health::default());
        change(&feed, vec![(namespace("d", "d"), true)]);
        updates.take().apply(&mut index);
        let known = ["a", "b", "c", "d"].map(|name| index.namespace(name).is_some());
        assert_eq!(known, [false, false, true, true]);
    }

    #[tokio::test]
    async fn who_waits_is_told_of_news_and_of_the_end() {
        let (feed, mut updates) = feed(true);
        change(&feed, vec![(namespace("a", "a"), true)]);
        updates.changed().await.unwrap();
        updates.take();
        drop(feed);
        updates.changed().await.unwrap_err();
    }
}
