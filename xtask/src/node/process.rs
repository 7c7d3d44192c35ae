//! Programs in containers, about to run and running.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};

use super::Placement;

/// A program that is to run in a container.
#[derive(Debug)]
pub struct PodCommand {
    pub(super) command: Command,
    pub(super) place: Placement,
    /// Directory for its log.
    pub(super) log: PathBuf,
}

impl PodCommand {
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// As this user instead of root.
    #[must_use]
    pub fn uid(mut self, uid: impl Into<Option<u32>>) -> Self {
        self.place.uid = uid.into();
        self
    }

    /// Starts it; what it prints goes to `<name>.log` of the pod's files.
    pub fn spawn(mut self, name: &str) -> Result<Process> {
        let path = self.log.join(format!("{name}.log"));
        let log =
            fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        self.place.apply(&mut self.command)?;
        let child = self
            .command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share a log file")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name} in a pod"))?;
        Ok(Process { child, log: path })
    }

    /// Runs it to its end and gives what it printed. An error holds what it said.
    pub fn output(mut self) -> Result<Vec<u8>> {
        self.place.apply(&mut self.command)?;
        let output = self
            .command
            .stdin(Stdio::null())
            .output()
            .with_context(|| {
                format!(
                    "cannot start {} in a pod",
                    self.command.get_program().display()
                )
            })?;
        if !output.status.success() {
            bail!(
                "{} in a pod failed ({}): {}",
                self.command.get_program().display(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(output.stdout)
    }
}

/// A process that was started in a pod. It outlives this handle, but not its pod.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where it prints to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("cannot look after a process")
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot end a process")?;
        self.child
            .wait()
            .context("cannot wait for a process")
            .map(drop)
    }
}
