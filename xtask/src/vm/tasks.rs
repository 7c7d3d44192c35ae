//! What is run inside a machine: the tests that need a kernel, with fewer cases than here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::debian_root::DebianRoot;
use super::guest;
use super::initramfs::Initramfs;
use super::kernels::Support;
use super::plan::Task;
use crate::binaries::{self, Built};
use crate::cmd::{Cmd, find_program, say};
use crate::ebpf;
use crate::image::{self, Arch};
use crate::tools::system;
use crate::workspace::Workspace;

/// Frames that are decided by the kernel and natively; an emulated machine is slow.
const FRAMES: &str = "2000";

/// Bounds of one test program, and of what a test waits for, in seconds: on a busy host an emulated
/// machine was seen to take 148 s.
const LIMIT_S: u64 = 300;
const PATIENCE_S: u64 = 60;
/// The same where another architecture is emulated: an agent that starts under traffic was seen to need
/// more than a minute, and a test program 423 s.
const FOREIGN_LIMIT_S: u64 = 600;
const FOREIGN_PATIENCE_S: u64 = 180;

/// Tests of hooks by whatever the kernel has.
const HOOKS: [&str; 2] = ["follows_the_desired_state", "can_not_be_hooked"];
/// Those by tcx.
const BY_TCX: [&str; 2] = ["gets_our_program_without_a_new_link", "keep_their_place"];
/// Those by clsact that need no tcx beside it.
const BY_CLSACT: [&str; 6] = [
    "filters_are_found_again",
    "a_deleted_filter_or_qdisc",
    "the_end_leaves",
    "a_filter_of_another_version",
    "nothing_can_come_before",
    "packets_pass_ours_and_then",
];

/// Numbers and groups of the battery: sockets of protocols that are modules, devices, and who sends.
const BATTERY: [&str; 7] = [
    "who", "B-024", "B-025", "B-026", "B-060", "B-061", "devices",
];

/// Test programs.
const TESTS: [&str; 5] = ["kernel_verdicts", "datapath", "clsact", "reasons", "clock"];

/// The distribution's programs.
const SYSTEM: [&str; 6] = ["ip", "tc", "nft", "mount", "umount", "nsenter"];

/// What a machine gets along, by absolute path.
#[derive(Debug)]
pub struct Programs {
    built: Built,
    /// By name.
    tests: BTreeMap<String, PathBuf>,
    /// This program: by its place, since building may have replaced the file that runs.
    xtask: PathBuf,
    /// Where the distribution's are, if not on this machine.
    system: Option<DebianRoot>,
}

impl Programs {
    pub fn build(workspace: &Workspace, arch: Arch) -> Result<Self> {
        if !arch.is_here() {
            return Self::build_for(workspace, arch);
        }
        system::ensure(workspace)?;
        let built = binaries::build(workspace, false)?;
        say("vm", "compiling the tests");
        // Of the whole workspace, as the other tests: else cargo would compile for them anew.
        let cargo = Cmd::new("cargo").args(["test", "--workspace"]);
        Ok(Self {
            built,
            tests: compile(cargo.current_dir(&workspace.root))?,
            xtask: workspace.binary("xtask", false),
            system: None,
        })
    }

    /// For another architecture than this machine's, linked statically.
    fn build_for(workspace: &Workspace, arch: Arch) -> Result<Self> {
        let system = DebianRoot::ensure(workspace, arch)?;
        let ebpf_object = ebpf::build(workspace)?;
        let (cargo, directory) = image::cargo(workspace, arch, "test")?;
        say("vm", format_args!("compiling the tests for {arch}"));
        let directory = directory.join("debug");
        let cargo = cargo
            // Their programs are built along.
            .args(["--package", "egress-agent", "--package", "xtask"])
            // What they depend on would be slow in an emulated machine.
            .args(["--config", "profile.dev.package.'*'.opt-level=1"])
            .env("CARGO_PROFILE_DEV_STRIP", "symbols")
            .env("SALLYPORT_EBPF_OBJECT", &ebpf_object);
        Ok(Self {
            tests: compile(cargo)?,
            built: Built {
                agent: directory.join("egress-agent"),
                egressctl: directory.join("egressctl"),
                ebpf_object,
            },
            xtask: directory.join("xtask"),
            system: Some(system),
        })
    }

    /// Puts them into a machine, each where it is here.
    pub fn put(&self, root: &mut Initramfs) -> Result<()> {
        let put = |root: &mut Initramfs, from: &Path, to: &Path| {
            if self.system.is_none() {
                return root.program(from, to);
            }
            let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
            root.executable(to, content);
            Ok(())
        };
        put(root, &self.xtask, Path::new("/init"))?;
        put(root, &self.xtask, &self.xtask)?;
        let built = [&self.built.agent, &self.built.egressctl];
        for program in built.into_iter().chain(self.tests.values()) {
            put(root, program, program)?;
        }
        for name in SYSTEM {
            let to = Path::new("/usr/bin").join(name);
            put(root, &self.system(name)?, &to)?;
        }
        let shell = if self.system.is_some() { "dash" } else { "sh" };
        put(root, &self.system(shell)?, Path::new("/bin/sh"))?;
        if let Some(system) = &self.system {
            system.libraries(root)?;
        }
        Ok(())
    }

