//! The `test` verb: set-up, builds, lints, every test, the demo and the battery, summed up in one line.
//!
//! A test that needs root has `needs_root` in its path (its own name or its module's). Such tests
//! fail without root, unless `--no-root` switches them off; then they are named and counted.

use std::{
    fmt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{
    binaries::{self, Built},
    checks,
    cmd::{Cmd, say},
    fuzz,
    tools::{self, Runtime, preflight},
    workspace::Workspace,
};

/// Seed of the property tests unless the environment names another: the same commit has the same
/// outcome. Plain `cargo test` takes a new one each time.
const SEED: (&str, &str) = ("PROPTEST_RNG_SEED", "20261123");

/// Each fuzz target runs for so long; the seed is fixed as above, though time decides how far it gets.
const FUZZ_SECONDS: u32 = 60;
const FUZZ_SEED: u32 = 20_261_123;

/// What the path of every test that needs root has in it.
const NEEDS_ROOT: &str = "needs_root";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Tests find what was built in SALLYPORT_AGENT, SALLYPORT_EGRESSCTL, SALLYPORT_ENVOY, \
                        SALLYPORT_EBPF_OBJECT and SALLYPORT_OTHER_LAYOUT (absolute paths).\n\
                        Seeds are fixed: PROPTEST_RNG_SEED and SALLYPORT_SEED choose others, PROPTEST_CASES and \
                        SALLYPORT_FRAMES how many.\n\
                        The last line is `tests: N passed, N failed, N skipped`."
)]
pub struct Args {
    /// Leave out what needs root: the tests with `needs_root` in their path, the demo and the battery
    #[arg(long, env = "SALLYPORT_SKIP_ROOT_TESTS", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_root: bool,

    /// Leave out the kernels that are booted in QEMU
    #[arg(long, env = "SALLYPORT_SKIP_VM_TESTS", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_vm: bool,

    /// Run only tests whose path contains this; lints, demo, battery and kernels are left out
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
}

/// Runs the stages in order; those after a failed build make no sense, the others all run.
/// Returns whether everything passed.
pub fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    if !args.no_root {
        preflight::check("test").map_err(|error| {
            anyhow!("{error:#}\nOr leave out what needs that: cargo xtask test --no-root")
        })?;
    }
    let mut report = Report::default();
    let ready = report.stage("set-up and build", || {
        let runtime = tools::runtime(workspace)?;
        let built = binaries::build(workspace, false)?;
        // Of a part those build it that need it.
        let other_layout = match (&args.filter, args.no_root) {
            (None, false) => Some(binaries::build_other_layout(workspace)?),
            _ => None,
        };
        Ok((built, other_layout, runtime))
    });
    if let Some((built, other_layout, runtime)) = ready {
        if args.filter.is_none() {
            for (name, step) in checks::STEPS {
                report.stage(name, || step(workspace));
            }
        }
        let started = Instant::now();
        let other_layout = other_layout.as_deref();
        let (counts, ok) = match cargo_test(workspace, args, &built, other_layout, &runtime) {
            Ok(result) => result,
            Err(error) => {
                say("FAILED", format_args!("{error:#}"));
                (Counts::default(), false)
            }
        };
        report.add("cargo test", started.elapsed(), counts, ok);
        if args.filter.is_none() {
            fuzz(workspace, &mut report);
            demo(workspace, args, &mut report);
            battery(workspace, args, &mut report);
            kernels(workspace, args, &mut report);
        }
    }
    print!("{report}");
    Ok(report.ok())
}

