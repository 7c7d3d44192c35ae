//! Counters that name objects. What was counted of an object goes when the object goes: else a
//! cluster whose policies come and go would have ever more of them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::gateway::{GatewayPolicy, ObjectName};

/// The objects that a counter's labels name.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Subject<'a> {
    pub(super) gateway: Option<&'a ObjectName>,
    pub(super) service: Option<&'a ObjectName>,
    /// An access policy, and the position of its entry.
    pub(super) entry: Option<(&'a ObjectName, usize)>,
    /// An access policy of which no entry decided.
    pub(super) policy: Option<&'a ObjectName>,
}

/// The same, kept.
#[derive(Clone, Debug)]
struct Kept {
    gateway: Option<ObjectName>,
    service: Option<ObjectName>,
    entry: Option<(ObjectName, usize)>,
    policy: Option<ObjectName>,
}

/// The objects that decide at some gateway.
#[derive(Debug)]
pub(super) struct Declared<'a> {
    gateways: BTreeSet<&'a ObjectName>,
    services: HashSet<&'a ObjectName>,
    entries: HashSet<(&'a ObjectName, usize)>,
    closing: HashSet<&'a ObjectName>,
}

impl<'a> Declared<'a> {
    pub(super) fn of(policy: &'a GatewayPolicy) -> Self {
        let (mut services, mut entries) = (HashSet::new(), HashSet::new());
        let mut closing = HashSet::new();
        for (service, rules) in policy.rules() {
            services.extend(service);
            closing.extend(rules.closing());
            entries.extend(rules.entries().map(|entry| (&entry.policy, entry.index)));
        }
        Self {
            gateways: policy.gateways.keys().collect(),
            services,
            entries,
            closing,
        }
    }

    fn has(&self, kept: &Kept) -> bool {
        let Kept {
            gateway,
            service,
            entry,
            policy,
        } = kept;
        gateway.as_ref().is_none_or(|it| self.gateways.contains(it))
            && service.as_ref().is_none_or(|it| self.services.contains(it))
            && policy.as_ref().is_none_or(|it| self.closing.contains(it))
            && entry
                .as_ref()
                .is_none_or(|(policy, index)| self.entries.contains(&(policy, *index)))
    }
}

/// Counters by labels, with what the labels name; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Named<L> {
    counters: Family<L, Counter>,
    /// Of each that there is; locked around making one, so that none is missed.
    kept: Arc<Mutex<HashMap<L, Kept>>>,
}

impl<L: Clone + Eq + Hash> Default for Named<L> {
    fn default() -> Self {
        Self {
            counters: Family::default(),
            kept: Arc::default(),
        }
    }
}

impl<L: Clone + Debug + Eq + Hash + EncodeLabelSet> Named<L> {
    /// For the registry.
    pub(super) fn family(&self) -> Family<L, Counter> {
        self.counters.clone()
    }

    pub(super) fn count(&self, labels: L, subject: Subject<'_>) {
        if let Some(counter) = self.counters.get(&labels) {
            counter.inc();
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        self.counters.get_or_create_owned(&labels).inc();
        kept.entry(labels).or_insert_with(|| Kept {
            gateway: subject.gateway.cloned(),
            service: subject.service.cloned(),
            entry: subject.entry.map(|(policy, index)| (policy.clone(), index)),
            policy: subject.policy.cloned(),
        });
    }

    /// Forgets those whose objects are gone.
    pub(super) fn keep(&self, declared: &Declared<'_>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|labels, subject| {
            let stays = declared.has(subject);
            if !stays {
                self.counters.remove(labels);
            }
            stays
        });
    }
}
