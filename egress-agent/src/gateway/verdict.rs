//! The rules of one route, and what they say: in time that grows with the entries that concern the
//! client, not with all.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::identity::SpiffeId;
use super::policy::{Clients, Entry, ObjectName};

/// Who may use a route. Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// An access policy names the host: only what an entry admits passes. Else the route is open
    /// to every authenticated client.
    pub closed: bool,
    /// The first of those policies.
    closed_by: Option<Arc<ObjectName>>,
    entries: Arc<Entries>,
}

#[derive(Default, PartialEq, Eq)]
struct Entries {
    all: Vec<Arc<Entry>>,
    /// Positions in `all` of the entries for every client, ascending.
    every: Vec<u32>,
    /// The same of those that name a client.
    by_client: HashMap<SpiffeId, Vec<u32>>,
    dry_run: bool,
}

/// The same text for the same rules: what is found by client has no order, and follows from the
/// entries.
impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("closed", &self.closed)
            .field("closed_by", &self.closed_by)
            .field("entries", &self.entries.all)
            .finish()
    }
}

/// What the rules say to one client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict<'a> {
    /// The first enforced entry that admits.
    pub(super) winner: Option<&'a Entry>,
    /// The entry that would admit if dry runs were enforced: the winner, or the first on trial.
    pub(super) would: Option<&'a Entry>,
}

impl Rules {
    /// Entries are sorted by label; the first that admits is the one that is named.
    pub fn new(closed: bool, entries: Vec<Arc<Entry>>) -> Self {
        let mut every = Vec::new();
        let mut by_client: HashMap<SpiffeId, Vec<u32>> = HashMap::new();
        for (at, entry) in (0..).zip(&entries) {
            match &entry.clients {
                Clients::Every => every.push(at),
                Clients::These(ids) => {
                    for id in ids {
                        by_client.entry(id.clone()).or_default().push(at);
                    }
                }
            }
        }
        let dry_run = entries.iter().any(|entry| entry.dry_run);
        Self {
            closed,
            closed_by: None,
            entries: Arc::new(Entries {
                all: entries,
                every,
                by_client,
                dry_run,
            }),
        }
    }

    /// Names the policy that closes, for those whom no entry admits.
    #[must_use]
    pub fn closed_by(self, policy: Option<&ObjectName>) -> Self {
        Self {
            closed_by: policy.cloned().map(Arc::new),
            ..self
        }
    }

    /// The policy that decides about those whom no entry admits.
    pub fn closing(&self) -> Option<&ObjectName> {
        self.closed_by.as_deref().filter(|_| self.closed)
    }

    /// Nobody.
    pub fn nobody() -> Self {
        Self {
            closed: true,
            ..Self::default()
        }
    }

    /// All entries, enforced and dry-run.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.all.iter().map(AsRef::as_ref)
    }

    pub fn enforced(&self) -> impl Iterator<Item = &Entry> {
        self.entries().filter(|entry| !entry.dry_run)
    }

    pub fn has_dry_run(&self) -> bool {
        self.entries.dry_run
    }

    /// The entries whose clients this one is among, in order.
    pub fn of_client(&self, client: &SpiffeId) -> impl Iterator<Item = &Entry> {
        let entries = &*self.entries;
        let named = entries.by_client.get(client).map_or(&[][..], Vec::as_slice);
        let (mut every, mut named) = (entries.every.as_slice(), named);
        std::iter::from_fn(move || {
            let first = match (every.first(), named.first()) {
                (Some(a), Some(b)) => a.min(b),
                (Some(only), None) | (None, Some(only)) => only,
                (None, None) => return None,
            };
            // No entry stands in both.
            if every.first() == Some(first) {
                every = &every[1..];
            } else {
                named = &named[1..];
            }
            entries
                .all
                .get(usize::try_from(*first).ok()?)
                .map(AsRef::as_ref)
        })
    }

    /// Asks the entries for this client; `holds` says whether an entry's other conditions hold.
    pub(super) fn ask(&self, client: &SpiffeId, holds: impl Fn(&Entry) -> bool) -> Verdict<'_> {
        let mut trial = None;
        for entry in self.of_client(client) {
            let seen = entry.dry_run && trial.is_some();
            if seen || !holds(entry) {
                continue;
            }
            if !entry.dry_run {
                return Verdict {
                    winner: Some(entry),
                    would: Some(entry),
                };
            }
            trial = Some(entry);
        }
        Verdict {
            winner: None,
            would: trial,
        }
    }
}
