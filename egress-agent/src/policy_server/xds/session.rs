//! The incremental protocol of one stream. Pure: requests and states in, responses out.
//!
//! Of each type at most one response is unanswered; what changes meanwhile is in the next one, so
//! a slow Envoy gets the latest state and no queue of older ones.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Sent,
};
use thiserror::Error;

use crate::gateway::envoy::{CLUSTERS, LISTENERS, Resources, TYPES};

/// Names that one stream may subscribe to.
const MAX_NAMES: usize = 4096;
/// Bytes of names and versions that one stream may have us keep.
const MAX_BYTES: usize = 2 << 20;
/// Stands for every resource of a type.
const WILDCARD: &str = "*";

/// Why a stream is ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProtocolError {
    #[error("too many resources are subscribed to; at most {MAX_NAMES}")]
    TooManyNames,
    #[error("names of resources are too long; at most {MAX_BYTES} bytes in all")]
    TooManyBytes,
}

/// What a request was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It changed subscriptions, or nothing.
    Subscribed,
    /// The last response of this type was taken. `settled`: nothing that was refused before is
    /// still wanted as it was.
    Acked {
        type_url: &'static str,
        settled: bool,
    },
    /// The last response of this type was refused; what was good before stands.
    Nacked {
        type_url: &'static str,
        message: String,
    },
    /// Of a type that is not served here.
    Foreign,
}

/// One stream.
#[derive(Clone, Debug, Default)]
pub struct Session {
    types: BTreeMap<&'static str, Subscription>,
    nonce: u64,
}

#[derive(Clone, Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// What the client has, or was sent, by version; none where it was told that there is no such
    /// resource.
    known: BTreeMap<String, Option<String>>,
    /// The response that is not answered yet.
    unanswered: Option<Unanswered>,
    /// Versions that the client refused, by name.
    refused: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
struct Unanswered {
    nonce: String,
    sent: BTreeMap<String, String>,
    removed: Vec<String>,
}

/// What a type lacks.
#[derive(Debug, Default)]
struct Difference {
    changed: Vec<String>,
    removed: Vec<String>,
}

impl Difference {
    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

impl Session {
    /// Takes a request.
    pub fn request(&mut self, request: &DeltaDiscoveryRequest) -> Result<Event, ProtocolError> {
        let known = TYPES.into_iter().find(|it| *it == request.type_url);
        let Some(type_url) = known else {
            return Ok(Event::Foreign);
        };
        let first = !self.types.contains_key(type_url);
        let subscription = self.types.entry(type_url).or_default();
        subscription.subscribe(
            request,
            first && (type_url == CLUSTERS || type_url == LISTENERS),
        );
        if subscription.names.len() > MAX_NAMES || subscription.known.len() > 2 * MAX_NAMES {
            return Err(ProtocolError::TooManyNames);
        }
        let brings = !request.resource_names_subscribe.is_empty()
            || !request.initial_resource_versions.is_empty();
        if brings && self.types.values().map(Subscription::bytes).sum::<usize>() > MAX_BYTES {
            return Err(ProtocolError::TooManyBytes);
        }
        let subscription = self.types.entry(type_url).or_default();
        let answered = subscription
            .unanswered
            .take_if(|unanswered| unanswered.nonce == request.response_nonce);
        let Some(answered) = answered else {
            return Ok(Event::Subscribed);
        };
        for name in answered.sent.keys().chain(&answered.removed) {
            subscription.refused.remove(name);
        }
        Ok(match &request.error_detail {
            // What was refused is not sent again before it changes.
            Some(error) => {
                subscription.refused.extend(answered.sent);
                Event::Nacked {
                    type_url,
                    message: error.message.clone(),
                }
            }
            None => Event::Acked {
                type_url,
                settled: subscription.refused.is_empty(),
            },
        })
    }

    /// The next response that is due, if any; to be called until there is none. Clusters come
    /// before what leads to them, and go after it.
    pub fn respond(
        &mut self,
        resources: &Resources,
        revision: &str,
    ) -> Option<DeltaDiscoveryResponse> {
        let order = [CLUSTERS]
            .into_iter()
            .chain(TYPES.into_iter().filter(|it| *it != CLUSTERS));
        let order: Vec<&'static str> = order.filter(|it| self.types.contains_key(it)).collect();
        let users_settled = order.iter().filter(|it| **it != CLUSTERS).all(|type_url| {
            let subscription = &self.types[type_url];
            subscription.unanswered.is_none()
                && subscription.difference(type_url, resources).is_empty()
        });
        for type_url in order {
            let subscription = &self.types[type_url];
            if subscription.unanswered.is_some() {
                continue;
            }
            let mut difference = subscription.difference(type_url, resources);
            if type_url == CLUSTERS && !users_settled {
                difference.removed.retain(|name| !subscription.has(name));
            }
            if !difference.is_empty() {
                return Some(self.response(type_url, &difference, resources, revision));
            }
        }
        None
    }

