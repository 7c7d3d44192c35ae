//! The story as a table, for people and for machines.

use std::fmt::Write as _;

use serde::Serialize;

/// Where the story is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Phase {
    #[serde(rename = "no-lockdown")]
    NoLockdown,
    #[serde(rename = "audit")]
    Audit,
    #[serde(rename = "enforce")]
    Enforce,
    #[serde(rename = "agent-killed")]
    AgentKilled,
    #[serde(rename = "agent-restarted")]
    AgentRestarted,
}

impl Phase {
    pub const fn title(self) -> &'static str {
        match self {
            Self::NoLockdown => "No lockdown: the hole",
            Self::Audit => "Lockdown, mode Audit: open, and reported",
            Self::Enforce => "Lockdown, mode Enforce: cut, and reported",
            Self::AgentKilled => "Agent killed (kill -9): the kernel holds on",
            Self::AgentRestarted => "Agent started again",
        }
    }
}

/// One line of the story.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub phase: Phase,
    pub attempt: String,
    pub expected: String,
    pub seen: String,
    /// What was reported about it; empty where nothing is to be reported.
    pub reported: String,
    pub ok: bool,
}

const WIDTHS: [usize; 3] = [57, 28, 36];

/// A phase's headline.
pub fn headline(phase: Phase) -> String {
    let [attempt, expected, seen] = WIDTHS;
    format!(
        "\n{}\n     {:<attempt$} {:<expected$} {:<seen$} {}",
        phase.title(),
        "ATTEMPT",
        "EXPECTED",
        "SEEN",
        "REPORTED"
    )
}

/// One line.
pub fn line(row: &Row) -> String {
    let [attempt, expected, seen] = WIDTHS;
    let mark = if row.ok { "ok" } else { "FAIL" };
    let mut line = String::new();
    let _ = write!(
        line,
        "{mark:<4} {:<attempt$} {:<expected$} {:<seen$} {}",
        row.attempt, row.expected, row.seen, row.reported
    );
    line.trim_end().to_owned()
}

/// The whole story for machines: one document.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    /// Changes when a field is renamed, removed, or means something else.
    pub version: u32,
    /// Whether the story was told to its end and every row was as expected.
    pub ok: bool,
    pub seconds: u64,
    /// Why it ended early.
    pub error: Option<String>,
    pub rows: &'a [Row],
}

/// Version of [`Document`].
pub const VERSION: u32 = 1;

/// The last line.
pub fn summary(rows: &[Row], seconds: u64) -> String {
    let failed = rows.iter().filter(|row| !row.ok).count();
    if failed == 0 {
        format!("\nAll {} rows are as expected ({seconds} s).", rows.len())
    } else {
        format!(
            "\n{failed} of {} rows are NOT as expected ({seconds} s).",
            rows.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ok: bool) -> Row {
        Row {
            phase: Phase::Enforce,
            attempt: "reviews by UDP".into(),
            expected: "cut".into(),
            seen: "0 packets".into(),
            reported: "not-allowed".into(),
            ok,
        }
    }

    #[test]
    fn a_failed_row_shows() {
        assert!(line(&row(true)).starts_with("ok "));
        assert!(line(&row(false)).starts_with("FAIL "));
        assert!(summary(&[row(true), row(false)], 3).contains("1 of 2"));
    }

    #[test]
    fn phases_have_stable_names_in_json() {
        let json = serde_json::to_value(row(true)).unwrap();
        assert_eq!(json["phase"], "enforce");
        assert_eq!(json["ok"], true);
    }
}
