//! Which findings have yet to be told in Events. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::findings::{Findings, IGNORED, PART_REFUSED, REFUSED};
use crate::api::status::Finding;
use crate::index::ObjectId;
use crate::source::Declared;

/// Effects, and how an Event calls each.
pub const REASONS: [(&str, &str); 3] = [
    (REFUSED, "Refused"),
    (PART_REFUSED, "PartRefused"),
    (IGNORED, "Ignored"),
];

/// First and longest wait before what could not be told is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(5));

/// By object: what was found, and what of that was told.
#[derive(Debug, Default)]
pub struct Untold(BTreeMap<ObjectId, Object>);

#[derive(Debug)]
struct Object {
    uid: String,
    findings: Vec<Finding>,
    /// Effects that no Event tells yet.
    left: Vec<&'static str>,
    /// Not before.
    again: Instant,
    failures: u32,
}

impl Untold {
    /// Takes what is found now.
    pub fn want(
        &mut self,
        findings: &Findings,
        declared: &BTreeMap<ObjectId, Declared>,
        now: Instant,
    ) {
        // Who is not there any more must not stand in front of the others.
        self.0
            .retain(|id, _| findings.contains_key(id) && declared.contains_key(id));
        for (id, found) in findings {
            let Some(declared) = declared.get(id) else {
                continue;
            };
            let known = self.0.get(id);
            if known.is_some_and(|it| it.uid == declared.uid && it.findings == *found) {
                continue;
            }
            let has = |effect: &str| found.iter().any(|finding| finding.effect == effect);
            let object = Object {
                uid: declared.uid.clone(),
                findings: found.clone(),
                left: REASONS
                    .map(|(effect, _)| effect)
                    .into_iter()
                    .filter(|it| has(it))
                    .collect(),
                again: now,
                failures: 0,
            };
            self.0.insert(id.clone(), object);
        }
    }

    /// An object and an effect that an Event is to tell now. One that can't be told holds up no other.
    pub fn next(&self, now: Instant) -> Option<(&ObjectId, &'static str)> {
        let mut due = self.0.iter().filter(|(_, object)| object.again <= now);
        due.find_map(|(id, object)| Some((id, *object.left.first()?)))
    }

    /// It was told; or it could not be, and is tried again later.
    pub fn done(&mut self, id: &ObjectId, effect: &str, told: bool, now: Instant) {
        let Some(object) = self.0.get_mut(id) else {
            return;
        };
        if told {
            object.left.retain(|left| *left != effect);
            object.failures = 0;
        } else {
            let wait = RETRY
                .0
                .saturating_mul(1 << object.failures.min(8))
                .min(RETRY.1);
            object.failures += 1;
            object.again = now + wait;
        }
    }

    /// Whether everything is told.
    pub fn is_empty(&self) -> bool {
        self.0.values().all(|object| object.left.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_told_is_told_later_and_holds_up_no_other() {
        let id = |name: &str| ObjectId {
            kind: "AccessPolicy",
            namespace: "n".into(),
            name: name.into(),
        };
        let finding = |effect: &str| Finding {
            effect: effect.into(),
            ..Finding::default()
        };
        let findings = Findings::from([
            (id("a"), vec![finding(REFUSED), finding(IGNORED)]),
            (id("b"), vec![finding(IGNORED)]),
        ]);
        let declared = ["a", "b"]
            .map(|name| (id(name), Declared::default()))
            .into();
        let mut untold = Untold::default();
        let now = Instant::now();
        untold.want(&findings, &declared, now);
        assert_eq!(untold.next(now), Some((&id("a"), REFUSED)));
        untold.done(&id("a"), REFUSED, true, now);
        assert_eq!(
            untold.next(now),
            Some((&id("a"), IGNORED)),
            "there are two to tell"
        );
        untold.done(&id("a"), IGNORED, false, now);
        assert_eq!(untold.next(now), Some((&id("b"), IGNORED)));
        untold.done(&id("b"), IGNORED, true, now);
        assert_eq!(untold.next(now), None);
        untold.want(&findings, &declared, now);
        assert!(!untold.is_empty());
        let later = now + RETRY.0;
        assert_eq!(untold.next(later), Some((&id("a"), IGNORED)));
        untold.done(&id("a"), IGNORED, true, later);
        assert!(untold.is_empty());
        untold.want(&findings, &BTreeMap::new(), later);
        assert_eq!(untold.next(later), None, "nobody is there to be told of");
        untold.want(&findings, &declared, later);
        assert_eq!(untold.next(later), Some((&id("a"), REFUSED)), "found again");
    }
}