    fn system(&self, name: &str) -> Result<PathBuf> {
        match &self.system {
            Some(system) => system.program(name),
            None => find_program(name).with_context(|| format!("`{name}` is not on PATH")),
        }
    }

    pub fn tasks(&self, support: Support) -> Vec<Task> {
        match support {
            Support::Refused(_) => vec![self.start()],
            Support::Clsact => vec![
                self.test("programs", "kernel_verdicts", &["accepts_all_in_parts"]),
                self.test("frames", "kernel_verdicts", &["kernel_in_parts_and_native"]),
                self.test("hooks", "datapath", &HOOKS),
                self.test("hooks", "clsact", &BY_CLSACT),
                self.test("packets", "reasons", &["needs_root"]),
                self.battery(),
            ],
            Support::Tcx => vec![
                self.test("programs", "kernel_verdicts", &["accepts_every_program"]),
                self.test("frames", "kernel_verdicts", &["kernel_and_native"]),
                self.test("hooks", "datapath", &HOOKS),
                // Each loads the programs several times.
                self.test("hooks", "datapath", &BY_TCX[..1]),
                self.test("hooks", "datapath", &BY_TCX[1..]),
                self.test("packets", "reasons", &["needs_root"]),
                self.battery(),
                self.test("clock", "clock", &["needs_root"]),
            ],
        }
    }

    fn bounds(&self) -> (u64, u64) {
        match self.system {
            None => (LIMIT_S, PATIENCE_S),
            Some(_) => (FOREIGN_LIMIT_S, FOREIGN_PATIENCE_S),
        }
    }

    /// The agent, as on any node.
    fn start(&self) -> Task {
        let args =
            "--node-name vm --state-dir /tmp/state --pod-cidr 10.244.0.0/16 --nri-socket off";
        Task {
            name: "start".to_owned(),
            program: self.built.agent.display().to_string(),
            args: args.split(' ').map(str::to_owned).collect(),
            env: BTreeMap::from([("NO_COLOR".to_owned(), "1".to_owned())]),
            limit_s: self.bounds().0,
        }
    }

    /// Of the battery what this machine's own kernel may lack, and a little of the rest.
    fn battery(&self) -> Task {
        let only = BATTERY.into_iter().flat_map(|only| ["--only", only]);
        Task {
            name: "battery".to_owned(),
            program: self.xtask.display().to_string(),
            args: std::iter::once("battery")
                .chain(only)
                .map(str::to_owned)
                .collect(),
            env: self.env(),
            limit_s: self.bounds().0,
        }
    }

    fn env(&self) -> BTreeMap<String, String> {
        let env = [
            ("SALLYPORT_AGENT", self.built.agent.display().to_string()),
            (
                "SALLYPORT_EGRESSCTL",
                self.built.egressctl.display().to_string(),
            ),
            ("SALLYPORT_FRAMES", FRAMES.to_owned()),
            ("SALLYPORT_PATIENCE", self.bounds().1.to_string()),
            // Nobody else has this machine's clock.
            ("SALLYPORT_CLOCK", "ours".to_owned()),
            ("PATH", guest::SEARCH.to_owned()),
            ("HOME", "/root".to_owned()),
        ];
        env.map(|(name, value)| (name.to_owned(), value)).into()
    }

    fn test(&self, name: &str, test: &str, filters: &[&str]) -> Task {
        let args = [filters, &["--nocapture", "--test-threads", "1"]].concat();
        Task {
            name: name.to_owned(),
            program: self.tests.get(test).map_or_else(
                || format!("{test} was not built"),
                |path| path.display().to_string(),
            ),
            args: args.into_iter().map(str::to_owned).collect(),
            env: self.env(),
            limit_s: self.bounds().0,
        }
    }
}

/// Compiles the tests with a `cargo test`; tells where they are.
fn compile(mut cargo: Cmd) -> Result<BTreeMap<String, PathBuf>> {
    cargo = cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
    for test in TESTS {
        cargo = cargo.args(["--test", test]);
    }
    let mut tests = BTreeMap::new();
    let compiled = cargo.run_lines(|line| {
        if let Some((name, path)) = artifact(line) {
            tests.insert(name, path);
        }
    })?;
    anyhow::ensure!(compiled, "the tests do not build");
    Ok(tests)
}

/// Name and path of a test program in a line of cargo's.
fn artifact(line: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    if message["profile"]["test"] != true {
        return None;
    }
    let path = message["executable"].as_str()?;
    Some((message["target"]["name"].as_str()?.to_owned(), path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_are_taken() {
        let line = |test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"x"}},"profile":{{"test":{test}}},"executable":"/t/x-1"}}"#
            )
        };
        let found = artifact(&line(true)).expect("a test");
        assert_eq!(found, ("x".to_owned(), PathBuf::from("/t/x-1")));
        assert_eq!(artifact(&line(false)), None);
        assert_eq!(artifact("   Compiling x"), None);
    }
}
