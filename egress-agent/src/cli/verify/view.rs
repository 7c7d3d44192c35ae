//! How the battery and what came of it are written.

use std::fmt::Write as _;

use egress_battery::case::Case;
use egress_battery::row::{Outcome, Row};
use serde_json::json;

use crate::cli::output::{Part, Table, View, values};

/// The cases themselves.
pub(super) fn catalogue(cases: &[&Case]) -> View {
    let mut table = Table::new(&["NUMBER", "GROUP", "ATTEMPT", "FAMILY", "EXPECTED"]);
    let mut items = Vec::new();
    for case in cases {
        let families: Vec<&str> = case.families.iter().map(|it| it.as_str()).collect();
        let expected: Vec<&str> = case.expect.iter().map(|it| it.as_str()).collect();
        table.row(vec![
            case.id(),
            case.group.as_str().to_owned(),
            case.name.to_owned(),
            families.join(","),
            expected.join(","),
        ]);
        items.push(json!({
            "number": case.id(),
            "group": case.group.as_str(),
            "attempt": case.name,
            "families": families,
            "expected": expected,
        }));
    }
    View {
        kind: "BatteryCaseList",
        items,
        page: vec![Part::Table(table)],
    }
}

/// What came of them.
pub(super) fn rows(rows: &[Row]) -> View {
    let mut table = Table::new(&[
        "NUMBER", "+GROUP", "ATTEMPT", "FAMILY", "EXPECTED", "SEEN", "+SENT", "REASON", "WHY",
    ]);
    for row in rows {
        table.row(vec![
            row.number.clone(),
            row.group.to_owned(),
            row.attempt.to_owned(),
            row.family.to_owned(),
            row.expected.join(","),
            row.outcome.as_str().to_owned(),
            row.sent.to_string(),
            counted(ends(row)),
            why(row),
        ]);
    }
    View {
        kind: "BatteryReport",
        items: values(rows),
        page: vec![Part::Table(table), Part::Text(summary(rows))],
    }
}

/// What its packets ended for.
fn ends(row: &Row) -> impl Iterator<Item = (&'static str, u64)> {
    let reasons = row.reasons.iter().map(|(reason, count)| (*reason, *count));
    reasons.chain((row.fenced > 0).then_some(("the fence", row.fenced)))
}

fn counted<'a>(counts: impl Iterator<Item = (&'a str, u64)>) -> String {
    let words: Vec<String> = counts
        .map(|(what, count)| match count {
            1 => what.to_owned(),
            count => format!("{what}:{count}"),
        })
        .collect();
    words.join(",")
}

fn why(row: &Row) -> String {
    let mut text = String::new();
    if !row.elsewhere.is_empty() {
        let devices = row.elsewhere.iter().map(|(name, count)| (&**name, *count));
        // Writing to a string can't fail.
        let _ = write!(text, "on {} ", counted(devices));
    }
    text.push_str(row.why.as_deref().unwrap_or_default());
    text.trim_end().to_owned()
}

const OUTCOMES: [Outcome; 9] = [
    Outcome::Leaked,
    Outcome::WrongReason,
    Outcome::Broken,
    Outcome::Blind,
    Outcome::Held,
    Outcome::Works,
    Outcome::CameOut,
    Outcome::StayedIn,
    Outcome::NotTried,
];

/// Each outcome with its number; what must never be is told even if it is not.
fn summary(rows: &[Row]) -> String {
    let count = |outcome| rows.iter().filter(|row| row.outcome == outcome).count();
    let words: Vec<String> = OUTCOMES
        .iter()
        .map(|outcome| (outcome, count(*outcome)))
        .filter(|(outcome, count)| *count > 0 || outcome.is_bad())
        .map(|(outcome, count)| format!("{count} {}", outcome.as_str()))
        .collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::{Format, render};
    use egress_battery::case::Family;
    use egress_battery::catalogue;
    use egress_battery::row::Observed;
    use egress_battery::tap::Seen;
    use egress_common::Reason;
    use std::collections::BTreeMap;

    fn sample() -> Vec<Row> {
        let udp = catalogue::find(20).unwrap();
        let sctp = catalogue::find(25).unwrap();
        let observed = |out: &[(u32, u64)]| Observed {
            seen: Seen {
                sent: 2,
                elsewhere: out.iter().copied().collect(),
                lost: 0,
            },
            reasons: BTreeMap::from([(Reason::NotAllowed, 2)]),
            ..Observed::default()
        };
        let name = |device: u32| format!("eth{device}");
        vec![
            Row::judge(udp, Family::IPv4, &observed(&[]), name),
            Row::judge(udp, Family::IPv6, &observed(&[(0, 1)]), name),
            Row::not_tried(sctp, Family::IPv4, "no SCTP here".to_owned()),
        ]
    }

    #[test]
    fn the_table_is_for_people() {
        let text = render(&rows(&sample()), Format::Table, false).unwrap();
        assert_eq!(
            text,
            "NUMBER  ATTEMPT      FAMILY  EXPECTED     SEEN       REASON         WHY\n\
             B-020   UDP          IPv4    not-allowed  held       not-allowed:2  -\n\
             B-020   UDP          IPv6    not-allowed  LEAKED     not-allowed:2  on eth0\n\
             B-025   SCTP socket  IPv4    not-allowed  not tried  -              no SCTP here\n\
             \n\
             1 LEAKED, 0 WRONG REASON, 0 BROKEN, 0 BLIND, 1 held, 1 not tried\n"
        );
    }

    #[test]
    fn the_json_is_for_programs() {
        let text = render(&rows(&sample()[1..]), Format::Json, false).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value,
            json!({
                "apiVersion": "sallyport.dev/ctl/v1",
                "kind": "BatteryReport",
                "items": [
                    {
                        "number": "B-020", "group": "sockets", "attempt": "UDP", "family": "IPv6",
                        "expected": ["not-allowed"], "outcome": "leaked", "sent": 2,
                        "reasons": { "not-allowed": 2 }, "elsewhere": { "eth0": 1 },
                    },
                    {
                        "number": "B-025", "group": "sockets", "attempt": "SCTP socket",
                        "family": "IPv4", "expected": ["not-allowed"], "outcome": "not-tried",
                        "sent": 0, "reasons": {}, "elsewhere": {}, "why": "no SCTP here",
                    },
                ],
            })
        );
    }
}
