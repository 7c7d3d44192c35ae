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
    /// As the API server has them, and when they were written here.
    known: BTreeMap<ObjectId, (Value, Option<Instant>)>,
    waiting: BTreeMap<ObjectId, (bool, Value)>,
}

impl Queue {
    /// As the API server has it.
    pub fn read(&mut self, id: ObjectId, status: Value) {
        self.known.insert(id, (status, None));
    }

    /// What is to be told of all objects.
    pub fn want(&mut self, wanted: &BTreeMap<ObjectId, Status>, now: &str) {
        self.known.retain(|id, _| wanted.contains_key(id));
        self.waiting.clear();
        for (id, status) in wanted {
            let nothing = json!({});
            let old = self.known.get(id).map_or(&nothing, |(old, _)| old);
            let new = status.body(old, now);
            if *old != new {
                self.waiting.insert(id.clone(), (is_urgent(old, &new), new));
            }
        }
    }

    /// The next one that may be written now: what is news before counts, and of these whoever was
    /// not told for longest.
    pub fn next(&self, now: Instant, pace: &Pace) -> Option<(&ObjectId, &Value)> {
        let last = |id: &ObjectId| self.known.get(id).and_then(|(_, at)| *at);
        let free = |id: &ObjectId| last(id).is_none_or(|at| now >= at + pace.status_every);
        let waiting = self.waiting.iter().filter(|(id, _)| free(id));
        let first = waiting.min_by_key(|(id, (urgent, _))| (!urgent, last(id)));
        first.map(|(id, (_, status))| (id, status))
    }

    /// It was written; or, without a status, it could not be, and is tried again later.
    pub fn done(&mut self, id: &ObjectId, status: Option<Value>, now: Instant) {
        let known = self.known.entry(id.clone()).or_insert((json!({}), None));
        known.1 = Some(now);
        if let Some(status) = status {
            known.0 = status;
            self.waiting.remove(id);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
