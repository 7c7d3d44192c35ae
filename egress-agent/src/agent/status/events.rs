//! Events (`events.k8s.io/v1`): what is said of whom, how often at most.
//!
//! An Event's name is made of what it says, so saying it again makes no second one, not even by
//! another agent. What is said again and again becomes a series of one Event.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval};

use super::{MANAGER, Told};

/// Who reports.
const CONTROLLER: &str = "sallyport.dev/egress-agent";
/// Events at once, and then one in so long.
const BURST: f64 = 20.0;
const REFILL: Duration = Duration::from_secs(10);
/// A series is written so often at most; one of which nothing was heard for so long has ended.
const SERIES: Duration = Duration::from_mins(5);
const SERIES_END: Duration = Duration::from_mins(30);
/// Bytes of a note; the API server takes no longer one.
const LONGEST: usize = 1024;

/// What an Event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Regarding {
    pub api_version: String,
    pub kind: String,
    /// Empty for objects without one.
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub regarding: Regarding,
    /// Else it is good news.
    pub warning: bool,
    /// In one word.
    pub reason: &'static str,
    /// What was being done.
    pub action: &'static str,
    pub note: String,
}

impl Notice {
    fn name(&self) -> String {
        let mut hash = Sha256::new();
        for text in [&self.regarding.uid, self.reason, &self.note] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        let hash = hash.finalize();
        let (head, _) = hash.split_first_chunk().expect("SHA-256 is longer");
        let name: String = self.regarding.name.chars().take(200).collect();
        format!("{name}.{:016x}", u64::from_be_bytes(*head))
    }

    /// Events of objects without a namespace are in `default`.
    fn namespace(&self) -> &str {
        match self.regarding.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        }
    }

    fn event(&self, instance: &str, now: Timestamp) -> Value {
        let note = &self.note[..self.note.floor_char_boundary(LONGEST)];
        let instance: String = instance.chars().take(128).collect();
        let mut regarding = json!({
            "apiVersion": self.regarding.api_version,
            "kind": self.regarding.kind,
            "name": self.regarding.name,
            "uid": self.regarding.uid,
        });
        if !self.regarding.namespace.is_empty() {
            regarding["namespace"] = json!(self.regarding.namespace);
        }
        json!({
            "metadata": { "name": self.name(), "namespace": self.namespace() },
            "eventTime": micro(now),
            "reportingController": CONTROLLER,
            "reportingInstance": instance,
            "action": self.action,
            "reason": self.reason,
            "type": if self.warning { "Warning" } else { "Normal" },
            "note": note,
            "regarding": regarding,
        })
    }
}

fn micro(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// Lets through a few at once, and then one in a while.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let refilled = now.duration_since(self.at).as_secs_f64() / REFILL.as_secs_f64();
        self.tokens = (self.tokens + refilled).min(BURST);
        self.at = now;
        let left = self.tokens >= 1.0;
        if left {
            self.tokens -= 1.0;
        }
        left
    }
}

#[derive(Debug)]
struct Series {
    namespace: String,
    count: u32,
    /// As many were told.
    told: u32,
    /// When something was written.
    written: Instant,
    heard: Instant,
    last: Timestamp,
}

