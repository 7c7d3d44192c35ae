//! What is run inside a machine: the tests that need a kernel, with fewer cases than here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::guest;
use super::initramfs::Initramfs;
use super::kernels::Support;
use super::plan::Task;
use crate::binaries::{self, Built};
use crate::cmd::{Cmd, find_program, say};
use crate::ebpf;
use crate::tools::system;
use crate::workspace::Workspace;

/// Frames that are decided by the kernel and natively; an emulated machine is slow.
const FRAMES: &str = "2000";

/// Bound of one test program: on a busy host an emulated machine was seen to take 121 s.
const LIMIT_S: u64 = 300;

/// What a test waits for in an emulated machine, in seconds.
const PATIENCE_S: &str = "60";

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

/// Test programs.
const TESTS: [&str; 5] = ["kernel_verdicts", "datapath", "clsact", "reasons", "clock"];

/// What a machine gets along, by absolute path.
#[derive(Debug)]
pub struct Programs {
    built: Built,
    /// By name.
    tests: BTreeMap<String, PathBuf>,
    /// Of the distribution.
    system: Vec<PathBuf>,
    /// This program: by its place, since building may have replaced the file that runs.
    xtask: PathBuf,
}

impl Programs {
    pub fn build(workspace: &Workspace) -> Result<Self> {
        system::ensure(workspace)?;
        let built = binaries::build(workspace, false)?;
        say("vm", "compiling the tests");
        // Of the whole workspace, as the other tests: else cargo would compile for them anew.
        let mut command = Cmd::new("cargo").args(["test", "--workspace", "--no-run"]);
        for test in TESTS {
            command = command.args(["--test", test]);
        }
        command = command.arg("--message-format=json");
        let mut tests = BTreeMap::new();
        let compiled = command.current_dir(&workspace.root).run_lines(|line| {
            if let Some((name, path)) = artifact(line) {
                tests.insert(name, path);
            }
        })?;
        anyhow::ensure!(compiled, "the tests do not build");
        let system = ["ip", "tc", "nft", "mount", "umount", "nsenter", "sh"]
            .map(|name| find_program(name).with_context(|| format!("`{name}` is not on PATH")));
        Ok(Self {
            built,
            tests,
            system: system.into_iter().collect::<Result<_>>()?,
            xtask: workspace.binary("xtask", false),
        })
    }

    /// Puts them into a machine, each where it is here.
    pub fn put(&self, root: &mut Initramfs) -> Result<()> {
        root.program(&self.xtask, Path::new("/init"))?;
        root.program(&self.xtask, &self.xtask)?;
        let built = [&self.built.agent, &self.built.egressctl];
        for program in built.into_iter().chain(self.tests.values()) {
            root.program(program, program)?;
        }
        for program in &self.system {
            let name = program.file_name().context("a program has a name")?;
            root.program(program, &Path::new("/usr/bin").join(name))?;
        }
        let sh = self.system.last().context("a shell")?;
        root.program(sh, Path::new("/bin/sh"))?;
        let object = &self.built.ebpf_object;
        for object in [object, &ebpf::in_parts(object)] {
            root.file(object, std::fs::read(object)?);
        }
        Ok(())
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
            ],
            Support::Tcx => vec![
                self.test("programs", "kernel_verdicts", &["accepts_every_program"]),
                self.test("frames", "kernel_verdicts", &["kernel_and_native"]),
                self.test("hooks", "datapath", &HOOKS),
                // Each loads the programs several times.
                self.test("hooks", "datapath", &BY_TCX[..1]),
                self.test("hooks", "datapath", &BY_TCX[1..]),
                self.test("packets", "reasons", &["needs_root"]),
                self.test("clock", "clock", &["needs_root"]),
            ],
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
            limit_s: LIMIT_S,
        }
    }

    fn test(&self, name: &str, test: &str, filters: &[&str]) -> Task {
        let env = [
            ("SALLYPORT_AGENT", self.built.agent.display().to_string()),
            (
                "SALLYPORT_EGRESSCTL",
                self.built.egressctl.display().to_string(),
            ),
            (
                "SALLYPORT_EBPF_OBJECT",
                self.built.ebpf_object.display().to_string(),
            ),
            ("SALLYPORT_FRAMES", FRAMES.to_owned()),
            ("SALLYPORT_PATIENCE", PATIENCE_S.to_owned()),
            // Nobody else has this machine's clock.
            ("SALLYPORT_CLOCK", "ours".to_owned()),
            ("PATH", guest::SEARCH.to_owned()),
            ("HOME", "/root".to_owned()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value));
        let args = [filters, &["--nocapture", "--test-threads", "1"]].concat();
        Task {
            name: name.to_owned(),
            program: self.tests.get(test).map_or_else(
                || format!("{test} was not built"),
                |path| path.display().to_string(),
            ),
            args: args.into_iter().map(str::to_owned).collect(),
            env: env.into(),
            limit_s: LIMIT_S,
        }
    }
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
