//! What was seen of each kernel, for people, machines and the docs.

use std::fmt::{self, Write as _};

use anyhow::Result;
use serde::Serialize;

use super::kernels::{Series, Support};
use super::machine::Told;
use super::plan::Done;
use crate::cmd::Cmd;

/// The columns between what a kernel is and the verdict.
const COLUMNS: [&str; 6] = ["programs", "frames", "hooks", "packets", "battery", "clock"];

/// One kernel.
#[derive(Debug, Serialize)]
pub struct Row {
    pub kernel: String,
    pub release: String,
    /// How pods are held there, or that it is refused.
    pub expected: String,
    /// In the order of the columns.
    pub cells: Vec<Cell>,
    /// What went wrong, or the sentence with which it is refused.
    pub remark: String,
    /// As the support table says.
    pub ok: bool,
}

#[derive(Debug, Serialize)]
pub struct Cell {
    pub name: String,
    pub ok: bool,
    pub text: String,
    pub seconds: u64,
}

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub rows: Vec<Row>,
}

/// Holds what a machine told against what is said of its kernel.
pub fn judge(series: &Series, told: &Told) -> Row {
    let mut row = Row {
        kernel: series.name.to_owned(),
        release: told.release.clone(),
        expected: series.support.to_string(),
        cells: Vec::new(),
        remark: String::new(),
        ok: false,
    };
    match series.support {
        Support::Refused(wanted) => {
            let start = told.done.first();
            row.remark = start.and_then(sentence).unwrap_or_default();
            row.ok = start.is_some_and(|it| it.exit.is_some_and(|code| code != 0))
                && row.remark.contains(wanted);
            if !row.ok {
                row.remark = format!("not refused with \"{wanted}\", but: {}", row.remark);
            }
        }
        Support::Clsact | Support::Tcx => {
            let columns = COLUMNS.into_iter().filter(|name| {
                // What the clock says has nothing to do with how pods are held.
                series.support == Support::Tcx || *name != "clock"
            });
            row.cells = columns.map(|name| cell(name, &told.done)).collect();
            row.ok = row.cells.iter().all(|cell| cell.ok);
            if let Some(bad) = row.cells.iter().find(|cell| !cell.ok) {
                let mut tasks = told.done.iter().filter(|it| it.name == bad.name);
                let bad_task = tasks.find(|it| !went_well(it));
                let lines = bad_task.map_or(&[][..], |it| it.output.as_slice());
                row.remark = format!("{}: {}", bad.name, complaint(lines));
            }
        }
    }
    row
}

/// The last error the agent logged, without what a log line begins with. Another thread may log
/// something after it.
fn sentence(start: &Done) -> Option<String> {
    let error = |line: &str| {
        let (_, said) = line.split_once(" ERROR ")?;
        let (_, text) = said.split_once(": ")?;
        let text = text.split_once(" event=").map_or(text, |(text, _)| text);
        Some(text.trim().to_owned())
    };
    start.output.iter().rev().find_map(|line| error(line))
}

/// What a failed test says.
fn complaint(output: &[String]) -> String {
    let panic = output.iter().position(|line| line.contains("panicked at"));
    let said = panic.and_then(|at| output.get(at + 1)).or(output.last());
    let mut said = said.cloned().unwrap_or_else(|| "it was not run".to_owned());
    if said.len() > 300 {
        said = said.chars().take(300).collect();
    }
    said
}

/// All tasks of that name together.
fn cell(name: &str, done: &[Done]) -> Cell {
    let tasks: Vec<&Done> = done.iter().filter(|it| it.name == name).collect();
    let Some(first) = tasks.first() else {
        return Cell {
            name: name.to_owned(),
            ok: false,
            text: "not run".to_owned(),
            seconds: 0,
        };
    };
    let ok = tasks.iter().all(|it| went_well(it));
    let passed: usize = tasks.iter().map(|it| passed_in(it)).sum();
    let text = match (name, ok) {
        (_, false) if tasks.iter().any(|it| it.exit.is_none()) => "too slow, or killed".to_owned(),
        (_, false) => "FAILED".to_owned(),
        ("programs", true) => programs(&first.output),
        ("frames", true) => frames(&first.output),
        ("battery", true) => battery(&first.output),
        _ => format!("{passed} tests"),
    };
    Cell {
        name: name.to_owned(),
        ok,
        text,
        seconds: tasks.iter().map(|it| it.seconds).sum(),
    }
}

