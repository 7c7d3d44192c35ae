//! What each case came to, for people as it happens and for machines at the end.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use super::cases::{self, CASES};

/// How to write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Passed,
    Failed,
    /// The cluster has not what it takes; the reason says what.
    Skipped,
    /// The suite did not get to it.
    NotReached,
}

/// What one attempt at a case found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Seen {
        ok: bool,
        seen: String,
        /// Why, in the words of Sallyport: a reason of the kernel, a decision of the gateway.
        reason: String,
    },
    Skip(String),
}

impl Finding {
    pub fn new(ok: bool, seen: impl Into<String>) -> Self {
        Self::because(ok, seen, "")
    }

    pub fn because(ok: bool, seen: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Seen {
            ok,
            seen: seen.into(),
            reason: reason.into(),
        }
    }

    pub fn skip(why: impl Into<String>) -> Self {
        Self::Skip(why.into())
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub case: &'static str,
    pub verdict: Verdict,
    pub expected: &'static str,
    pub seen: String,
    pub reason: String,
    pub seconds: f64,
}

/// The rows so far.
#[derive(Debug)]
pub struct Report {
    rows: Vec<Row>,
    only: Vec<String>,
    format: Format,
}

/// The whole, for machines.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    api_version: &'static str,
    kind: &'static str,
    server: &'a str,
    nodes: usize,
    passed: usize,
    failed: usize,
    skipped: usize,
    not_reached: usize,
    /// What ended the suite early.
    error: Option<String>,
    /// What could not be cleaned up.
    left: &'a [String],
    cases: &'a [Row],
}

/// How the suite itself ended.
#[derive(Debug, Default)]
pub struct End {
    /// Version of the API server.
    pub server: String,
    pub nodes: usize,
    pub error: Option<anyhow::Error>,
    /// What could not be cleaned up.
    pub left: Vec<String>,
}

impl Report {
    pub fn new(only: &[String], format: Format) -> Self {
        Self {
            rows: Vec::new(),
            only: only.to_vec(),
            format,
        }
    }

    /// Whether one of these cases is to be tried.
    pub fn wants(&self, names: &[&str]) -> bool {
        names.iter().any(|name| cases::chosen(&self.only, name))
    }

    /// Tries a case, if it is chosen. What goes wrong on the way is its failure.
    pub async fn case(
        &mut self,
        name: &'static str,
        attempt: impl Future<Output = Result<Finding>>,
    ) {
        if cases::chosen(&self.only, name) {
            let start = Instant::now();
            let found = attempt.await;
            self.found(name, found, start.elapsed());
        }
    }

    /// Records what was found elsewhere.
    pub fn found(&mut self, name: &'static str, found: Result<Finding>, took: Duration) {
        if !cases::chosen(&self.only, name) {
            return;
        }
        let (verdict, seen, reason) = match found {
            Ok(Finding::Seen { ok, seen, reason }) => {
                let verdict = if ok { Verdict::Passed } else { Verdict::Failed };
                (verdict, seen, reason)
            }
            Ok(Finding::Skip(why)) => (Verdict::Skipped, "not tried".to_owned(), why),
            Err(error) => (
                Verdict::Failed,
                "could not be tried".to_owned(),
                format!("{error:#}"),
            ),
        };
        let row = Row {
            case: name,
            verdict,
            expected: cases::find(name).expected,
            seen,
            reason,
            seconds: (took.as_secs_f64() * 10.0).round() / 10.0,
        };
        if self.format == Format::Table {
            println!("{}", line(&row));
        }
        self.rows.push(row);
    }

    /// Adds the chosen cases that nobody got to.
    fn complete(&mut self) {
        for case in CASES {
            let there = self.rows.iter().any(|row| row.case == case.name);
            if !there && cases::chosen(&self.only, case.name) {
                self.rows.push(Row {
                    case: case.name,
                    verdict: Verdict::NotReached,
                    expected: case.expected,
                    seen: String::new(),
                    reason: String::new(),
                    seconds: 0.0,
                });
            }
        }
    }

    /// Prints the end; returns whether all is well: each chosen case passed or had a reason to be
    /// skipped, and nothing is left in the cluster.
    pub fn finish(mut self, end: &End) -> Result<bool> {
        self.complete();
        let count = |verdict| {
            self.rows
                .iter()
                .filter(|row| row.verdict == verdict)
                .count()
        };
        let document = Document {
            api_version: "sallyport.dev/e2e/v1",
            kind: "Report",
            server: &end.server,
            nodes: end.nodes,
            passed: count(Verdict::Passed),
            failed: count(Verdict::Failed),
            skipped: count(Verdict::Skipped),
            not_reached: count(Verdict::NotReached),
            error: end.error.as_ref().map(|error| format!("{error:#}")),
            left: &end.left,
            cases: &self.rows,
        };
        match self.format {
            Format::Json => println!("{}", serde_json::to_string_pretty(&document)?),
            Format::Table => summary(&document),
        }
        Ok(document.failed + document.not_reached == 0
            && document.passed > 0
            && document.error.is_none()
            && document.left.is_empty())
    }
}

