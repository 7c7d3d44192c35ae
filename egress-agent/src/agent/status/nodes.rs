//! Which nodes report, and which have no agent that does. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::history::{History, Marks};
use super::lease::Terms;
use crate::api::status::EgressNodeSpec;

/// What nodes have reported.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    known: BTreeMap<String, Known>,
    /// Nodes that never reported, and since when they are waited for; none is too long.
    waiting: BTreeMap<String, Option<Instant>>,
    /// Nodes were looked through once: one that comes now is new.
    looked: bool,
}

#[derive(Clone, Debug)]
struct Known {
    report: EgressNodeSpec,
    marks: Marks,
    /// When it was reported by the clock of this agent; none is too long ago.
    at: Option<Instant>,
}

impl Nodes {
    /// A node has this report, which was written so long ago by the clocks of both; these count only
    /// for what was written before this agent looked.
    pub fn apply(
        &mut self,
        name: String,
        report: EgressNodeSpec,
        history: &History,
        now: Instant,
        age: Duration,
    ) {
        let before = self.known.get(&name);
        let marks = before.map(|known| known.marks).unwrap_or_default();
        let known = Known {
            marks: history.marks(&report.realized, marks),
            at: match before {
                None => now.checked_sub(age),
                Some(before) if before.report.reported == report.reported => before.at,
                Some(_) => Some(now),
            },
            report,
        };
        self.known.insert(name, known);
    }

    pub fn remove(&mut self, name: &str) {
        self.known.remove(name);
    }

    /// These are all there are.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.known.retain(|name, _| is_there(name));
    }

    /// A node may have been faster than this agent: its digest is known only now.
    pub fn learn(&mut self, history: &History) {
        for known in self.known.values_mut() {
            known.marks = history.marks(&known.report.realized, known.marks);
        }
    }

    /// Reports of nodes that are there.
    pub fn reports(&self) -> impl Iterator<Item = (&str, &EgressNodeSpec, &Marks)> {
        let nodes = self.known.iter();
        nodes.map(|(name, known)| (name.as_str(), &known.report, &known.marks))
    }

    /// Nodes that are there and from which no agent reports (any more), but for `others`, on which
    /// none can run. Whoever kept agents from them: their pods are not held. A node that has just
    /// come is given some time.
    pub fn without_agent(
        &mut self,
        present: &BTreeMap<String, String>,
        others: &BTreeSet<String>,
        now: Instant,
        terms: &Terms,
    ) -> BTreeSet<String> {
        let fresh = |known: &Known| known.at.is_some_and(|at| now < at + terms.stale);
        let first = !std::mem::replace(&mut self.looked, true);
        let mut without = BTreeSet::new();
        self.waiting.retain(|name, _| present.contains_key(name));
        for name in present.keys().filter(|name| !others.contains(*name)) {
            let known = self.known.get(name);
            if known.is_some() {
                self.waiting.remove(name);
            }
            let is_missed = if let Some(known) = known {
                !fresh(known)
            } else {
                let since = self.waiting.entry(name.clone());
                let since = since.or_insert((!first).then_some(now));
                since.is_none_or(|since| now >= since + terms.grace)
            };
            if is_missed {
                without.insert(name.clone());
            }
        }
        without
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn nodes_are_missed_that_never_reported_or_not_for_long() {
        let (terms, history) = (Terms::default(), History::default());
        let mut nodes = Nodes::default();
        let begin = Instant::now();
        let mut present: BTreeMap<String, String> = ["a", "b", "windows"]
            .map(|name| (name.to_owned(), "uid".to_owned()))
            .into();
        let others = BTreeSet::from(["windows".to_owned()]);
        let mut second = 0;
        let mut report = |nodes: &mut Nodes, name: &str, now, age| {
            second += 1;
            let report = EgressNodeSpec {
                reported: Timestamp::from_second(second).ok().map(Time),
                ..EgressNodeSpec::default()
            };
            nodes.apply(name.into(), report, &history, now, age);
        };
        report(&mut nodes, "a", begin, Duration::ZERO);
        let missed = |nodes: &mut Nodes, present: &_, now| {
            let without = nodes.without_agent(present, &others, now, &terms);
            without.into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            missed(&mut nodes, &present, begin),
            "b",
            "known from the start"
        );
        // One that joins later is waited for.
        present.insert("c".into(), "uid".into());
        let joined = begin + SECOND;
        assert_eq!(missed(&mut nodes, &present, joined), "b");
        assert_eq!(missed(&mut nodes, &present, joined + terms.grace), "b c");
        report(&mut nodes, "c", joined + terms.grace, Duration::ZERO);
        report(&mut nodes, "b", joined + terms.grace, Duration::ZERO);
        assert_eq!(missed(&mut nodes, &present, joined + terms.grace), "");
        // The agent of one is gone, whose report is still there.
        report(&mut nodes, "b", begin + terms.stale, Duration::ZERO);
        report(&mut nodes, "c", begin + terms.stale, Duration::ZERO);
        assert_eq!(missed(&mut nodes, &present, begin + terms.stale), "a");
        // It is as old for who looks only now.
        let mut nodes = Nodes::default();
        report(&mut nodes, "a", begin + terms.stale, terms.stale);
        report(&mut nodes, "b", begin + terms.stale, Duration::ZERO);
        report(
            &mut nodes,
            "c",
            begin + terms.stale,
            terms.stale * 1_000_000,
        );
        assert_eq!(missed(&mut nodes, &present, begin + terms.stale), "a c");
        present.remove("c");
        present.remove("a");
        assert_eq!(missed(&mut nodes, &present, begin + terms.stale), "");
        assert!(
            terms.stale >= terms.refresh * 3 / 2 * 2,
            "one refresh may fail"
        );
    }
}