/// A filter that fits nothing must not pass for a success.
fn went_well(it: &Done) -> bool {
    it.exit == Some(0) && passed_in(it) > 0
}

fn passed_in(it: &Done) -> usize {
    it.output.iter().find_map(|line| passed(line)).unwrap_or(0)
}

/// Tests that passed, from a harness's last line, or rows of the battery.
fn passed(line: &str) -> Option<usize> {
    if let Some(rest) = line.strip_prefix("battery: ") {
        return rest.split_once(" as they must be")?.0.parse().ok();
    }
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    rest.split_once(" passed")?.0.parse().ok()
}

/// Rows that were as they must be, and how many of them could not be tried.
fn battery(output: &[String]) -> String {
    let rows = output.iter().find_map(|line| passed(line)).unwrap_or(0);
    let not_tried = output.iter().find_map(|line| {
        let (left, _) = line.split_once(" could not be tried")?;
        left.rsplit(' ').next()
    });
    match not_tried {
        Some("0") | None => format!("{rows} rows"),
        Some(not_tried) => format!("{rows} rows, {not_tried} not tried"),
    }
}

/// How many programs were loaded, and the most that the verifier had to walk.
fn programs(output: &[String]) -> String {
    let counts = output.iter().filter_map(|line| {
        let (left, _) = line.split_once(" instructions verified")?;
        let (name, count) = left.rsplit_once(": ")?;
        Some((count.parse::<u32>().ok()?, name.rsplit(' ').next()?))
    });
    let counts: Vec<(u32, &str)> = counts.collect();
    match counts.iter().max() {
        Some((most, name)) => format!("{} ({name}: {most})", counts.len()),
        None => "0".to_owned(),
    }
}

/// How many frames were compared.
fn frames(output: &[String]) -> String {
    let line = output.iter().find_map(|line| {
        let (left, _) = line.split_once(" frames")?;
        left.rsplit([' ', ',']).next()?.parse::<u32>().ok()
    });
    line.map_or_else(|| "alike".to_owned(), |count| format!("{count} alike"))
}