    /// Whether nothing is under way.
    pub fn is_answered(&self) -> bool {
        let mut types = self.types.values();
        types.all(|subscription| subscription.unanswered.is_none())
    }

    /// Whether the client has all it wants of these resources, and refused none.
    pub fn is_current(&self, resources: &Resources) -> bool {
        let current = |(type_url, subscription): (&&str, &Subscription)| {
            subscription.refused.is_empty()
                && subscription.difference(type_url, resources).is_empty()
        };
        // Listeners are asked for last; what they name is asked for as they come.
        self.types.contains_key(LISTENERS) && self.is_answered() && self.types.iter().all(current)
    }

    fn response(
        &mut self,
        type_url: &'static str,
        difference: &Difference,
        resources: &Resources,
        revision: &str,
    ) -> DeltaDiscoveryResponse {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let subscription = self.types.entry(type_url).or_default();
        let of_type = resources.by_type.get(type_url);
        let mut sent = Vec::with_capacity(difference.changed.len());
        for name in &difference.changed {
            let Some(resource) = of_type.and_then(|all| all.get(name)) else {
                continue;
            };
            subscription
                .known
                .insert(name.clone(), Some(resource.version.clone()));
            sent.push(Sent {
                name: name.clone(),
                version: resource.version.clone(),
                resource: Some(resource.body.clone()),
                ..Sent::default()
            });
        }
        for name in &difference.removed {
            if subscription.names.contains(name) {
                subscription.known.insert(name.clone(), None);
            } else {
                subscription.known.remove(name);
            }
        }
        subscription.unanswered = Some(Unanswered {
            nonce: nonce.clone(),
            sent: sent
                .iter()
                .map(|it| (it.name.clone(), it.version.clone()))
                .collect(),
            removed: difference.removed.clone(),
        });
        DeltaDiscoveryResponse {
            system_version_info: revision.to_owned(),
            type_url: type_url.to_owned(),
            resources: sent,
            removed_resources: difference.removed.clone(),
            nonce,
            ..DeltaDiscoveryResponse::default()
        }
    }
}

impl Subscription {
    /// Takes the subscriptions of a request. `may_be_wildcard`: the first request of a type that
    /// names nothing means everything.
    fn subscribe(&mut self, request: &DeltaDiscoveryRequest, may_be_wildcard: bool) {
        if may_be_wildcard && request.resource_names_subscribe.is_empty() {
            self.wildcard = true;
        }
        for name in &request.resource_names_subscribe {
            if name == WILDCARD {
                self.wildcard = true;
                continue;
            }
            self.names.insert(name.clone());
            // Whoever subscribes wants an answer, whatever it had before.
            self.known.remove(name);
        }
        for name in &request.resource_names_unsubscribe {
            if name == WILDCARD {
                self.wildcard = false;
                let names = &self.names;
                self.known.retain(|name, _| names.contains(name));
            } else if self.names.remove(name) && !self.wildcard {
                self.known.remove(name);
            }
        }
        for (name, version) in &request.initial_resource_versions {
            self.known.insert(name.clone(), Some(version.clone()));
        }
    }

    /// What is kept of what the client wrote.
    fn bytes(&self) -> usize {
        let versions = self.known.iter();
        let versions =
            versions.map(|(name, version)| name.len() + version.as_ref().map_or(0, String::len));
        self.names.iter().map(String::len).chain(versions).sum()
    }

    /// Whether the client holds such a resource.
    fn has(&self, name: &str) -> bool {
        self.known.get(name).is_some_and(Option::is_some)
    }

    fn difference(&self, type_url: &str, resources: &Resources) -> Difference {
        let mut difference = Difference::default();
        let all = resources.by_type.get(type_url);
        for (name, resource) in resources.of(type_url) {
            let wanted = self.wildcard || self.names.contains(name);
            let current = self
                .known
                .get(name)
                .is_some_and(|version| version.as_ref() == Some(&resource.version));
            if wanted && !current {
                difference.changed.push(name.clone());
            }
        }
        let exists = |name: &str| all.is_some_and(|all| all.contains_key(name));
        let gone = self
            .known
            .iter()
            .filter(|(name, version)| version.is_some() && !exists(name));
        difference
            .removed
            .extend(gone.map(|(name, _)| name.clone()));
        // Asked for by name, and there is none: the client waits to be told so.
        let missing = self
            .names
            .iter()
            .filter(|name| !exists(name) && !self.known.contains_key(*name));
        difference.removed.extend(missing.cloned());
        difference
    }
}
