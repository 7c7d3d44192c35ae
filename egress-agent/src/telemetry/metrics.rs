//! What a scraper sees: the agent's own numbers, and the kernel's, read at each scrape.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::kernel_metrics::KernelMetrics;
use crate::datapath::pinned::Pinned;
use crate::nri::NriMetrics;
use crate::policy_server::metrics::PolicyMetrics;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PodsLabels {
    mode: String,
    coverage: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FindingLabels {
    kind: &'static str,
    effect: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DisturbanceLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    verdict: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// The agent's metrics. Everything may be called from any task.
pub struct Metrics {
    registry: Registry,
    events: Family<VerdictLabels, Counter>,
    pods: Family<PodsLabels, Gauge>,
    reconciles: Family<OutcomeLabels, Counter>,
    reconcile_seconds: Histogram,
    writes: Counter,
    failures: Counter,
    disturbances: Family<DisturbanceLabels, Counter>,
    objects_refused: Gauge,
    findings: Family<FindingLabels, Gauge>,
    source_errors: Counter,
    source_connected: Gauge,
    source_stale_since: Gauge,
    source_all_pods: Gauge,
    nodes_without_agent: Gauge,
    last_sync: Gauge,
    policy: PolicyMetrics,
    nri: NriMetrics,
    begin: Instant,
    /// Milliseconds from then until the agent's loop went round last.
    went_round: AtomicU64,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Registers all metrics. With pins the kernel's numbers are among them.
    pub fn new(pinned: Option<Pinned>) -> Arc<Self> {
        let mut registry = Registry::with_prefix("sallyport");
        let events = Family::<VerdictLabels, Counter>::default();
        let pods = Family::<PodsLabels, Gauge>::default();
        let reconciles = Family::<OutcomeLabels, Counter>::default();
        // From 1 ms to 16 s.
        let reconcile_seconds = Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let (writes, failures) = (Counter::default(), Counter::default());
        let (objects_refused, last_sync) = (Gauge::default(), Gauge::default());
        let source_errors = Counter::default();
        let (source_connected, source_stale_since) = (Gauge::default(), Gauge::default());
        let disturbances = disturbances(&mut registry);
        let findings = Family::<FindingLabels, Gauge>::default();
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The agent's version", build);
        registry.register(
            "events",
            "Events read from the kernel, by verdict",
            events.clone(),
        );
        registry.register(
            "pods",
            "Pods of this node, by mode and coverage; any that are uncovered need attention",
            pods.clone(),
        );
        registry.register(
            "reconciles",
            "Reconciliations, by how they ended",
            reconciles.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "Time from desired state to kernel state",
            Unit::Seconds,
            reconcile_seconds.clone(),
        );
        registry.register("map_writes", "Writes to the kernel's maps", writes.clone());
        registry.register(
            "reconcile_failures",
            "Steps towards the desired state that failed and will be tried again",
            failures.clone(),
        );
        registry.register(
            "objects_refused",
            "Objects that are wrong; their last good version stands",
            objects_refused.clone(),
        );
        registry.register(
            "findings",
            "Fields of policy objects that are not honoured, by kind and by what becomes of them",
            findings.clone(),
        );
        let (nodes_without_agent, source_all_pods) = of_the_cluster(&mut registry);
        registry.register(
            "source_errors",
            "Failures to read the source of objects",
            source_errors.clone(),
        );
        registry.register(
            "source_connected",
            "1 while all of the declared state is being followed, 0 while some of it can't be",
            source_connected.clone(),
        );
        registry.register_with_unit(
            "source_stale_since_timestamp",
            "Since when some of the declared state can't be followed, since 1970; 0 while all is",
            Unit::Seconds,
            source_stale_since.clone(),
        );
        registry.register_with_unit(
            "last_sync_timestamp",
            "When the kernel last was as desired, since 1970",
            Unit::Seconds,
            last_sync.clone(),
        );
        let policy = PolicyMetrics::register(&mut registry);
        let nri = NriMetrics::register(&mut registry);
        if let Some(pinned) = pinned {
            registry.register_collector(Box::new(KernelMetrics::new(pinned)));
        }
        Arc::new(Self {
            registry,
            events,
            pods,
            reconciles,
            reconcile_seconds,
            writes,
            failures,
            disturbances,
            objects_refused,
            findings,
            source_errors,
            source_connected,
            source_stale_since,
            source_all_pods,
            nodes_without_agent,
            last_sync,
            policy,
            nri,
            begin: Instant::now(),
            went_round: AtomicU64::new(0),
        })
    }

    /// The agent's loop goes round, be there something to do or not.
    pub fn goes_round(&self) {
        let now = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.went_round.store(now, Ordering::Relaxed);
    }

    /// How long ago the agent's loop went round.
    pub fn stuck_for(&self) -> Duration {
        let last = Duration::from_millis(self.went_round.load(Ordering::Relaxed));
        self.begin.elapsed().saturating_sub(last)
    }

    /// Whether the kernel was as desired at least once since this agent was started.
    pub fn has_synced(&self) -> bool {
        self.last_sync.get() > 0
    }

    /// Those of the policy server.
    pub fn policy(&self) -> &PolicyMetrics {
        &self.policy
    }

    /// Those of held sandboxes.
    pub fn nri(&self) -> &NriMetrics {
        &self.nri
    }

    /// An event was read; `verdict` as in [`super::FlowEvent`].
    pub fn event(&self, verdict: &str) {
        let verdict = verdict.to_owned();
        self.events.get_or_create(&VerdictLabels { verdict }).inc();
    }

    /// Replaces the counts of pods by (mode, coverage): `off`, `audit` or `enforce`, and the
    /// name of the coverage.
    pub fn set_pods<'a>(&self, pods: impl IntoIterator<Item = (&'a str, &'a str)>) {
        self.pods.clear();
        for (mode, coverage) in pods {
            let labels = PodsLabels {
                mode: mode.to_owned(),
                coverage: coverage.to_owned(),
            };
            self.pods.get_or_create(&labels).inc();
        }
    }

    /// A reconciliation ended.
    pub fn reconciled(&self, took: Duration, writes: u64, failures: u64) {
        let outcome = if failures == 0 { "in-sync" } else { "failed" };
        self.reconciles
            .get_or_create(&OutcomeLabels { outcome })
            .inc();
        self.reconcile_seconds.observe(took.as_secs_f64());
        self.writes.inc_by(writes);
        self.failures.inc_by(failures);
        if failures == 0 {
            let seconds = super::clock::Clock::now().wall_ns / 1_000_000_000;
            self.last_sync
                .set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
    }

    /// Somebody else has changed what stands in the kernel.
    pub fn disturbed(&self, kind: &'static str) {
        let labels = DisturbanceLabels { kind };
        self.disturbances.get_or_create(&labels).inc();
    }

    /// How many objects of the source are refused now.
    pub fn set_objects_refused(&self, objects: usize) {
        self.objects_refused
            .set(i64::try_from(objects).unwrap_or(i64::MAX));
    }

    /// Replaces the counts of findings by (kind, effect).
    pub fn set_findings<'a>(&self, findings: impl IntoIterator<Item = (&'static str, &'a str)>) {
        self.findings.clear();
        for (kind, effect) in findings {
            let effect = effect.to_owned();
            self.findings
                .get_or_create(&FindingLabels { kind, effect })
                .inc();
        }
    }

    /// How many nodes have no agent: set by who writes the statuses.
    pub fn nodes_without_agent(&self) -> Gauge {
        self.nodes_without_agent.clone()
    }

    /// Whether the source is being followed.
    pub fn set_source(&self, health: &crate::source::Health) {
        self.source_connected.set(health.connected.into());
        let since = health
            .stale_since
            .map_or(0, k8s_openapi::jiff::Timestamp::as_second);
        self.source_stale_since.set(since);
        self.source_all_pods.set(health.all_pods.into());
    }

    /// The source could not be read.
    pub fn source_error(&self) {
        self.source_errors.inc();
    }

    /// All metrics as `OpenMetrics` text. Reads maps, so it may take some milliseconds.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn of_the_cluster(registry: &mut Registry) -> (Gauge, Gauge) {
    let (nodes, pods) = (Gauge::default(), Gauge::default());
    registry.register(
        "nodes_without_agent",
        "Linux nodes from which no agent reports, by the agent that writes the statuses; 0 elsewhere",
        nodes.clone(),
    );
    registry.register(
        "source_all_pods",
        "1 while pods of the whole cluster are watched, as where a gateway runs",
        pods.clone(),
    );
    (nodes, pods)
}

fn disturbances(registry: &mut Registry) -> Family<DisturbanceLabels, Counter> {
    let disturbances = Family::<DisturbanceLabels, Counter>::default();
    registry.register(
        "disturbances",
        "Hooks, entries and tables of nf_tables that somebody else took off, went before or changed, \
         and that were put back, by kind",
        disturbances.clone(),
    );
    disturbances
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_types_and_units() {
        let metrics = Metrics::new(None);
        metrics.event("drop");
        metrics.event("drop");
        metrics.set_pods([("enforce", "covered"), ("enforce", "uncovered")]);
        metrics.set_pods([("enforce", "covered"), ("enforce", "covered")]);
        metrics.reconciled(Duration::from_millis(3), 12, 0);
        metrics.reconciled(Duration::from_millis(3), 0, 1);
        let text = metrics.render().expect("text");
        for line in [
            "# TYPE sallyport_events counter",
            "sallyport_events_total{verdict=\"drop\"} 2",
            "# TYPE sallyport_pods gauge",
            "sallyport_pods{mode=\"enforce\",coverage=\"covered\"} 2",
            "# UNIT sallyport_reconcile_duration_seconds seconds",
            "sallyport_reconcile_duration_seconds_count 2",
            "sallyport_map_writes_total 12",
            "sallyport_reconcile_failures_total 1",
            "sallyport_reconciles_total{outcome=\"in-sync\"} 1",
            "# TYPE sallyport_build info",
        ] {
            assert!(text.lines().any(|it| it == line), "no {line} in\n{text}");
        }
        assert!(!text.contains("\"uncovered\""), "replaced:\n{text}");
    }
}
