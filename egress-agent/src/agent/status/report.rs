//! What a node's agent reports of itself, and when. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::pace::Pace;
use crate::api::status::{
    EgressNodeSpec, MAX_FINDINGS, MAX_UNCOVERED, PodCounts, Realized, UncoveredPod,
};
use crate::reconcile::{Coverage, NodeStatus, PodStatus};

/// Lockdowns whose pods are told apart.
const MOST_LOCKDOWNS: usize = 256;
/// Letters of a reason.
const LONGEST: usize = 512;

/// The node's report, without the time.
pub fn report<'a>(
    realized: &Realized,
    status: &NodeStatus,
    failures: impl Iterator<Item = &'a String>,
) -> EgressNodeSpec {
    let mut report = EgressNodeSpec {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        realized: realized.clone(),
        failures: failures.take(MAX_FINDINGS).map(|text| cut(text)).collect(),
        ..EgressNodeSpec::default()
    };
    for pod in &status.pods {
        let Some(count) = count(pod) else { continue };
        report.pods += count;
        for name in &pod.lockdowns {
            if report.lockdowns.len() < MOST_LOCKDOWNS || report.lockdowns.contains_key(name) {
                *report.lockdowns.entry(name.clone()).or_default() += count;
            }
        }
    }
    let uncovered = status.open().take(MAX_UNCOVERED);
    report.uncovered = uncovered
        .map(|pod| UncoveredPod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            reason: cut(pod.reason.as_deref().unwrap_or_default()),
        })
        .collect();
    report
}

/// The one place where the pod counts; none for pods that nothing is expected of.
fn count(pod: &PodStatus) -> Option<PodCounts> {
    let mut counts = PodCounts::default();
    match (pod.coverage, pod.mode) {
        (Coverage::Uncovered | Coverage::NodeAccess, _) => counts.uncovered = 1,
        (Coverage::Covered | Coverage::HostNetwork, "audit") => counts.audited = 1,
        (Coverage::Covered | Coverage::HostNetwork, _) => counts.enforced = 1,
        (Coverage::NotHeld | Coverage::Waiting, _) => return None,
    }
    Some(counts)
}

