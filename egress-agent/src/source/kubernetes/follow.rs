//! Follows one resource: lists it, watches from there on, picks up where a watch broke off, and
//! lists again where that can't be.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use kube::Client;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::error::Trouble;
use super::read::{Item, read};
use super::watches::{Resource, Watch};
use crate::index::Key;

/// Objects of one page of a list; as client-go.
const PAGE: u32 = 500;
/// A list that runs out of its time (410) is begun anew so often in pages, then in one piece.
const PAGED_TRIES: u32 = 3;
/// So many failures in a row to go on where a watch broke off are enough to list again.
const RESUMES: u32 = 5;
/// So often in a row it must be said that there is no such resource, before it is believed: an API
/// server that has just begun may not know it yet.
const ABSENT: u32 = 3;
/// So often in a row it must be said that what a cluster may do without may not be read, before it is
/// taken for not there: a role that was just made may not have reached the API server's authorizer.
const FORBIDDEN: u32 = 3;

/// How long is waited.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Before what failed is tried again for the first time; then twice as long each time.
    pub first: Duration,
    /// At most.
    pub longest: Duration,
    /// A page of a list, or the head of an answer, takes no longer: a request that nobody answers is
    /// made anew.
    pub answer: Duration,
    /// The API server is asked to end a watch after so long.
    pub watch: Duration,
    /// A watch on which nothing comes for so long (the API server sends a bookmark each minute) is
    /// taken for dead.
    pub silence: Duration,
    /// What a cluster may do without, and may not be read, is asked for so seldom.
    pub forbidden: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
            answer: Duration::from_secs(30),
            watch: Duration::from_secs(290),
            silence: Duration::from_mins(2),
            forbidden: Duration::from_mins(5),
        }
    }
}

/// What a watch tells.
#[derive(Debug)]
pub enum Report {
    /// All there is.
    Listed(Vec<Item>),
    Applied(Item),
    Gone(Key),
    /// It answers (again).
    Connected,
    /// What is known stands.
    Failing(Trouble),
    /// There is no such resource, as far as can be told.
    Absent,
    /// Nobody lets the agent read what a cluster may do without.
    Forbidden(Trouble),
}

/// Follows it until `tell` says that nobody listens.
pub struct Follower<F> {
    pub client: Client,
    pub watch: Watch,
    pub resource: Resource,
    pub pace: Pace,
    pub tell: F,
}

/// Nobody listens.
struct Unheard;

/// How a watch ended.
enum End {
    /// As it should: the next one goes on.
    Closed,
    /// What it would go on from is forgotten.
    Expired,
    Failed(Trouble),
}

