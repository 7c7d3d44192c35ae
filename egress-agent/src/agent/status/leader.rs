//! What the agent that holds the Lease does: it reads the nodes' reports, and writes the statuses of
//! Sallyport's own objects and the Events about all policy objects.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Error};
use prometheus_client::metrics::gauge::Gauge;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep_until};

use super::aggregate::{statuses, written};
use super::events::{Notice, Recorder, Regarding};
use super::findings::text;
use super::lease::{Candidate, Terms};
use super::news::{News, SharedHistory};
use super::nodes::Nodes;
use super::pace::{Pace, draw};
use super::queue::Queue;
use super::untold::{REASONS, Untold};
use super::{STATUS_MANAGER, Told};
use crate::api::status::EgressNodeSpec;
use crate::api::{AccessPolicy, EgressLockdown, EgressNode, ExternalService, VirtualGateway};
use crate::index::ObjectId;

/// Objects of one page of a list.
const PAGE: u32 = 500;
/// Nodes without an agent that the log names.
const NAMED: usize = 10;

/// What it takes to lead.
struct Leader {
    client: Client,
    news: watch::Receiver<Arc<News>>,
    history: SharedHistory,
    recorder: Recorder,
    /// What Events have yet to tell.
    untold: Untold,
    terms: Terms,
    /// Nodes without an agent.
    without: BTreeSet<String>,
    without_agent: Gauge,
    told: Told,
}

/// Leads whenever it can get the Lease; `me` names this agent.
pub async fn follow(
    client: Client,
    me: String,
    terms: Terms,
    mut news: watch::Receiver<Arc<News>>,
    history: SharedHistory,
    recorder: Recorder,
    without_agent: Gauge,
) {
    // Who knows nothing yet must not lead.
    if news.changed().await.is_err() {
        return;
    }
    news.mark_changed();
    let mut candidate = Candidate::new(client.clone(), &me, terms);
    let mut leader = Leader {
        client,
        news,
        history,
        recorder,
        untold: Untold::default(),
        terms,
        without: BTreeSet::new(),
        without_agent,
        told: Told::default(),
    };
    let mut told = Told::default();
    let pace = |leader: &Leader| Pace::of(leader.news.borrow().nodes.len());
    // Not all at once, should they all have begun at once.
    tokio::time::sleep(pace(&leader).realized.mul_f64(draw())).await;
    loop {
        let poll = terms.poll.unwrap_or_else(|| pace(&leader).poll);
        match candidate.attempt(poll).await {
            Ok(None) => {
                told.good("lease");
                tracing::info!(event = "status_leading");
                tokio::select! {
                    () = leader.lead() => return,
                    () = candidate.hold() => tracing::info!(event = "status_not_leading"),
                }
                // Who leads now tells.
                leader.without_agent.set(0);
                leader.without.clear();
            }
            Ok(Some(wait)) => {
                told.good("lease");
                tokio::time::sleep(wait).await;
            }
            Err(error) => {
                told.bad("lease", &error);
                tokio::time::sleep(poll.mul_f64(0.8 + draw() * 0.4)).await;
            }
        }
    }
}

impl Leader {
    /// Keeps statuses and Events until nobody tells any news.
    async fn lead(&mut self) {
        let mut queue = loop {
            match self.read_statuses().await {
                Ok(queue) => break queue,
                Err(error) => self.told.bad("statuses", &error),
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        };
        self.told.good("statuses");
        let (mut nodes, mut synced) = (Nodes::default(), false);
        let all: Api<DynamicObject> =
            Api::all_with(self.client.clone(), &ApiResource::erase::<EgressNode>(&()));
        let events = watcher(all, watcher::Config::default()).default_backoff();
        // All there are, as far as the list has come.
        let mut listed: Option<Vec<String>> = None;
        let mut events = std::pin::pin!(events);
        let mut dirty = true;
        let mut next = Instant::now();
        // That a node has not reported for too long comes with time alone.
        let mut look = interval(self.terms.grace / 4);
        loop {
            let idle = !dirty && self.untold.is_empty() && queue.is_empty();
            tokio::select! {
                event = events.next() => {
                    let Some(event) = event else { return };
                    synced |= matches!(event, Ok(Event::InitDone));
                    dirty |= self.take(&mut nodes, &mut listed, event);
                }
                changed = self.news.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    dirty = true;
                }
                _ = look.tick(), if synced => {
                    let news = self.news.borrow().clone();
                    dirty |= self.look_for_agents(&mut nodes, &news);
                }
                () = sleep_until(next), if synced && !idle => {
                    // Both may have come at once, and then this one was taken.
                    dirty |= self.news.has_changed().unwrap_or(false);
                    let news = self.news.borrow_and_update().clone();
                    let pace = Pace::of(news.nodes.len());
                    if std::mem::take(&mut dirty) {
                        self.look_for_agents(&mut nodes, &news);
                        self.untold.want(&news.findings, &news.declared, Instant::now());
                        let history = self.history.lock();
                        nodes.learn(&history);
                        let wanted = statuses(
                            &news.declared, &news.findings, &news.nodes, &nodes, &self.without,
                            &history,
                        );
                        drop(history);
                        queue.want(&wanted, &now());
                    }
                    self.write_next(&mut queue, &pace).await;
                    self.tell_findings(&news).await;
                    next = Instant::now() + pace.status;
                }
            }
        }
    }

