//! What came of a case, and whether that is right.

use std::collections::BTreeMap;

use egress_common::Reason;
use serde::Serialize;

use crate::case::{Case, Family, Need};
use crate::tap::Seen;

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All of it was dropped, for an expected reason.
    Held,
    /// What must go on working does.
    Works,
    /// The pod is only audited, and it came out: where the pod is held, it is the lockdown that
    /// holds it.
    CameOut,
    /// The pod is only audited, and it came to nothing all the same: something else stops it here.
    StayedIn,
    /// It could not be tried.
    NotTried,
    /// It came out.
    Leaked,
    /// Nothing came out, but not all of it ended for an expected reason.
    WrongReason,
    /// What must go on working does not.
    Broken,
    /// The tap lost frames, so nothing is proven.
    Blind,
}

impl Outcome {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Works => "works",
            Self::CameOut => "came out",
            Self::StayedIn => "stayed in",
            Self::NotTried => "not tried",
            Self::Leaked => "LEAKED",
            Self::WrongReason => "WRONG REASON",
            Self::Broken => "BROKEN",
            Self::Blind => "BLIND",
        }
    }

    /// Whether it speaks against the promise, or leaves it open.
    pub const fn is_bad(self) -> bool {
        matches!(
            self,
            Self::Leaked | Self::WrongReason | Self::Broken | Self::Blind
        )
    }
}

/// A case in one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub number: String,
    pub group: &'static str,
    pub attempt: &'static str,
    pub family: &'static str,
    pub expected: Vec<&'static str>,
    pub outcome: Outcome,
    /// Frames that the pod was seen to send.
    pub sent: u64,
    /// Packets by the reason they ended for, also the pod's own beside the attempt.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Packets that the fence behind the hooks dropped meanwhile.
    #[serde(skip_serializing_if = "is_zero")]
    pub fenced: u64,
    /// Frames on devices where they must not be, by device.
    pub elsewhere: BTreeMap<String, u64>,
    /// Why it was not tried, what went wrong, or what has to be known of how it was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What was seen of a case.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The pod is not held, only audited.
    pub audited: bool,
    pub seen: Seen,
    pub reasons: BTreeMap<Reason, u64>,
    /// Packets that the fence dropped.
    pub fenced: u64,
    /// What the one who tried could not do.
    pub trouble: Option<String>,
    /// What has to be known of how it was tried.
    pub note: Option<String>,
}

impl Row {
    /// A case that could not be tried.
    pub fn not_tried(case: &Case, family: Family, why: String) -> Self {
        Self {
            number: case.id(),
            group: case.group.as_str(),
            attempt: case.name,
            family: family.as_str(),
            expected: case.expect.iter().map(|reason| reason.as_str()).collect(),
            outcome: Outcome::NotTried,
            sent: 0,
            reasons: BTreeMap::new(),
            fenced: 0,
            elsewhere: BTreeMap::new(),
            why: Some(why),
        }
    }

    /// Judges what was seen. `name` tells a device's name.
    pub fn judge(
        case: &Case,
        family: Family,
        observed: &Observed,
        name: impl Fn(u32) -> String,
    ) -> Self {
        let (outcome, why) = outcome(case, observed);
        let elsewhere = observed.seen.elsewhere.iter();
        let reasons = observed.reasons.iter();
        Self {
            outcome,
            sent: observed.seen.sent,
            fenced: observed.fenced,
            reasons: reasons
                .map(|(reason, count)| (reason.as_str(), *count))
                .collect(),
            elsewhere: elsewhere
                .map(|(device, count)| (name(*device), *count))
                .collect(),
            why,
            ..Self::not_tried(case, family, String::new())
        }
    }
}