/// Writes Events.
pub struct Recorder {
    client: Client,
    instance: String,
    bucket: Bucket,
    series: BTreeMap<String, Series>,
    told: Told,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Recorder {
    /// `instance` names this agent.
    pub fn new(client: Client, instance: &str) -> Self {
        Self {
            client,
            instance: format!("egress-agent-{instance}"),
            bucket: Bucket {
                tokens: BURST,
                at: Instant::now(),
            },
            series: BTreeMap::new(),
            told: Told::default(),
        }
    }

    /// Makes an Event of it, or counts it to one that there is. Whether nothing is left to do: more
    /// than may be told is dropped, and the API server may not take it now.
    pub async fn tell(&mut self, notice: &Notice) -> bool {
        let (now, wall) = (Instant::now(), Timestamp::now());
        let name = notice.name();
        if let Some(series) = self.series.get_mut(&name) {
            series.count += 1;
            series.heard = now;
            series.last = wall;
            return true;
        }
        if !self.bucket.take(now) {
            tracing::debug!(
                event = "notice_dropped",
                reason = notice.reason,
                note = notice.note
            );
            return false;
        }
        let api: Api<Event> = Api::namespaced(self.client.clone(), notice.namespace());
        let event = serde_json::from_value(notice.event(&self.instance, wall));
        let event: Event = event.expect("an Event");
        let parameters = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        match api.create(&parameters, &event).await {
            Ok(_) => self.told.good("event"),
            // Said before, by an earlier agent.
            Err(Error::Api(status)) if status.code == 409 => {}
            // The namespace is gone or going.
            Err(Error::Api(status)) if status.code == 404 => return true,
            Err(error) => {
                self.told.bad("event", &error);
                return false;
            }
        }
        let series = Series {
            namespace: notice.namespace().to_owned(),
            count: 1,
            told: 1,
            written: now,
            heard: now,
            last: wall,
        };
        self.series.insert(name, series);
        true
    }

    /// Writes how often what is said again and again was said.
    pub async fn flush(&mut self) {
        let now = Instant::now();
        self.series.retain(|_, series| {
            series.told < series.count || now.duration_since(series.heard) < SERIES_END
        });
        let mut gone = Vec::new();
        for (name, series) in &mut self.series {
            let due = now.duration_since(series.written) >= SERIES;
            if series.told == series.count || !due || !self.bucket.take(now) {
                continue;
            }
            let api: Api<Event> = Api::namespaced(self.client.clone(), &series.namespace);
            let patch = json!({ "series": {
                "count": series.count, "lastObservedTime": micro(series.last),
            } });
            let (patch, parameters) = (Patch::Merge(&patch), PatchParams::default());
            match api.patch(name, &parameters, &patch).await {
                Ok(_) => {}
                // They are kept for an hour only.
                Err(Error::Api(status)) if status.code == 404 => gone.push(name.clone()),
                Err(error) => self.told.bad("event", &error),
            }
            series.told = series.count;
            series.written = now;
        }
        for name in gone {
            self.series.remove(&name);
        }
    }
}

/// Tells what happened to this node's pods, until nobody says any more.
pub async fn follow(mut recorder: Recorder, mut notices: mpsc::Receiver<Notice>) {
    let mut tick = interval(Duration::from_mins(1));
    loop {
        tokio::select! {
            notice = notices.recv() => match notice {
                // What is lost the node's report tells too.
                Some(notice) => _ = recorder.tell(&notice).await,
                None => return,
            },
            _ = tick.tick() => recorder.flush().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(name: &str, note: &str) -> Notice {
        Notice {
            regarding: Regarding {
                api_version: "v1".into(),
                kind: "Pod".into(),
                namespace: "n".into(),
                name: name.into(),
                uid: "u".into(),
            },
            warning: true,
            reason: "EgressUncovered",
            action: "Cover",
            note: note.into(),
        }
    }

    #[test]
    fn a_name_is_what_is_said() {
        let one = notice("web", "no device");
        assert_eq!(one.name(), notice("web", "no device").name());
        assert_ne!(one.name(), notice("web", "two devices").name());
        assert!(one.name().starts_with("web."));
        assert!(notice(&"x".repeat(253), "a").name().len() <= 253);
    }

    #[test]
    fn an_event_is_what_the_api_server_takes() {
        let now: Timestamp = "2026-01-31T01:02:03Z".parse().unwrap();
        let event = notice("web", &"é".repeat(3000)).event("node", now);
        let event: Event = serde_json::from_value(event).unwrap();
        assert_eq!(event.note.unwrap().len(), LONGEST);
        let time = serde_json::to_value(event.event_time.unwrap()).unwrap();
        assert_eq!(time, "2026-01-31T01:02:03.000000Z");
    }

    #[test]
    fn a_flood_is_bounded() {
        let begin = Instant::now();
        let mut bucket = Bucket {
            tokens: BURST,
            at: begin,
        };
        let taken = (0..1000).filter(|i| bucket.take(begin + Duration::from_millis(i * 100)));
        assert_eq!(taken.count(), 29, "20 at once and one in 10 seconds");
    }
}
