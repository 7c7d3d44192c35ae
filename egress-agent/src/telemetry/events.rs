//! The agent's reader of events: out of the ring, into log, metrics and hub.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tracing::{info, warn};

use super::clock::Clock;
use super::decode::{PinnedNames, decode};
use super::flow::FlowEvent;
use super::hub::Hub;
use super::lock::{LockError, RingLock};
use super::metrics::Metrics;
use crate::datapath::pinned::{EventRing, Pinned, PinnedError};

/// Between two tries for the lock, while a CLI follows the ring itself.
const LOCK_RETRY: Duration = Duration::from_millis(100);
/// The ring is looked into at least this often, whatever became of its wake-ups.
const TICK: Duration = Duration::from_secs(1);
/// Events handled before other tasks get their turn.
const BATCH: usize = 256;
/// Events in the log per second; the hub and the counters have them all.
const LOGGED: u32 = 20;

/// Why events can't be read.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    #[error(transparent)]
    Pinned(#[from] PinnedError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("can't wait for events: {0}")]
    Wait(#[source] std::io::Error),
}

/// The ring and the names, opened, for the one who holds the lock.
#[derive(Debug)]
pub struct Reader {
    ring: EventRing,
    names: PinnedNames,
    _lock: RingLock,
}

impl Reader {
    /// Opens the ring; none if another process reads it.
    pub fn open(pinned: &Pinned, run_dir: &Path) -> Result<Option<Self>, EventsError> {
        let Some(lock) = RingLock::take(run_dir)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            ring: pinned.events()?,
            names: PinnedNames::open(pinned)?,
            _lock: lock,
        }))
    }

    /// Takes what is in the ring, at most `most` events.
    pub fn drain(&mut self, most: usize) -> Vec<FlowEvent> {
        let mut events = Vec::new();
        let clock = Clock::now();
        while events.len() < most
            && let Some(event) = self.ring.take()
        {
            events.push(decode(&event, &self.names, &clock));
        }
        events
    }
}

/// Reads events for as long as the agent runs.
#[derive(Debug)]
pub struct Consumer {
    pinned: Pinned,
    run_dir: PathBuf,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    log: Limiter,
}

impl Consumer {
    pub fn new(pinned: Pinned, run_dir: &Path, hub: Arc<Hub>, metrics: Arc<Metrics>) -> Self {
        Self {
            pinned,
            run_dir: run_dir.to_owned(),
            hub,
            metrics,
            log: Limiter::new(Instant::now()),
        }
    }

    /// Waits until it is the only reader, then reads for ever; drop the future to stop.
    ///
    /// # Errors
    /// If the pins can't be opened or waited for.
    pub async fn run(mut self) -> Result<(), EventsError> {
        let mut waiting = false;
        let reader = loop {
            if let Some(reader) = Reader::open(&self.pinned, &self.run_dir)? {
                break reader;
            }
            if !waiting {
                waiting = true;
                info!(
                    event = "events-waiting",
                    reason = "another process reads the ring"
                );
            }
            tokio::time::sleep(LOCK_RETRY).await;
        };
        let Reader { ring, names, _lock } = reader;
        // SAFETY: `EventRing` owns its map, whose descriptor stays the same for as long as it lives.
        let ring = unsafe { AsyncFd::register(ring) };
        let mut ring = ring.map_err(|error| EventsError::Wait(error.into_parts().1))?;
        loop {
            // Cleared before it is emptied: what comes in meanwhile wakes it again.
            match tokio::time::timeout(TICK, ring.readable_mut()).await {
                Ok(Ok(mut guard)) => guard.clear_ready(),
                Ok(Err(error)) => return Err(EventsError::Wait(error)),
                Err(_) => {}
            }
            let mut clock = Clock::now();
            let mut handled = 0;
            while let Some(event) = ring.get_mut().take() {
                self.handle(&decode(&event, &names, &clock));
                handled += 1;
                if handled % BATCH == 0 {
                    tokio::task::yield_now().await;
                    clock = Clock::now();
                }
            }
            self.suppressed();
        }
    }

    fn handle(&mut self, event: &FlowEvent) {
        self.metrics.event(&event.verdict);
        if self.log.admit(Instant::now()) {
            log(event);
        }
        self.hub.publish(event);
    }

    fn suppressed(&mut self) {
        if let Some(count) = self.log.suppressed(Instant::now()) {
            warn!(event = "log-suppressed", events = count);
        }
    }
}

fn log(event: &FlowEvent) {
    let pod = event.pod.label();
    let (src, dst) = (event.source.label(), event.destination.label());
    let (pid, comm) = event
        .process
        .as_ref()
        .map_or((0, ""), |process| (process.pid, process.comm.as_str()));
    let rule = event.rule.as_deref().unwrap_or("");
    let (reason, protocol, verdict) = (&event.reason, &event.protocol, &event.verdict);
    if verdict == "audit" {
        info!(
            event = "audited",
            pod, src, dst, %protocol, %reason, rule, pid, comm
        );
    } else {
        info!(
            event = "denied",
            %verdict, pod, src, dst, %protocol, %reason, rule, pid, comm
        );
    }
}

/// So many a second, and a count of the rest.
#[derive(Debug)]
struct Limiter {
    second: Instant,
    admitted: u32,
    left_out: u64,
}

impl Limiter {
    fn new(now: Instant) -> Self {
        Self {
            second: now,
            admitted: 0,
            left_out: 0,
        }
    }

    fn admit(&mut self, now: Instant) -> bool {
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.admitted = 0;
        }
        let admit = self.admitted < LOGGED;
        if admit {
            self.admitted += 1;
        } else {
            self.left_out += 1;
        }
        admit
    }

    /// How many were left out, once their second is over.
    fn suppressed(&mut self, now: Instant) -> Option<u64> {
        let over = now.duration_since(self.second) >= Duration::from_secs(1);
        (over && self.left_out > 0).then(|| std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_limited_and_says_so() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let admitted = (0..100).filter(|_| limiter.admit(start)).count();
        assert_eq!(admitted, 20);
        assert_eq!(limiter.suppressed(start), None);
        let later = start + Duration::from_secs(1);
        assert_eq!(limiter.suppressed(later), Some(80));
        assert_eq!(limiter.suppressed(later), None);
        assert!(limiter.admit(later));
    }
}
