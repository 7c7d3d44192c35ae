//! How often is written. What a write costs grows with the number of nodes, so waits do too: small
//! clusters are told within seconds, and 5,000 nodes cost the API server what `deploy/README.md` says.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// Waits for a cluster of some size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// A node that realized something else reports it no sooner than this after its last report, at a
    /// random time within as long again.
    pub realized: Duration,
    /// A node of which only the counts of pods have changed reports after this time and up to half as
    /// long again.
    pub pods: Duration,
    /// Least time between two reports of a node; a pod that can't be held waits for nothing else.
    pub least: Duration,
    /// The status of one object is written no more often than this. Every agent's watch sees each
    /// such write.
    pub status_every: Duration,
    /// Statuses of all objects together are written no more often than this.
    pub status: Duration,
    /// How often an agent that does not hold the Lease looks at it.
    pub poll: Duration,
}

impl Pace {
    /// For so many nodes.
    pub fn of(nodes: usize) -> Self {
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX).min(100_000);
        let scaled = |each: Duration, least: Duration, most: Duration| {
            each.saturating_mul(nodes).clamp(least, most)
        };
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        Self {
            realized: scaled(ms(6), s(1), s(30)),
            pods: scaled(ms(60), s(5), s(300)),
            least: scaled(ms(1), s(1), s(5)),
            status_every: scaled(ms(6), s(1), s(30)),
            status: scaled(Duration::from_micros(200), ms(100), s(1)),
            poll: scaled(ms(50), s(15), s(300)),
        }
    }
}

/// A number from 0 to below 1, different each time and on each node.
pub fn draw() -> f64 {
    let random = RandomState::new().hash_one(0) % 4096;
    f64::from(u32::try_from(random).unwrap_or(0)) / 4096.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_thousand_nodes_cost_what_is_written_down() {
        let pace = Pace::of(5_000);
        let a_second = |wait: Duration| 5_000.0 / wait.as_secs_f64();
        assert!(a_second(pace.realized) <= 167.0);
        assert!(a_second(pace.pods) <= 17.0);
        assert!(pace.status >= Duration::from_secs(1));
        assert!(pace.status_every >= Duration::from_secs(30));
    }

    #[test]
    fn polling_the_lease_costs_the_api_server_the_same_in_a_small_and_a_big_cluster() {
        for nodes in [1_u32, 3, 300, 1_000, 5_000, 6_000] {
            let a_second = f64::from(nodes) / Pace::of(nodes as usize).poll.as_secs_f64();
            assert!(
                a_second <= 20.1,
                "{nodes} nodes: {a_second} requests a second"
            );
        }
    }
}