/// `cargo test` over the workspace; its harnesses' counts, and whether it succeeded.
fn cargo_test(
    workspace: &Workspace,
    args: &Args,
    built: &Built,
    other_layout: Option<&Path>,
    runtime: &Runtime,
) -> Result<(Counts, bool)> {
    let mut counts = Counts::default();
    let (variable, default) = SEED;
    let seed = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    let other_layout = other_layout.map(|path| ("SALLYPORT_OTHER_LAYOUT", path));
    let command = || {
        let cargo = Cmd::new("cargo");
        let cargo = match other_layout {
            Some((variable, path)) => cargo.env(variable, path),
            None => cargo,
        };
        cargo
            .env(variable, &seed)
            .args(["test", "--workspace", "--no-fail-fast", "--"])
            .args(&args.filter)
            .current_dir(&workspace.root)
            .env("SALLYPORT_AGENT", &built.agent)
            .env("SALLYPORT_EGRESSCTL", &built.egressctl)
            .env("SALLYPORT_EBPF_OBJECT", &built.ebpf_object)
            .env("SALLYPORT_ENVOY", &runtime.envoy)
    };
    let mut tests = command();
    if args.no_root {
        let mut skipped = Vec::new();
        let listed = command().arg("--list").run_lines(|line| {
            skipped.extend(
                listed_test(line)
                    .filter(|name| name.contains(NEEDS_ROOT))
                    .map(str::to_owned),
            );
        })?;
        if !listed {
            bail!("the tests do not build");
        }
        for name in &skipped {
            println!("skipped without root: {name}");
        }
        counts.skipped += skipped.len();
        tests = tests.args(["--skip", NEEDS_ROOT]);
    }
    let ok = tests.run_lines(|line| {
        println!("{line}");
        if let Some(harness) = Counts::parse(line) {
            counts += harness;
        }
    })?;
    Ok((counts, ok))
}

/// The name in a line of `--list`.
fn listed_test(line: &str) -> Option<&str> {
    line.strip_suffix(": test")
}

/// Each fuzz target for a minute, from its seeds; each counts as a test.
fn fuzz(workspace: &Workspace, report: &mut Report) {
    let built = report.stage("fuzz targets", || fuzz::build(workspace));
    let Some(fuzzers) = built else { return };
    for (name, result) in fuzzers.run(&fuzz::TARGETS, FUZZ_SECONDS, FUZZ_SEED) {
        let stage = format!("fuzz {name}");
        let mut counts = Counts::default();
        let took = match &result {
            Ok(stats) => {
                println!("{stage}: {stats}");
                counts.passed = 1;
                stats.took
            }
            Err(error) => {
                say("FAILED", format_args!("{error:#}"));
                Duration::ZERO
            }
        };
        report.add(stage, took, counts, result.is_ok());
    }
}

/// The demo as a user starts it, with each kind of gateway, and as a machine reads it; each counts as
/// a test.
fn demo(workspace: &Workspace, args: &Args, report: &mut Report) {
    if args.no_root {
        println!("skipped without root: the demo, for people, as JSON, and with --gateway xds");
        report.counts.skipped += 3;
        return;
    }
    // Through cargo: the tests may have replaced the file that this process was started from.
    let command = || {
        Cmd::new("cargo")
            .args(["xtask", "demo"])
            .current_dir(&workspace.root)
    };
    report.test("demo", || command().run());
    report.test("demo --gateway xds", || {
        command().args(["--gateway", "xds"]).run()
    });
    report.test("demo --json", || {
        let printed = command().arg("--json").output()?;
        serde_json::from_str::<serde_json::Value>(&printed).context("it printed no JSON")?;
        Ok(())
    });
}

/// Every numbered way around, and what must go on working.
fn battery(workspace: &Workspace, args: &Args, report: &mut Report) {
    if args.no_root {
        println!("skipped without root: the battery");
        report.counts.skipped += 1;
        return;
    }
    report.test("battery", || {
        let cargo = Cmd::new("cargo").args(["xtask", "battery"]);
        cargo.current_dir(&workspace.root).run()
    });
}

/// Kernels that are booted besides this machine's: two that are refused, one that is not.
const KERNELS: [&str; 3] = ["5.10", "6.1", "6.12"];

/// The kernels, together a test: what they run is built once.
fn kernels(workspace: &Workspace, args: &Args, report: &mut Report) {
    if args.no_root || args.no_vm {
        println!("skipped, as was asked for: kernels {}", KERNELS.join(", "));
        report.counts.skipped += 1;
        return;
    }
    let arguments = KERNELS.iter().flat_map(|name| ["--kernel", name]);
    report.test("kernels in QEMU", || {
        Cmd::new("cargo")
            .args(["xtask", "vm"])
            .args(arguments)
            .current_dir(&workspace.root)
            .run()
            .context("leave it out with --no-vm where QEMU or Debian's kernels can't be had")
    });
}

