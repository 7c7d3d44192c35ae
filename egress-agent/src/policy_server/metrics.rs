//! Numbers of the policy server.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::accept::{Refusal, Watcher};
use super::authz::Verdict;
use super::named::{Declared, Named, Subject};
use crate::gateway::{Decision, GatewayPolicy, ObjectName};
use crate::tls::Identities;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    gateway: String,
    verdict: &'static str,
    reason: &'static str,
    /// What decided. Objects are declared, so there are not too many.
    object: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DryRunLabels {
    gateway: String,
    service: String,
    would_be: &'static str,
    /// Of the entry that would admit.
    object: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectedLabels {
    gateway: String,
    kind: &'static str,
}

/// Counters and gauges; clones share them.
#[derive(Clone, Debug)]
pub struct PolicyMetrics {
    decisions: Named<DecisionLabels>,
    dry_run: Named<DryRunLabels>,
    duration: Histogram,
    callers_refused: Family<ReasonLabels, Counter>,
    connections: Gauge,
    connections_refused: Family<ReasonLabels, Counter>,
    certificate_expiry: Gauge<f64, AtomicU64>,
    serving: Gauge,
    streams: Gauge,
    rejected: Named<RejectedLabels>,
}

/// A stream that stands, for as long as this lives.
#[derive(Debug)]
pub struct StreamCount(Gauge);

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl PolicyMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            decisions: Named::default(),
            dry_run: Named::default(),
            // From 2 µs to 131 ms.
            duration: Histogram::new(exponential_buckets(0.000_002, 2.0, 17)),
            callers_refused: Family::default(),
            connections: Gauge::default(),
            connections_refused: Family::default(),
            certificate_expiry: Gauge::default(),
            serving: Gauge::default(),
            streams: Gauge::default(),
            rejected: Named::default(),
        };
        registry.register(
            "xds_streams",
            "Envoys that get their configuration from here",
            metrics.streams.clone(),
        );
        registry.register(
            "xds_rejected",
            "Configuration that an Envoy refused; what it had before stands",
            metrics.rejected.family(),
        );
        registry.register(
            "access_decisions",
            "Decisions about requests and connections at gateways, by what decided",
            metrics.decisions.family(),
        );
        registry.register(
            "access_dry_run",
            "Decisions at hosts with dry-run entries, by what they would be with them",
            metrics.dry_run.family(),
        );
        registry.register_with_unit(
            "access_duration",
            "Time for a decision, without the network",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register(
            "policy_callers_refused",
            "Calls to the policy server that were not answered, by reason",
            metrics.callers_refused.clone(),
        );
        registry.register(
            "policy_connections",
            "Connections to the policy server that stand",
            metrics.connections.clone(),
        );
        registry.register(
            "policy_connections_refused",
            "Connections that the policy server did not take, by reason",
            metrics.connections_refused.clone(),
        );
        registry.register(
            "policy_serving",
            "1 while the policy server listens; without it gateways refuse",
            metrics.serving.clone(),
        );
        registry.register_with_unit(
            "policy_certificate_expiry_timestamp",
            "When the policy server's certificate expires, since 1970; 0 without one",
            Unit::Seconds,
            metrics.certificate_expiry.clone(),
        );
        metrics
    }

    /// A question was answered.
    pub fn decided(&self, verdict: &Verdict, took: Duration) {
        let gateway = verdict
            .gateway
            .as_ref()
            .map_or_else(String::new, ToString::to_string);
        let word = |allowed| if allowed { "allowed" } else { "denied" };
        let decision = verdict.decision.as_ref();
        let about_gateway = Subject {
            gateway: verdict.gateway.as_ref(),
            ..Subject::default()
        };
        if let Some(would_be) = decision.and_then(|it| it.dry_run) {
            let labels = DryRunLabels {
                gateway: gateway.clone(),
                service: verdict.service().unwrap_or_default(),
                would_be: word(would_be),
                object: decision.and_then(Decision::would_be_by).unwrap_or_default(),
            };
            let service = decision.and_then(|it| it.service.as_ref());
            let would = decision.and_then(|it| it.would.as_ref());
            self.dry_run.count(
                labels,
                Subject {
                    service,
                    entry: would.map(|(policy, index)| (policy, *index)),
                    ..about_gateway
                },
            );
        }
        let labels = DecisionLabels {
            gateway,
            verdict: word(verdict.allowed()),
            reason: verdict.cause.as_str(),
            object: verdict.object().unwrap_or_default(),
        };
        self.decisions.count(
            labels,
            Subject {
                entry: decision.and_then(|it| it.object.as_ref().zip(it.entry)),
                policy: decision.and_then(|it| it.closed_by.as_ref()),
                service: decision.and_then(|it| it.service.as_ref()),
                ..about_gateway
            },
        );
        self.duration.observe(took.as_secs_f64());
    }

    /// Forgets what was counted of objects that are gone.
    pub fn keep(&self, policy: &GatewayPolicy) {
        let declared = Declared::of(policy);
        self.decisions.keep(&declared);
        self.dry_run.keep(&declared);
        self.rejected.keep(&declared);
    }

    /// A call was refused before the question was looked at.
    pub fn caller_refused(&self, reason: &'static str) {
        self.callers_refused
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// An Envoy's stream begins.
    pub fn stream(&self) -> StreamCount {
        self.streams.inc();
        StreamCount(self.streams.clone())
    }

    /// An Envoy refused a response.
    pub fn rejected(&self, gateway: &ObjectName, kind: &'static str) {
        let labels = RejectedLabels {
            gateway: gateway.to_string(),
            kind,
        };
        let subject = Subject {
            gateway: Some(gateway),
            ..Subject::default()
        };
        self.rejected.count(labels, subject);
    }

    /// Whether the server listens.
    pub fn set_serving(&self, serving: bool) {
        self.serving.set(serving.into());
    }

    /// Says when the certificate expires, whichever it is.
    pub async fn follow_expiry(self, mut identities: Identities) {
        loop {
            let seconds = identities
                .borrow_and_update()
                .as_ref()
                .map_or(0, |identity| identity.not_after_seconds());
            #[expect(clippy::cast_precision_loss, reason = "seconds are far below 2^52")]
            self.certificate_expiry.set(seconds as f64);
            if identities.changed().await.is_err() {
                return;
            }
        }
    }
}

impl PolicyMetrics {
    /// As the watcher of connections.
    pub fn watcher(&self) -> Arc<dyn Watcher> {
        Arc::new(self.clone())
    }
}

impl Watcher for PolicyMetrics {
    fn taken(&self) {
        self.connections.inc();
    }

    fn refused(&self, refusal: Refusal, detail: &str) {
        tracing::debug!(
            event = "connection_refused",
            reason = refusal.as_str(),
            detail
        );
        self.connections_refused
            .get_or_create(&ReasonLabels {
                reason: refusal.as_str(),
            })
            .inc();
    }

    fn closed(&self) {
        self.connections.dec();
    }
}