#[derive(Deserialize)]
pub(super) struct Page {
    #[serde(default)]
    metadata: PageMeta,
    pub(super) items: Option<Vec<Value>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

impl<F, T> Follower<F>
where
    F: FnMut(Report) -> T,
    T: Future<Output = bool>,
{
    pub async fn run(mut self) {
        // The caller drops its end; there is nobody to tell why.
        let _ = self.follow().await;
    }

    async fn tell(&mut self, report: Report) -> Result<(), Unheard> {
        if (self.tell)(report).await {
            Ok(())
        } else {
            Err(Unheard)
        }
    }

    async fn follow(&mut self) -> Result<(), Unheard> {
        let mut wait = Wait::new(self.pace);
        let (mut absent, mut forbidden) = (0, 0);
        loop {
            let (items, version) = match self.list().await {
                Ok(listed) => listed,
                Err(trouble) => {
                    let pause = wait.after(&trouble);
                    tracing::debug!(event = "source_list_failed", watch = %self.watch, %trouble, ?pause);
                    if self.watch.is_optional() && trouble.is_forbidden() {
                        forbidden += 1;
                        if forbidden >= FORBIDDEN {
                            self.tell(Report::Forbidden(trouble)).await?;
                            let slow = self.pace.forbidden;
                            sleep(slow / 2 + wait.jitter(slow)).await;
                        } else {
                            sleep(pause).await;
                        }
                        continue;
                    }
                    forbidden = 0;
                    absent = if trouble.is_absent() { absent + 1 } else { 0 };
                    if absent >= ABSENT {
                        self.tell(Report::Absent).await?;
                    }
                    self.tell(Report::Failing(trouble)).await?;
                    sleep(pause).await;
                    continue;
                }
            };
            (absent, forbidden) = (0, 0);
            self.tell(Report::Listed(items)).await?;
            self.tell(Report::Connected).await?;
            if self.watch_from(version, &mut wait).await? {
                // All agents are told at once that they have to.
                sleep(wait.jitter(self.pace.first)).await;
            } else {
                // Lists that lead to nothing must not follow each other without end.
                sleep(wait.next()).await;
            }
        }
    }

    /// Watches again and again, until there is a reason to list anew. Whether anything came.
    async fn watch_from(&mut self, mut version: String, wait: &mut Wait) -> Result<bool, Unheard> {
        let mut failures = 0;
        let mut came = false;
        loop {
            let begin = Instant::now();
            let before = version.clone();
            let end = self.watch_once(&mut version).await?;
            let silent = matches!(end, End::Failed(Trouble::Silent(_)));
            let lasted = !silent && begin.elapsed() > self.pace.longest;
            if version != before || lasted {
                // However it ended, it had worked: waits grow with failures in a row, not with all
                // that there ever were.
                came = true;
                wait.reset();
            }
            match end {
                End::Expired => return Ok(came),
                End::Closed => {
                    failures = 0;
                    // One that ends at once and says nothing is no reason to ask without end.
                    if begin.elapsed() < self.pace.first && version == before {
                        sleep(wait.next()).await;
                    } else {
                        wait.reset();
                    }
                }
                End::Failed(trouble) => {
                    failures = if version == before { failures + 1 } else { 1 };
                    let pause = wait.after(&trouble);
                    tracing::debug!(event = "source_resume_failed", watch = %self.watch, %trouble, ?pause);
                    let answered = trouble.is_answer();
                    self.tell(Report::Failing(trouble)).await?;
                    sleep(pause).await;
                    if answered && failures >= RESUMES {
                        return Ok(came);
                    }
                }
            }
        }
    }

    /// The whole list, as the API server has it now: never an older one out of a cache, which could
    /// take back what is known already. Pages are read as they come.
    async fn list(&self) -> Result<(Vec<Item>, String), Trouble> {
        let mut tries = 0;
        'anew: loop {
            let mut items = Vec::new();
            let mut params = ListParams {
                label_selector: self.resource.label_selector.clone(),
                field_selector: self.resource.field_selector.clone(),
                limit: (tries < PAGED_TRIES).then_some(PAGE),
                ..ListParams::default()
            };
            loop {
                match self.page(&params).await {
                    Ok(page) => {
                        let read = |value| read(&self.watch, value);
                        items.extend(page.items.into_iter().flatten().filter_map(read));
                        params.continue_token = page.metadata.next.filter(|n| !n.is_empty());
                        if params.continue_token.is_none() {
                            let version = page.metadata.resource_version;
                            let version = version.filter(|version| !version.is_empty());
                            return Ok((items, version.ok_or(Trouble::NoVersion)?));
                        }
                    }
                    Err(trouble) if trouble.is_expired() && tries < PAGED_TRIES => {
                        tries += 1;
                        continue 'anew;
                    }
                    Err(trouble) => return Err(trouble),
                }
            }
        }
    }

    async fn page(&self, params: &ListParams) -> Result<Page, Trouble> {
        let request = Request::new(self.resource.path());
        let request = if self.resource.metadata_only {
            request.list_metadata(params)
        } else {
            request.list(params)
        };
        let request = request.map_err(kube::Error::BuildRequest)?;
        tracing::trace!(event = "source_listing", watch = %self.watch);
        let text = timeout(self.pace.answer, self.client.request_text(request));
        let text = text
            .await
            .map_err(|_| Trouble::Silent(self.pace.answer))??;
        serde_json::from_str(&text).map_err(Trouble::Unreadable)
    }

