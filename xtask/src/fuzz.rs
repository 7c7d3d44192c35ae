//! The `fuzz` verb: the targets of `fuzz/`, built for libFuzzer and run for a while each.
//!
//! The flags are those of cargo-fuzz, which takes the same folder where it is installed. Without a
//! sanitizer they need no nightly: what is looked for is a panic or a broken invariant, with debug
//! assertions and overflow checks on; `unsafe` is where ARCHITECTURE.md lists it.

use std::{
    fmt,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    cmd::{Cmd, find_program, say},
    tools::system::{self, Wanted},
    workspace::Workspace,
};

/// As `fuzz/fuzz_targets` has them.
pub const TARGETS: [&str; 6] = ["check", "frames", "objects", "peers", "tables", "watch"];

const PROFILE: &str = "fuzz";
/// Coverage by edge, and what is compared: what libFuzzer is steered by. Branches are left apart, so
/// that each shows.
const COVERAGE: [&str; 8] = [
    "--cfg",
    "fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
];
/// An input that takes longer is a finding. Seconds.
const SLOWEST: u32 = 10;
/// So is one that takes more memory. MiB.
const LARGEST: u32 = 2048;
/// The longest input that is made. Bytes.
const LONGEST: u32 = 8192;
/// How much of an input that broke something is shown. Bytes.
const SHOWN: usize = 512;

#[derive(Debug, clap::Args)]
#[command(after_help = "Corpora and what broke a target stay below <target directory>/fuzz-work.")]
pub struct Args {
    /// Only this target
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(TARGETS))]
    pub target: Option<String>,

    /// Run the target on these files alone, to see again what they break
    #[arg(requires = "target")]
    pub inputs: Vec<PathBuf>,

    /// How long each target runs
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: u32,

    /// libFuzzer's seed; 0 draws one
    #[arg(long, default_value_t = 0)]
    pub seed: u32,
}

/// Runs what is asked for; whether everything held.
pub fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    let fuzzers = build(workspace)?;
    if let (Some(target), false) = (&args.target, args.inputs.is_empty()) {
        let mut command = Cmd::new(fuzzers.binary(target));
        for input in &args.inputs {
            command = command.arg(input);
        }
        return Ok(command.run().is_ok());
    }
    let wanted: Vec<&str> = TARGETS
        .into_iter()
        .filter(|name| args.target.as_ref().is_none_or(|only| only == name))
        .collect();
    let results = fuzzers.run(&wanted, args.seconds, args.seed);
    let mut ok = true;
    for (name, result) in results {
        match result {
            Ok(stats) => println!("{name:<8} {stats}"),
            Err(error) => {
                ok = false;
                say("FAILED", format_args!("{error:#}"));
            }
        }
    }
    Ok(ok)
}

/// Built targets.
#[derive(Debug)]
pub struct Fuzzers {
    binaries: PathBuf,
    seeds: PathBuf,
    work: PathBuf,
}

/// What a target did without breaking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    inputs: u64,
    edges: u64,
    pub took: Duration,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            inputs,
            edges,
            took,
        } = self;
        let seconds = took.as_secs();
        write!(f, "{inputs} inputs in {seconds} s, {edges} edges covered")
    }
}

/// Builds every target. They are instrumented throughout, dependencies too, so nothing is shared with
/// other builds.
pub fn build(workspace: &Workspace) -> Result<Fuzzers> {
    if find_program("c++").is_none() {
        let compiler = Wanted {
            program: "c++",
            package: "g++",
            purpose: "libFuzzer is C++",
        };
        system::install(workspace, &[compiler])?;
    }
    let host = host()?;
    say("fuzz", "compiling the targets, instrumented");
    Cmd::new("cargo")
        .args(["build", "--package", "sallyport-fuzz", "--bins"])
        .args(["--profile", PROFILE, "--target", &host])
        .current_dir(&workspace.root)
        // The kernel programs are no part of it.
        .env_remove("SALLYPORT_EBPF_OBJECT")
        .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f"))
        .run()?;
    Ok(Fuzzers {
        binaries: workspace.target.join(host).join(PROFILE),
        seeds: workspace.root.join("fuzz/seeds"),
        work: workspace.target.join("fuzz-work"),
    })
}