    /// Whether it was news.
    fn take(
        &mut self,
        nodes: &mut Nodes,
        listed: &mut Option<Vec<String>>,
        event: Result<Event<DynamicObject>, watcher::Error>,
    ) -> bool {
        match event {
            Ok(Event::Init) => *listed = Some(Vec::new()),
            Ok(Event::InitApply(node) | Event::Apply(node)) => {
                let name = node.metadata.name.unwrap_or_default();
                if let Some(listed) = listed {
                    listed.push(name.clone());
                }
                // One that can't be read has realized nothing that is known.
                let report: EgressNodeSpec = serde_json::from_value(node.data).unwrap_or_default();
                let age = report
                    .reported
                    .as_ref()
                    .map(|at| Timestamp::now().duration_since(at.0));
                let age = age.and_then(|age| Duration::try_from(age).ok());
                let age = age.unwrap_or_default();
                nodes.apply(name, report, &self.history.lock(), Instant::now(), age);
                return true;
            }
            Ok(Event::InitDone) => {
                let listed = listed.take().unwrap_or_default();
                nodes.retain(|name| listed.iter().any(|it| it == name));
                self.told.good("nodes");
                return true;
            }
            Ok(Event::Delete(node)) => {
                nodes.remove(node.metadata.name.as_deref().unwrap_or_default());
                return true;
            }
            Err(error) => self.told.bad("nodes", &error),
        }
        false
    }

    /// Statuses as they are: what still holds keeps its times.
    async fn read_statuses(&self) -> Result<Queue, Error> {
        let mut queue = Queue::default();
        for (kind, resource) in resources() {
            let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
            let mut params = ListParams::default().limit(PAGE);
            loop {
                let page = api.list(&params).await?;
                for object in page.items {
                    let id = ObjectId {
                        kind,
                        namespace: object.metadata.namespace.unwrap_or_default(),
                        name: object.metadata.name.unwrap_or_default(),
                    };
                    let uid = object.metadata.uid.unwrap_or_default();
                    queue.read(id, uid, written(&object.data["status"]));
                }
                params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
                if params.continue_token.is_none() {
                    break;
                }
            }
        }
        Ok(queue)
    }

    async fn write_next(&mut self, queue: &mut Queue, pace: &Pace) {
        let Some((id, status)) = queue.next(Instant::now(), pace) else {
            return;
        };
        let (id, status) = (id.clone(), status.clone());
        let known = resources().into_iter().find(|(kind, _)| *kind == id.kind);
        let Some((_, resource)) = known else { return };
        let api: Api<DynamicObject> = match id.namespace.as_str() {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": id.name },
            "status": status,
        });
        let parameters = PatchParams::apply(STATUS_MANAGER).force();
        let patch = Patch::Apply(&patch);
        let done = match api.patch_status(&id.name, &parameters, &patch).await {
            Ok(_) => {
                self.told.good("status");
                Some(status)
            }
            // It is gone, and the watch will say so.
            Err(Error::Api(answer)) if answer.code == 404 => Some(status),
            Err(error) => {
                self.told.bad("status", &error);
                None
            }
        };
        queue.done(&id, done, Instant::now());
    }

    /// Tells one thing that is wrong with an object.
    async fn tell_findings(&mut self, news: &News) {
        let Some((id, effect)) = self.untold.next(Instant::now()) else {
            return;
        };
        let id = id.clone();
        let (Some(declared), Some(findings)) = (news.declared.get(&id), news.findings.get(&id))
        else {
            return;
        };
        let reason = REASONS.iter().find(|(of, _)| *of == effect);
        let notice = Notice {
            regarding: Regarding {
                api_version: declared.api_version.clone(),
                kind: id.kind.to_owned(),
                namespace: id.namespace.clone(),
                name: id.name.clone(),
                uid: declared.uid.clone(),
            },
            warning: true,
            reason: reason.map_or("Ignored", |(_, reason)| reason),
            action: "Read",
            note: text(findings, effect),
        };
        let told = self.recorder.tell(&notice).await;
        self.untold.done(&id, effect, told, Instant::now());
    }

    /// Looks which nodes have no agent; whether these are others than before.
    fn look_for_agents(&mut self, nodes: &mut Nodes, news: &News) -> bool {
        let now = Instant::now();
        let without = nodes.without_agent(&news.nodes, &news.others, now, &self.terms);
        if without == self.without {
            return false;
        }
        let count = i64::try_from(without.len()).unwrap_or(i64::MAX);
        self.without_agent.set(count);
        let named: Vec<&str> = without.iter().take(NAMED).map(String::as_str).collect();
        let named = named.join(", ");
        if without.is_empty() {
            tracing::info!(event = "all_nodes_have_agents");
        } else if !without.is_subset(&self.without) {
            tracing::warn!(
                event = "nodes_without_agent",
                count,
                nodes = named,
                "their pods may not be held: does the DaemonSet reach them, and do its pods run there?"
            );
        }
        self.without = without;
        true
    }
}

fn resources() -> [(&'static str, ApiResource); 4] {
    [
        ("EgressLockdown", ApiResource::erase::<EgressLockdown>(&())),
        ("VirtualGateway", ApiResource::erase::<VirtualGateway>(&())),
        (
            "ExternalService",
            ApiResource::erase::<ExternalService>(&()),
        ),
        ("AccessPolicy", ApiResource::erase::<AccessPolicy>(&())),
    ]
}

/// In whole seconds, as Kubernetes' times are.
fn now() -> String {
    let now = Timestamp::now().as_second();
    Timestamp::from_second(now).unwrap_or_default().to_string()
}