    /// One watch to its end; `version` is how far it came.
    async fn watch_once(&mut self, version: &mut String) -> Result<End, Unheard> {
        let wait = Wait::new(self.pace);
        // Not all at once, should they all have begun at once.
        let seconds = self.pace.watch.mul_f64(0.8) + wait.jitter(self.pace.watch / 5);
        let params = WatchParams {
            label_selector: self.resource.label_selector.clone(),
            field_selector: self.resource.field_selector.clone(),
            timeout: Some(u32::try_from(seconds.as_secs().max(1)).unwrap_or(290)),
            bookmarks: true,
            send_initial_events: false,
        };
        let request = Request::new(self.resource.path());
        let request = if self.resource.metadata_only {
            request.watch_metadata(&params, version)
        } else {
            request.watch(&params, version)
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => return Ok(failed(kube::Error::BuildRequest(error).into())),
        };
        tracing::trace!(event = "source_watching", watch = %self.watch, %version);
        let client = self.client.clone();
        let events = timeout(self.pace.answer, client.request_events::<Value>(request));
        let events = match events.await {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => return Ok(failed(error.into())),
            Err(_) => return Ok(failed(Trouble::Silent(self.pace.answer))),
        };
        let mut events: BoxStream<'_, kube::Result<WatchEvent<Value>>> = events.boxed();
        self.tell(Report::Connected).await?;
        loop {
            let event = match timeout(self.pace.silence, events.next()).await {
                Ok(Some(Ok(event))) => event,
                // What can't be read may have been a change: it must come again.
                Ok(Some(Err(error))) => return Ok(failed(error.into())),
                Ok(None) | Err(_) => return Ok(End::Closed),
            };
            let (report, next) = match event {
                WatchEvent::Bookmark(mark) => (None, Some(mark.metadata.resource_version)),
                WatchEvent::Error(status) => {
                    return Ok(failed(kube::Error::Api(status).into()));
                }
                WatchEvent::Added(value) | WatchEvent::Modified(value) => {
                    let next = resource_version(&value);
                    (read(&self.watch, value).map(Report::Applied), next)
                }
                WatchEvent::Deleted(value) => {
                    let next = resource_version(&value);
                    let gone = read(&self.watch, value).map(|item| Report::Gone(item.key));
                    (gone, next)
                }
            };
            let Some(next) = next.filter(|next| !next.is_empty()) else {
                return Ok(failed(Trouble::NoVersion));
            };
            if let Some(report) = report {
                self.tell(report).await?;
            }
            *version = next;
        }
    }
}

fn resource_version(value: &Value) -> Option<String> {
    let version = value.get("metadata")?.get("resourceVersion")?;
    version.as_str().map(str::to_owned)
}

fn failed(trouble: Trouble) -> End {
    if trouble.is_expired() {
        End::Expired
    } else {
        End::Failed(trouble)
    }
}

/// Waits longer each time, and never as long as another agent.
#[derive(Debug)]
struct Wait {
    pace: Pace,
    times: u32,
}

impl Wait {
    fn new(pace: Pace) -> Self {
        Self { pace, times: 0 }
    }

    fn reset(&mut self) {
        self.times = 0;
    }

    fn next(&mut self) -> Duration {
        let doubled = self.pace.first.saturating_mul(1 << self.times.min(16));
        self.times += 1;
        let longest = doubled.min(self.pace.longest);
        longest / 2 + self.jitter(longest / 2)
    }

    /// Not before the API server wants to be asked again.
    fn after(&mut self, trouble: &Trouble) -> Duration {
        self.next().max(trouble.retry_after().unwrap_or_default())
    }

    /// Anything below `most`.
    fn jitter(&self, most: Duration) -> Duration {
        let random = RandomState::new().hash_one(self.times) % 1024;
        most.mul_f64(f64::from(u32::try_from(random).unwrap_or(0)) / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_without_an_api_server_costs_few_requests_and_ends_within_half_a_minute() {
        let mut wait = Wait::new(Pace::default());
        let (mut passed, mut asked, mut longest) = (Duration::ZERO, 0, Duration::ZERO);
        while passed < Duration::from_hours(1) {
            let next = wait.next();
            longest = longest.max(next);
            passed += next;
            asked += 1;
        }
        assert!(
            (120..=260).contains(&asked),
            "{asked} requests of each watch"
        );
        assert!(longest <= Duration::from_secs(30), "{longest:?}");
        wait.reset();
        assert!(wait.next() <= Duration::from_millis(500), "as at first");
    }

    #[test]
    fn waits_longer_each_time_but_not_without_end() {
        let mut wait = Wait::new(Pace::default());
        let first = wait.next();
        assert!(first >= Duration::from_millis(250) && first <= Duration::from_millis(500));
        let waits: Vec<Duration> = (0..40).map(|_| wait.next()).collect();
        assert!(waits.iter().all(|w| *w <= Duration::from_secs(30)));
        assert!(waits[30] >= Duration::from_secs(15));
        wait.reset();
        assert!(wait.next() <= Duration::from_millis(500));
    }
}