/// Flags for a target named on the command line are not for build scripts, which run while the build
/// does.
fn host() -> Result<String> {
    let version = Cmd::new("rustc").arg("-vV").output()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

impl Fuzzers {
    fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// Runs these targets, as many at once as there are CPUs; results in their order.
    pub fn run<'a>(
        &self,
        names: &[&'a str],
        seconds: u32,
        seed: u32,
    ) -> Vec<(&'a str, Result<Stats>)> {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let next = Mutex::new(names.iter().enumerate());
        let done = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..cpus.min(names.len()) {
                scope.spawn(|| {
                    loop {
                        let taken = next.lock().expect("nothing panics with it").next();
                        let Some((at, name)) = taken else { break };
                        say("fuzz", format_args!("{name}, {seconds} s"));
                        let result = self.one(name, seconds, seed);
                        let mut done = done.lock().expect("nothing panics with it");
                        done.push((at, *name, result));
                    }
                });
            }
        });
        let mut done = done.into_inner().expect("nothing panics with it");
        done.sort_by_key(|(at, ..)| *at);
        done.into_iter()
            .map(|(_, name, result)| (name, result))
            .collect()
    }

    fn one(&self, name: &str, seconds: u32, seed: u32) -> Result<Stats> {
        let folder = self.work.join(name);
        let (corpus, broken) = (folder.join("corpus"), folder.join("broken"));
        for folder in [&corpus, &broken] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let known = files(&broken)?;
        let log = folder.join("log");
        let started = Instant::now();
        let seeds = self.seeds.join(name);
        let result = Cmd::new(self.binary(name))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-seed={seed}"))
            .arg(format!("-timeout={SLOWEST}"))
            .arg(format!("-rss_limit_mb={LARGEST}"))
            .arg(format!("-max_len={LONGEST}"))
            .arg(format!("-artifact_prefix={}/", broken.display()))
            .arg("-print_final_stats=1")
            // What is new goes into the first folder; the second is only read.
            .args([&corpus, &seeds])
            .run_quietly(&format!("fuzzing {name}"), &log);
        let took = started.elapsed();
        if let Err(error) = result {
            let new = files(&broken)?
                .into_iter()
                .find(|file| !known.contains(file));
            let Some(input) = new else { return Err(error) };
            return Err(error.context(broke(name, &input)));
        }
        let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let stats = stats(&String::from_utf8_lossy(&text), took);
        let stats = stats.with_context(|| format!("{} has no figures", log.display()))?;
        // One that begins to do nothing would pass for ever.
        let least = 2 * files(&seeds)?.len() as u64;
        if stats.inputs <= least || stats.edges < 100 {
            bail!(
                "{name} tried next to nothing ({stats}): see {}",
                log.display()
            );
        }
        Ok(stats)
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    Ok(files)
}

/// What to say of an input that broke a target.
fn broke(name: &str, input: &Path) -> String {
    let bytes = fs::read(input).unwrap_or_default();
    let shown = &bytes[..bytes.len().min(SHOWN)];
    let rest = bytes.len() - shown.len();
    let mut hex = String::new();
    for line in shown.chunks(32) {
        for byte in line {
            let _ = write!(hex, "{byte:02x}");
        }
        hex.push('\n');
    }
    format!(
        "{name} breaks on {}\n{hex}({rest} bytes more)\nto see it again: cargo xtask fuzz {name} {}\n\
         once it is mended: keep the file in fuzz/seeds/{name}",
        input.display(),
        input.display(),
    )
}

/// From what libFuzzer prints at its end, and its last line of progress.
fn stats(log: &str, took: Duration) -> Option<Stats> {
    let inputs = log
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    let edges = log
        .lines()
        .rev()
        .find_map(|line| line.split_once(" cov: ")?.1.split(' ').next())?;
    Some(Stats {
        inputs: inputs.trim().parse().ok()?,
        edges: edges.parse().ok()?,
        took,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_log() {
        let log = "#2\tINITED cov: 11 ft: 12 corp: 1/1b exec/s: 0 rss: 31Mb\n\
                   #9\tNEW    cov: 345 ft: 400 corp: 2/3b lim: 4 exec/s: 0 rss: 31Mb\n\
                   #99\tDONE   cov: 346 ft: 400 corp: 2/3b lim: 4 exec/s: 0 rss: 31Mb\n\
                   Done 99 runs in 1 second(s)\n\
                   stat::number_of_executed_units: 99\n";
        let took = Duration::from_secs(1);
        let expected = Stats {
            inputs: 99,
            edges: 346,
            took,
        };
        assert_eq!(stats(log, took), Some(expected));
        assert_eq!(stats("Killed", took), None);
    }

    #[test]
    fn every_target_is_known() {
        let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
        let names: Vec<String> = files(&targets)
            .expect("the folder")
            .iter()
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect();
        assert_eq!(names, TARGETS);
    }
}
