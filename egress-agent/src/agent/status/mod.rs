//! What is told to the API server: this node's report, the statuses of objects, and Events.
//!
//! Thousands of agents would fight over one `status`. So each writes an `EgressNode` of its own
//! (`reporter`), and the one that holds a Lease (`lease`) lays these together (`aggregate`) and writes
//! the statuses (`leader`). A pass puts what it has to tell on the [`Board`] and never waits. When
//! Sallyport is taken off a node, its report goes too (`withdraw`).

mod aggregate;
mod events;
mod findings;
mod history;
mod leader;
mod lease;
mod news;
mod nodes;
mod pace;
mod queue;
mod report;
mod reporter;
mod untold;
mod withdraw;

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Client;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use events::{Notice, Regarding};
pub use findings::Findings;
pub use lease::Terms;
pub use news::{Board, Following, Notices};
pub use withdraw::withdraw;

/// Field manager of `EgressNode`s.
const MANAGER: &str = "sallyport-agent";
/// Field manager of the statuses' fields that are written here. A gateway's `envoys` have others.
const STATUS_MANAGER: &str = "sallyport-status";
/// Giving the Lease back takes no longer.
const FAREWELL: Duration = Duration::from_secs(2);

/// Tells the API server what is put on a board.
pub struct Telling {
    client: Client,
    node: String,
    terms: Terms,
    tasks: JoinSet<()>,
}

impl std::fmt::Debug for Telling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telling").finish_non_exhaustive()
    }
}

impl Telling {
    /// Begins.
    pub fn begin(client: Client, node: &str, terms: Terms, following: Following) -> Self {
        let Following {
            news,
            history,
            notices,
            without_agent,
        } = following;
        let mut tasks = JoinSet::new();
        let recorder = || events::Recorder::new(client.clone(), node);
        let report = reporter::follow(client.clone(), node.to_owned(), terms, news.clone());
        tasks.spawn(report);
        tasks.spawn(events::follow(recorder(), notices));
        let lead = leader::follow(
            client.clone(),
            node.to_owned(),
            terms,
            news,
            history,
            recorder(),
            without_agent,
        );
        tasks.spawn(lead);
        Self {
            client,
            node: node.to_owned(),
            terms,
            tasks,
        }
    }

    /// Ends, and lets another agent write the statuses at once.
    pub async fn end(mut self) {
        self.tasks.shutdown().await;
        let mut candidate = lease::Candidate::new(self.client, &self.node, self.terms);
        // Where that fails the Lease runs out.
        let _ = timeout(FAREWELL, candidate.release()).await;
    }
}

/// Says what fails once, for as long as it lasts.
#[derive(Debug, Default)]
struct Told(BTreeMap<&'static str, String>);

impl Told {
    fn good(&mut self, what: &'static str) {
        if self.0.remove(what).is_some() {
            tracing::info!(event = "status_written_again", what);
        }
    }

    fn bad(&mut self, what: &'static str, error: &dyn std::fmt::Display) {
        let text = error.to_string();
        if self.0.get(what) != Some(&text) {
            tracing::warn!(
                event = "status_unwritten",
                what,
                error = text,
                "enforcement does not depend on it; it is tried again"
            );
            self.0.insert(what, text);
        }
    }
}