/// What test harnesses count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`. What a filter leaves out was not
    /// asked for and is no skip.
    fn parse(line: &str) -> Option<Self> {
        let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut counts = Self::default();
        for part in numbers.split(';') {
            let (number, what) = part.trim().split_once(' ')?;
            let count = match what {
                "passed" => &mut counts.passed,
                "failed" => &mut counts.failed,
                "ignored" => &mut counts.skipped,
                _ => continue,
            };
            *count = number.parse().ok()?;
        }
        Some(counts)
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// One line of the summary.
#[derive(Debug)]
struct Stage {
    name: String,
    took: Duration,
    ok: bool,
}

#[derive(Debug, Default)]
struct Report {
    stages: Vec<Stage>,
    counts: Counts,
}

impl Report {
    /// A step that has no tests in it: counted only when it fails.
    fn stage<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        let started = Instant::now();
        let result = work();
        if let Err(error) = &result {
            say("FAILED", format_args!("{name}: {error:#}"));
        }
        self.add(name, started.elapsed(), Counts::default(), result.is_ok());
        result.ok()
    }

    /// A step that is one test.
    fn test(&mut self, name: &str, work: impl FnOnce() -> Result<()>) {
        if self.stage(name, work).is_some() {
            self.counts.passed += 1;
        }
    }

    fn add(&mut self, name: impl Into<String>, took: Duration, mut counts: Counts, ok: bool) {
        // What failed without a count of its own (a build, a lint) must show in the last line.
        if !ok && counts.failed == 0 {
            counts.failed = 1;
        }
        self.counts += counts;
        self.stages.push(Stage {
            name: name.into(),
            took,
            ok: ok && counts.failed == 0,
        });
    }

    fn ok(&self) -> bool {
        self.counts.failed == 0 && self.stages.iter().all(|stage| stage.ok)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        for Stage { name, took, ok } in &self.stages {
            let result = if *ok { "ok" } else { "FAILED" };
            writeln!(f, "{name:<18} {result:<7} {:>7.1} s", took.as_secs_f64())?;
        }
        let Counts {
            passed,
            failed,
            skipped,
        } = self.counts;
        writeln!(
            f,
            "tests: {passed} passed, {failed} failed, {skipped} skipped"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harness_lines_add_up() {
        let mut sum = Counts::default();
        for line in [
            "running 3 tests",
            "test a ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s",
            "test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.2s",
        ] {
            if let Some(counts) = Counts::parse(line) {
                sum += counts;
            }
        }
        assert_eq!(
            sum,
            Counts {
                passed: 13,
                failed: 2,
                skipped: 1
            }
        );
        assert_eq!(
            Counts::parse("test result: ok. many passed; 0 failed"),
            None
        );
    }

    #[test]
    fn the_last_line_is_for_machines() {
        let mut report = Report::default();
        let counts = Counts {
            passed: 4,
            failed: 0,
            skipped: 1,
        };
        report.add("cargo test", Duration::from_millis(1500), counts, true);
        report.test("demo", || Ok(()));
        assert!(report.ok());
        let text = report.to_string();
        assert_eq!(
            text.lines().last(),
            Some("tests: 5 passed, 0 failed, 1 skipped")
        );
        assert!(text.contains("1.5 s"), "{text}");
    }

    #[test]
    fn a_failure_without_a_count_is_counted() {
        let mut report = Report::default();
        assert!(
            report
                .stage("lint", || -> Result<()> { bail!("no") })
                .is_none()
        );
        assert!(!report.ok());
        // A harness that died reports no counts but an unsuccessful exit.
        report.add("cargo test", Duration::ZERO, Counts::default(), false);
        assert_eq!(report.counts.failed, 2);
    }

    #[test]
    fn listed_tests_are_read() {
        assert_eq!(
            listed_test("verdict::needs_root::drops: test"),
            Some("verdict::needs_root::drops")
        );
        assert_eq!(listed_test("3 tests, 0 benchmarks"), None);
    }
}
