//! Numbers of held sandboxes.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// Counters and gauges; clones share them.
#[derive(Clone, Debug)]
pub struct NriMetrics {
    connected: Gauge,
    sandboxes: Family<OutcomeLabels, Counter>,
    held: Histogram,
}

impl NriMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            connected: Gauge::default(),
            sandboxes: Family::default(),
            // From 1 ms to 4 s.
            held: Histogram::new(exponential_buckets(0.001, 2.0, 13)),
        };
        registry.register(
            "nri_connected",
            "1 while the container runtime asks the agent before it starts a sandbox",
            metrics.connected.clone(),
        );
        registry.register(
            "nri_sandboxes",
            "Sandboxes that were held until their hooks stood (released), or for which they did \
             not stand in time (allowed, denied)",
            metrics.sandboxes.clone(),
        );
        registry.register_with_unit(
            "nri_hold_duration",
            "Time for which sandboxes were held",
            Unit::Seconds,
            metrics.held.clone(),
        );
        metrics
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.set(connected.into());
    }

    /// A sandbox was held: `released`, `allowed` or `denied`.
    pub(super) fn held(&self, outcome: &'static str, took: Duration) {
        self.sandboxes
            .get_or_create(&OutcomeLabels { outcome })
            .inc();
        self.held.observe(took.as_secs_f64());
    }
}