fn line(row: &Row) -> String {
    let mark = match row.verdict {
        Verdict::Passed => "ok",
        Verdict::Failed => "FAILED",
        Verdict::Skipped => "skipped",
        Verdict::NotReached => "not reached",
    };
    let mut line = format!(
        "{mark:<8} {:<28} {:>5.1} s  {}",
        row.case, row.seconds, row.seen
    );
    if !row.reason.is_empty() {
        line = format!("{line} [{}]", row.reason);
    }
    if row.verdict == Verdict::Failed {
        line = format!("{line}\n         expected: {}", row.expected);
    }
    line
}

fn summary(document: &Document<'_>) {
    let named = |verdict: Verdict| -> Vec<&str> {
        let rows = document.cases.iter();
        rows.filter(|row| row.verdict == verdict)
            .map(|row| row.case)
            .collect()
    };
    println!(
        "\n{} passed, {} failed, {} skipped, {} not reached; Kubernetes {}, {} nodes",
        document.passed,
        document.failed,
        document.skipped,
        document.not_reached,
        document.server,
        document.nodes
    );
    for (what, verdict) in [
        ("failed", Verdict::Failed),
        ("skipped", Verdict::Skipped),
        ("not reached", Verdict::NotReached),
    ] {
        let names = named(verdict);
        if !names.is_empty() {
            println!("{what}: {}", names.join(", "));
        }
    }
    if let Some(error) = &document.error {
        println!("the suite ended early: {error}");
    }
    for left in document.left {
        println!("left in the cluster: {left}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(only: &str) -> Report {
        Report::new(&[only.to_owned()], Format::Json)
    }

    fn take(report: &mut Report, name: &'static str, found: Result<Finding>) {
        report.found(name, found, Duration::from_millis(1234));
    }

    #[test]
    fn all_is_well_only_if_every_chosen_case_is() {
        let mut passed = report("works-dns");
        take(
            &mut passed,
            "works-dns-udp",
            Ok(Finding::new(true, "10.96.0.1")),
        );
        take(
            &mut passed,
            "works-dns-tcp",
            Ok(Finding::skip("no DNS over TCP")),
        );
        // Not chosen: it does not count.
        take(&mut passed, "install", Ok(Finding::new(false, "")));
        assert!(passed.finish(&End::default()).unwrap());

        let mut missing = report("works-dns");
        take(&mut missing, "works-dns-udp", Ok(Finding::new(true, "")));
        assert!(!missing.finish(&End::default()).unwrap());

        for found in [Ok(Finding::new(false, "")), Err(anyhow::anyhow!("no pod"))] {
            let mut failed = report("install");
            take(&mut failed, "install", found);
            assert!(!failed.finish(&End::default()).unwrap());
        }
    }

    #[test]
    fn what_is_left_or_skipped_throughout_is_not_well() {
        let mut left = report("install");
        take(&mut left, "install", Ok(Finding::new(true, "")));
        let end = End {
            left: vec!["Namespace x".into()],
            ..End::default()
        };
        assert!(!left.finish(&end).unwrap());
        let mut skipped = report("install");
        take(&mut skipped, "install", Ok(Finding::skip("no")));
        assert!(!skipped.finish(&End::default()).unwrap());
    }

    #[test]
    fn a_failure_says_what_was_expected() {
        let row = Row {
            case: "bypass-udp",
            verdict: Verdict::Failed,
            expected: cases::find("bypass-udp").expected,
            seen: "3 arrived".into(),
            reason: "not-held".into(),
            seconds: 0.5,
        };
        let line = line(&row);
        assert!(line.contains("3 arrived [not-held]"), "{line}");
        assert!(line.contains("expected: nothing arrives"), "{line}");
    }

    #[tokio::test]
    async fn a_case_that_is_not_chosen_is_not_tried() {
        let mut report = report("install");
        report
            .case("upgrade", async { panic!("it was tried") })
            .await;
        assert!(report.rows.is_empty());
        assert!(report.wants(&["install", "upgrade"]) && !report.wants(&["upgrade"]));
    }
}