fn outcome(case: &Case, observed: &Observed) -> (Outcome, Option<String>) {
    let Observed {
        seen,
        reasons,
        trouble,
        note,
        ..
    } = observed;
    let expected = case.expect.iter();
    let counted: u64 = expected
        .filter_map(|reason| reasons.get(reason))
        .copied()
        .sum();
    if case.must_work() {
        return match trouble {
            Some(trouble) => (Outcome::Broken, Some(trouble.clone())),
            None if counted == 0 => (Outcome::WrongReason, None),
            None => (Outcome::Works, None),
        };
    }
    let out: u64 = seen.elsewhere.values().sum();
    if out > 0 && !observed.audited {
        return (Outcome::Leaked, None);
    }
    if seen.lost > 0 {
        let why = format!("{} frames of the node were lost unseen", seen.lost);
        return (Outcome::Blind, Some(why));
    }
    if seen.sent == 0 {
        let why = trouble.clone();
        let why = why.unwrap_or_else(|| "nothing left the pod".to_owned());
        return (Outcome::NotTried, Some(why));
    }
    // Of these the tap, too, sees only what the hook does.
    if case.needs(Need::Fence) && observed.fenced == 0 && !observed.audited {
        let why = "the fence has dropped nothing".to_owned();
        return (Outcome::WrongReason, Some(why));
    }
    if counted < seen.sent {
        let why = format!("{counted} of {} ended as expected", seen.sent);
        return (Outcome::WrongReason, Some(why));
    }
    let outcome = match (observed.audited, out) {
        (false, _) => Outcome::Held,
        (true, 0) => Outcome::StayedIn,
        (true, _) => Outcome::CameOut,
    };
    (outcome, trouble.as_ref().or(note.as_ref()).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Group;
    use crate::catalogue;

    fn case() -> &'static Case {
        catalogue::all()
            .find(|case| case.expect == [Reason::NotAllowed])
            .unwrap()
    }

    fn observed(sent: u64, counted: u64, out: u64) -> Observed {
        let elsewhere = if out > 0 {
            BTreeMap::from([(2, out)])
        } else {
            BTreeMap::new()
        };
        Observed {
            seen: Seen {
                sent,
                elsewhere,
                lost: 0,
            },
            reasons: BTreeMap::from([(Reason::NotAllowed, counted), (Reason::Arp, 9)]),
            ..Observed::default()
        }
    }

    fn ends(observed: &Observed) -> Outcome {
        outcome(case(), observed).0
    }

    #[test]
    fn every_frame_must_be_counted_and_none_come_out() {
        assert_eq!(ends(&observed(3, 3, 0)), Outcome::Held);
        assert_eq!(ends(&observed(3, 2, 0)), Outcome::WrongReason);
        assert_eq!(ends(&observed(3, 3, 1)), Outcome::Leaked);
        assert_eq!(ends(&observed(0, 0, 1)), Outcome::Leaked);
        assert_eq!(ends(&observed(0, 3, 0)), Outcome::NotTried);
        let mut blind = observed(3, 3, 0);
        blind.seen.lost = 1;
        assert_eq!(ends(&blind), Outcome::Blind);
    }

    #[test]
    fn what_comes_out_of_an_audited_pod_is_no_leak() {
        let audited = |out| Observed {
            audited: true,
            ..observed(3, 3, out)
        };
        assert_eq!(ends(&audited(2)), Outcome::CameOut);
        assert_eq!(ends(&audited(0)), Outcome::StayedIn);
    }

    #[test]
    fn what_the_hook_never_sees_must_end_at_the_fence() {
        let case = catalogue::all().find(|case| case.needs(Need::Fence));
        let case = case.unwrap();
        let mut seen = observed(1, 1, 0);
        assert_eq!(outcome(case, &seen).0, Outcome::WrongReason);
        seen.fenced = 2;
        assert_eq!(outcome(case, &seen).0, Outcome::Held);
        seen.seen.elsewhere = BTreeMap::from([(2, 1)]);
        assert_eq!(outcome(case, &seen).0, Outcome::Leaked);
    }

    #[test]
    fn what_must_work_is_broken_by_any_trouble() {
        let case = catalogue::all()
            .find(|case| case.group == Group::Works && case.expect.contains(&Reason::Reply))
            .unwrap();
        let mut fine = Observed::default();
        assert_eq!(outcome(case, &fine).0, Outcome::WrongReason);
        fine.reasons.insert(Reason::Reply, 1);
        assert_eq!(outcome(case, &fine).0, Outcome::Works);
        fine.trouble = Some("timed out".to_owned());
        assert_eq!(outcome(case, &fine).0, Outcome::Broken);
    }
}