impl Report {
    pub fn ok(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.ok)
    }

    /// The support table of the docs, for one architecture.
    pub fn markdown(&self) -> Result<String> {
        let date = Cmd::new("date").args(["--utc", "+%Y-%m-%d"]).output()?;
        let mut text = format!(
            "Seen on {}.\n\n\
             | kernel | release | held by | programs (most instructions verified) | frames, kernel and native | hooks | packets | battery | clock | as expected |\n\
             |---|---|---|---|---|---|---|---|---|---|\n",
            date.trim()
        );
        for row in &self.rows {
            let cell = |name: &str| {
                let cell = row.cells.iter().find(|cell| cell.name == name);
                cell.map_or("–", |cell| cell.text.as_str())
            };
            let cells = COLUMNS.map(cell).join(" | ");
            let ok = if row.ok { "yes" } else { "**no**" };
            writeln!(
                text,
                "| {} | {} | {} | {cells} | {ok} |",
                row.kernel, row.release, row.expected
            )?;
        }
        let refused = self.rows.iter().filter(|row| row.expected == "refused");
        for (at, row) in refused.enumerate() {
            if at == 0 {
                text.push_str(
                    "\nOn a kernel that is refused the agent ends at once, changes nothing, and says why:\n\n",
                );
            }
            writeln!(text, "- {}: {}", row.kernel, row.remark)?;
        }
        Ok(text)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<8} {:<26} {:<8} {:<32} {:<12} {:<9} {:<9} {:<23} {:<9} verdict",
            "kernel",
            "release",
            "held by",
            "programs",
            "frames",
            "hooks",
            "packets",
            "battery",
            "clock"
        )?;
        for row in &self.rows {
            write!(
                f,
                "{:<8} {:<26} {:<8}",
                row.kernel, row.release, row.expected
            )?;
            for (name, width) in COLUMNS.iter().zip([32, 12, 9, 9, 23, 9]) {
                let cell = row.cells.iter().find(|cell| cell.name == *name);
                write!(
                    f,
                    " {:<width$}",
                    cell.map_or("-", |cell| cell.text.as_str())
                )?;
            }
            writeln!(
                f,
                " {}",
                if row.ok {
                    "as expected"
                } else {
                    "NOT AS EXPECTED"
                }
            )?;
            if !row.remark.is_empty() {
                writeln!(f, "         {}", row.remark)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(name: &str, exit: Option<i32>, output: &[&str]) -> Done {
        Done {
            name: name.to_owned(),
            exit,
            seconds: 1,
            output: output.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    fn told(done: Vec<Done>) -> Told {
        Told {
            release: "1".to_owned(),
            done,
        }
    }

    const PASSED: &str =
        "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out";

    #[test]
    fn a_kernel_is_good_when_every_task_passed_something() {
        let series = Series::named("6.12").expect("a series");
        let all =
            || COLUMNS.map(|name| done(name, Some(0), &["a: 7 instructions verified", PASSED]));
        assert!(judge(&series, &told(all().into())).ok);
        for bad in 0..COLUMNS.len() {
            let mut failed = all();
            failed[bad].exit = Some(101);
            assert!(!judge(&series, &told(failed.into())).ok);
            let mut late = all();
            late[bad].exit = None;
            assert!(!judge(&series, &told(late.into())).ok);
            let mut nothing = all();
            nothing[bad].output = vec!["test result: ok. 0 passed; 0 failed".to_owned()];
            assert!(!judge(&series, &told(nothing.into())).ok);
            let mut missing = all().to_vec();
            missing.remove(bad);
            assert!(!judge(&series, &told(missing)).ok);
        }
    }

    #[test]
    fn a_kernel_is_refused_in_words() {
        let series = Series::named("5.10").expect("a series");
        // The directory is read by another thread, which may log last.
        let later =
            "2026-11-30T08:18:16Z  INFO egress_agent::source::yaml_dir: event=\"source_read\"";
        let start = |exit, text: &str| {
            judge(
                &series,
                &told(vec![done("start", exit, &[later, text, later])]),
            )
        };
        let right = "2026-11-30T08:18:16Z ERROR egress_agent::agent::program: this kernel (5.10) lacks bpf_ktime_get_coarse_ns; Sallyport needs Linux 6.1 or newer event=\"failed\"";
        let row = start(Some(1), right);
        assert!(row.ok);
        assert_eq!(
            row.remark,
            "this kernel (5.10) lacks bpf_ktime_get_coarse_ns; Sallyport needs Linux 6.1 or newer"
        );
        assert!(
            !start(
                Some(1),
                "2026-11-30T08:18:16Z ERROR egress_agent: something else"
            )
            .ok
        );
        assert!(!start(Some(1), later).ok, "it said nothing");
        assert!(!start(None, right).ok, "it went on");
        assert!(!start(Some(0), right).ok);
        assert!(!judge(&series, &told(Vec::new())).ok);
    }

    #[test]
    fn numbers_are_read_from_what_tests_print() {
        let output = [
            "test a ... sp_a: 26777 instructions verified".to_owned(),
            "sp_b: 466431 instructions verified".to_owned(),
        ];
        assert_eq!(programs(&output), "2 (sp_b: 466431)");
        let output = ["test x ... seed 20261123, 2000 frames".to_owned()];
        assert_eq!(frames(&output), "2000 alike");
        let rows = |not_tried| {
            format!(
                "battery: 62 as they must be, 0 not; 40 of them came out where nothing held; {not_tried} could not be tried; 9 s"
            )
        };
        assert_eq!(passed_in(&done("battery", Some(0), &[&rows(0)])), 62);
        assert_eq!(battery(&[rows(0)]), "62 rows");
        assert_eq!(battery(&[rows(8)]), "62 rows, 8 not tried");
    }
}
