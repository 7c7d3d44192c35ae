//! The battery as a table, for people and for machines.

use std::collections::BTreeMap;

use anyhow::Result;
use egress_battery::case::{Case, Need};
use egress_battery::catalogue;
use serde::Serialize;

use super::agent::Verified;

/// Version of the JSON document.
const VERSION: u32 = 1;
/// What the pod's own stack may do beside an attempt.
const NOISE: [&str; 2] = ["arp", "neighbour"];

/// A case in one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    pub number: String,
    pub attempt: String,
    pub family: String,
    pub expected: Vec<String>,
    /// What came of it where nothing holds: without what comes out here, the rest shows nothing.
    pub control: &'static str,
    pub seen: &'static str,
    pub reasons: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    pub ok: bool,
}

impl Row {
    /// Of a case that is played here.
    pub(super) fn of(case: &Case, family: usize) -> Self {
        Self {
            number: case.id(),
            attempt: case.name.to_owned(),
            family: ["IPv4", "IPv6"][family].to_owned(),
            expected: case
                .expect
                .iter()
                .map(|it| it.as_str().to_owned())
                .collect(),
            control: "not tried",
            seen: "not tried",
            reasons: BTreeMap::new(),
            why: String::new(),
            ok: false,
        }
    }

    /// What an attempt was that came out, or not, without and with what holds.
    pub(super) fn judge(&mut self, before: bool, out: bool) {
        let expected = self.counted_as_expected();
        self.control = if before { "came out" } else { "stayed in" };
        self.seen = match (out, expected) {
            (true, _) => "LEAKED",
            (false, true) => "held",
            (false, false) => "WRONG REASON",
        };
        self.ok = !out && expected;
    }

    /// Whether something was counted for an expected reason, and nothing beside.
    pub(super) fn counted_as_expected(&self) -> bool {
        let known =
            |reason: &&String| self.expected.contains(reason) || NOISE.contains(&reason.as_str());
        self.reasons.keys().all(|reason| known(&reason))
            && self
                .expected
                .iter()
                .any(|reason| self.reasons.contains_key(reason))
    }
}

/// Rows of `egressctl verify` under Enforce, beside the same under Audit.
pub(super) fn beside(held: Vec<Verified>, audited: Vec<Verified>) -> Vec<Row> {
    let audited: BTreeMap<_, _> = audited
        .into_iter()
        .map(|row| ((row.number.clone(), row.family.clone()), row))
        .collect();
    let row = |row: Verified| {
        let before = audited.get(&(row.number.clone(), row.family.clone()));
        merge(row, before)
    };
    held.into_iter().filter_map(row).collect()
}

/// One of them. None for what is played here instead.
fn merge(held: Verified, audited: Option<&Verified>) -> Option<Row> {
    let case = catalogue::all().find(|case| case.id() == held.number)?;
    if matches!(case.by, egress_battery::case::By::Cluster) {
        return None;
    }
    let mut row = Row {
        control: audited.map_or("not tried", |row| words(&row.outcome)),
        seen: words(&held.outcome),
        reasons: held.reasons,
        why: held.why.unwrap_or_default(),
        number: held.number,
        attempt: held.attempt,
        family: held.family,
        expected: held.expected,
        ok: false,
    };
    if held.fenced > 0 {
        row.reasons.insert("fence".to_owned(), held.fenced);
        // What it says the fence is for.
        let counts = case.needs(Need::Fence);
        row.expected.extend(counts.then(|| "fence".to_owned()));
    }
    if !held.elsewhere.is_empty() {
        row.why = format!(
            "on {:?} {}",
            held.elsewhere.keys().collect::<Vec<_>>(),
            row.why
        );
    }
    row.ok = match &*held.outcome {
        // The pod does nothing but this, so every packet must be accounted for.
        "held" => row.counted_as_expected() || row.number == BORROWED && held.sent > 0,
        "works" | "not-tried" => true,
        _ => false,
    };
    if let Some(bad) = audited.filter(|row| is_bad(&row.outcome)) {
        row.ok = false;
        row.why = format!(
            "under Audit: {} {}",
            words(&bad.outcome),
            bad.why.as_deref().unwrap_or("")
        );
    }
    Some(row)
}

/// Its first fragment goes to the resolver, as it may.
const BORROWED: &str = "B-113";

fn is_bad(outcome: &str) -> bool {
    matches!(outcome, "leaked" | "wrong-reason" | "broken" | "blind")
}

fn words(outcome: &str) -> &'static str {
    match outcome {
        "held" => "held",
        "works" => "works",
        "came-out" => "came out",
        "stayed-in" => "stayed in",
        "not-tried" => "not tried",
        "leaked" => "LEAKED",
        "wrong-reason" => "WRONG REASON",
        "broken" => "BROKEN",
        "blind" => "BLIND",
        _ => "UNKNOWN",
    }
}

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    ok: bool,
    seconds: u64,
    rows: &'a [Row],
}

pub(super) fn print(json: bool, rows: &[Row], complete: bool, seconds: u64) -> Result<()> {
    if json {
        let document = Document {
            version: VERSION,
            ok: complete && rows.iter().all(|row| row.ok),
            seconds,
            rows,
        };
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    println!(
        "\n{:<4} {:<6} {:<66} {:<6} {:<10} {:<13} REASONS",
        "", "NUMBER", "ATTEMPT", "FAMILY", "CONTROL", "SEEN"
    );
    for row in rows {
        let reasons = row
            .reasons
            .iter()
            .map(|(reason, count)| format!("{reason}:{count}"));
        let line = format!(
            "{:<4} {:<6} {:<66} {:<6} {:<10} {:<13} {} {}",
            if row.ok { "ok" } else { "FAIL" },
            row.number,
            row.attempt,
            row.family,
            row.control,
            row.seen,
            reasons.collect::<Vec<_>>().join(","),
            row.why,
        );
        println!("{}", line.trim_end());
    }
    println!("\n{}", summary(rows, seconds));
    Ok(())
}

fn summary(rows: &[Row], seconds: u64) -> String {
    let count = |what: fn(&Row) -> bool| rows.iter().filter(|row| what(row)).count();
    let not_tried = count(|row| row.seen == "not tried");
    format!(
        "battery: {} as they must be, {} not; {} of them came out where nothing held; {not_tried} could \
         not be tried; {seconds} s",
        count(|row| row.ok),
        count(|row| !row.ok),
        count(|row| row.control == "came out"),
    )
}
