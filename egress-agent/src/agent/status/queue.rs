//! Which status is written next. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::aggregate::{Status, is_urgent};
use super::pace::Pace;
use crate::index::ObjectId;

/// Statuses as they are and as they are to be.
#[derive(Debug, Default)]
pub struct Queue {
    known: BTreeMap<ObjectId, Known>,
    waiting: BTreeMap<ObjectId, (bool, Value)>,
}

/// A status as the API server has it.
#[derive(Debug)]
struct Known {
    uid: String,
    status: Value,
    /// When it was written here.
    at: Option<Instant>,
}

impl Queue {
    /// As the API server has it.
    pub fn read(&mut self, id: ObjectId, uid: String, status: Value) {
        let known = Known {
            uid,
            status,
            at: None,
        };
        self.known.insert(id, known);
    }

    /// What is to be told of all objects.
    pub fn want(&mut self, wanted: &BTreeMap<ObjectId, Status>, now: &str) {
        self.known
            .retain(|id, known| wanted.get(id).is_some_and(|it| it.uid == known.uid));
        self.waiting.clear();
        for (id, status) in wanted {
            let known = self.known.entry(id.clone()).or_insert_with(|| Known {
                uid: status.uid.clone(),
                status: json!({}),
                at: None,
            });
            let (old, new) = (&known.status, status.body(&known.status, now));
            if *old != new {
                self.waiting.insert(id.clone(), (is_urgent(old, &new), new));
            }
        }
    }

    /// The next one that may be written now: what is news before counts, and of these whoever was
    /// not told for longest.
    pub fn next(&self, now: Instant, pace: &Pace) -> Option<(&ObjectId, &Value)> {
        let last = |id: &ObjectId| self.known.get(id).and_then(|known| known.at);
        let free = |id: &ObjectId| last(id).is_none_or(|at| now >= at + pace.status_every);
        let waiting = self.waiting.iter().filter(|(id, _)| free(id));
        let first = waiting.min_by_key(|(id, (urgent, _))| (!urgent, last(id)));
        first.map(|(id, (_, status))| (id, status))
    }

    /// It was written; or, without a status, it could not be, and is tried again later.
    pub fn done(&mut self, id: &ObjectId, status: Option<Value>, now: Instant) {
        let Some(known) = self.known.get_mut(id) else {
            return;
        };
        known.at = Some(now);
        if let Some(status) = status {
            known.status = status;
            self.waiting.remove(id);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