fn cut(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

/// When a node's report is written: soon with news, seldom without, and not by all nodes at once.
#[derive(Debug)]
pub struct Pacer {
    /// The report, and the UID of the Node whose it is: a Node that is registered anew under the same
    /// name leaves the report to be collected with the old one.
    told: Option<(EgressNodeSpec, String)>,
    /// What tells nothing new is written again after about so long.
    refresh: Duration,
    /// When it was told, or when this began.
    at: Instant,
    /// Since when there is something to tell.
    news: Option<Instant>,
    /// From 0 to below 1.
    draw: f64,
}

impl Pacer {
    pub fn new(now: Instant, refresh: Duration, draw: f64) -> Self {
        Self {
            told: None,
            refresh,
            at: now,
            news: None,
            draw,
        }
    }

    /// When to write the report of the Node with this UID.
    pub fn due(
        &mut self,
        now: Instant,
        report: &EgressNodeSpec,
        owner: &str,
        pace: &Pace,
    ) -> Instant {
        let Some((told, of)) = &self.told else {
            return self.at + pace.realized.mul_f64(self.draw);
        };
        let refresh = self.at + self.refresh.mul_f64(0.5 + self.draw);
        if told == report && of == owner {
            self.news = None;
            return refresh;
        }
        let news = *self.news.get_or_insert(now);
        let after = |least: Duration, spread: Duration| {
            (self.at + least).max(news) + spread.mul_f64(self.draw)
        };
        let urgent = of != owner
            || told.uncovered != report.uncovered
            || told.pods.uncovered != report.pods.uncovered;
        let pods = told.pods != report.pods || told.lockdowns != report.lockdowns;
        let rest = told.realized != report.realized
            || told.failures != report.failures
            || told.agent_version != report.agent_version;
        let due = [
            urgent.then(|| after(pace.least, Duration::ZERO)),
            rest.then(|| after(pace.realized, pace.realized)),
            pods.then(|| after(pace.pods, pace.pods / 2)),
        ];
        due.into_iter().flatten().min().unwrap_or(refresh)
    }

    /// The report was written.
    pub fn told(&mut self, now: Instant, report: EgressNodeSpec, owner: &str, draw: f64) {
        self.told = Some((report, owner.to_owned()));
        self.at = now;
        self.news = None;
        self.draw = draw;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const REFRESH: Duration = Duration::from_mins(10);

    fn pod(name: &str, mode: &'static str, coverage: Coverage, lockdowns: &[&str]) -> PodStatus {
        PodStatus {
            uid: name.into(),
            namespace: "n".into(),
            name: name.into(),
            service_account: "default".into(),
            mode,
            gateway: false,
            coverage,
            reason: (coverage == Coverage::Uncovered).then(|| "no device".into()),
            slot: None,
            cgroup: None,
            policy: None,
            lockdowns: lockdowns.iter().map(|&name| name.to_owned()).collect(),
            devices: vec![],
        }
    }

    #[test]
    fn pods_are_counted_by_what_becomes_of_them_and_uncovered_ones_named() {
        let status = NodeStatus {
            pods: vec![
                pod("a", "enforce", Coverage::Covered, &["x", "y"]),
                pod("b", "enforce", Coverage::HostNetwork, &["x"]),
                pod("c", "audit", Coverage::Covered, &["y"]),
                pod("d", "audit", Coverage::Uncovered, &["y"]),
                pod("e", "off", Coverage::NotHeld, &[]),
                pod("f", "enforce", Coverage::Waiting, &["x"]),
                pod("g", "enforce", Coverage::NodeAccess, &["x"]),
            ],
            ..NodeStatus::default()
        };
        let report = report(&Realized::default(), &status, std::iter::empty());
        let counts = |enforced, audited, uncovered| PodCounts {
            enforced,
            audited,
            uncovered,
        };
        assert_eq!(report.pods, counts(2, 1, 2));
        assert_eq!(report.lockdowns["x"], counts(2, 0, 1));
        assert_eq!(report.lockdowns["y"], counts(1, 1, 1));
        let named: Vec<&str> = report.uncovered.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(named, ["d", "g"]);
        assert_eq!(report.uncovered[0].reason, "no device");
    }

    fn changed(what: u8, number: u32) -> EgressNodeSpec {
        let mut report = EgressNodeSpec::default();
        match what {
            0 => report.realized.access_policies = number.to_string(),
            1 => report.pods.enforced = number,
            _ => report.pods.uncovered = number,
        }
        report
    }

    proptest! {
        /// However it changes: never more often than the pace allows, never late, and in the end
        /// what was told is what is so.
        #[test]
        fn reports_keep_their_pace(
            changes in prop::collection::vec((0..3_u8, 0..4_u32, 0..40_000_u64), 1..60),
            draws in prop::collection::vec(0.0..1.0_f64, 64),
            nodes in 1..6_000_usize,
        ) {
            let pace = Pace::of(nodes);
            let begin = Instant::now();
            let mut draws = draws.into_iter().cycle();
            let mut pacer = Pacer::new(begin, REFRESH, draws.next().unwrap());
            let (mut now, mut told) = (begin, Vec::new());
            let mut report = EgressNodeSpec::default();
            for (what, number, pause) in changes.into_iter().chain([(0, 9, 1_000_000)]) {
                report = changed(what, number);
                let until = now + Duration::from_millis(pause);
                let begun = now;
                loop {
                    let due = pacer.due(now, &report, "uid", &pace);
                    let latest = told.last().map(|(_, report)| report);
                    if latest != Some(&report) {
                        prop_assert!(due <= begun + pace.pods * 2 + pace.realized * 2, "late");
                    }
                    if due > until {
                        break;
                    }
                    now = now.max(due);
                    pacer.told(now, report.clone(), "uid", draws.next().unwrap());
                    told.push((now, report.clone()));
                }
                now = until;
            }
            prop_assert_eq!(&told.last().expect("it was told").1, &report);
            for pair in told.windows(2) {
                prop_assert!(pair[1].0 - pair[0].0 >= pace.least);
                let same = pair[1].1 == pair[0].1;
                prop_assert!(!same || pair[1].0 - pair[0].0 >= REFRESH / 2, "told twice");
            }
        }
    }

    #[test]
    fn a_report_is_written_anew_for_a_new_node_of_the_name_and_now_and_then() {
        let (begin, pace) = (Instant::now(), Pace::of(5_000));
        let mut pacer = Pacer::new(begin, REFRESH, 0.0);
        let report = changed(0, 1);
        let mut refreshed = BTreeSet::new();
        for i in 0..100 {
            pacer.told(begin, report.clone(), "one", f64::from(i) / 100.0);
            let again = pacer.due(begin, &report, "one", &pace) - begin;
            assert!(again >= REFRESH / 2 && again < REFRESH * 3 / 2, "{again:?}");
            refreshed.insert(again.as_secs());
            let now = begin + pace.least;
            assert_eq!(pacer.due(now, &report, "another", &pace), now);
        }
        assert!(refreshed.len() > 90, "not all nodes at once");
    }

    #[test]
    fn thousands_of_nodes_do_not_report_a_change_at_once() {
        let pace = Pace::of(5_000);
        let begin = Instant::now();
        let mut seconds = BTreeSet::new();
        for i in 0..1000_u32 {
            let mut pacer = Pacer::new(begin, REFRESH, 0.0);
            pacer.told(begin, changed(0, 1), "uid", f64::from(i) / 1000.0);
            // Long after the last report.
            let now = begin + Duration::from_hours(1);
            let due = pacer.due(now, &changed(0, 2), "uid", &pace);
            seconds.insert((due - now).as_secs());
        }
        assert_eq!(seconds, (0..30).collect());
    }
}
