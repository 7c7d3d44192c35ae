//! Between the one reader of events and those who follow them. Memory is bounded: a ring of the
//! recent events, and a ring of those that followers have not taken yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::flow::FlowEvent;

/// Events that are kept for whoever asks later.
pub const RECENT: usize = 1024;
/// Events that a follower may be behind before it is dropped.
const BEHIND: usize = 1024;

/// One event, as its line of JSON without the newline.
pub type Line = Arc<str>;

/// The recent events and the followers.
#[derive(Debug)]
pub struct Hub {
    recent: Mutex<VecDeque<Line>>,
    live: broadcast::Sender<Line>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            recent: Mutex::new(VecDeque::with_capacity(RECENT)),
            live: broadcast::channel(BEHIND).0,
        }
    }
}

impl Hub {
    /// A hub without events, to be shared.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Line>> {
        // The queue is whole between any two calls, so a panic elsewhere leaves it good.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the event and hands it to every follower.
    pub fn publish(&self, event: &FlowEvent) {
        let line: Line = match serde_json::to_string(event) {
            Ok(line) => line.into(),
            // Strings and numbers only: nothing that JSON lacks.
            Err(error) => unreachable!("an event is always JSON: {error}"),
        };
        let mut recent = self.lock();
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(line.clone());
        // Fails only when nobody follows. Sent under the lock, so that whoever subscribes gets
        // each event exactly once: among the recent ones or live.
        let _ = self.live.send(line);
    }

    /// The recent events, oldest first, and those to come.
    pub fn subscribe(&self) -> (Vec<Line>, broadcast::Receiver<Line>) {
        let recent = self.lock();
        (recent.iter().cloned().collect(), self.live.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u32) -> FlowEvent {
        FlowEvent {
            length: number,
            ..FlowEvent::default()
        }
    }

    #[test]
    fn keeps_the_last_ones_and_passes_each_on_once() {
        let hub = Hub::new();
        for number in 0..2000 {
            hub.publish(&event(number));
        }
        let (recent, mut live) = hub.subscribe();
        assert_eq!(recent.len(), RECENT);
        let first: FlowEvent = serde_json::from_str(&recent[0]).expect("JSON");
        assert_eq!(first.length, 2000 - 1024);
        hub.publish(&event(7));
        let next: FlowEvent = serde_json::from_str(&live.try_recv().expect("one")).expect("JSON");
        assert_eq!(next.length, 7);
        assert!(live.try_recv().is_err());
    }
}
