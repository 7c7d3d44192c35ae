//! Takes the node down when its maker is gone, however it went: Ctrl-C, panic, `kill -9`.
//!
//! The maker holds one end of a pipe; its end is what the reaper waits for.

use std::io::{self, PipeWriter, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use super::teardown;

const DISMISS: u8 = b'd';

/// The helper process that waits for the end of this one.
#[derive(Debug)]
pub(super) struct Reaper {
    child: Child,
    pipe: PipeWriter,
}

impl Reaper {
    pub(super) fn start(helper: &Path, id: &str) -> Result<Self> {
        let (reader, pipe) = io::pipe().context("cannot make a pipe")?;
        let mut command = Command::new(helper);
        command
            .args(["node", "reap", id])
            .stdin(reader)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C goes to the terminal's foreground group, and this one must survive it.
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {} to clean up after us", helper.display()))?;
        Ok(Self { child, pipe })
    }

    /// Sends it away: the node is down, or it shall stand on.
    pub(super) fn dismiss(&mut self) -> Result<()> {
        self.pipe
            .write_all(&[DISMISS])
            .context("cannot dismiss the reaper")?;
        self.child.wait().context("waiting for the reaper")?;
        Ok(())
    }
}

/// The reaper's own work; returns when its maker is gone or sends it away.
pub(super) fn wait(id: &str) -> Result<()> {
    let mut order = [0];
    // Nothing to read is the end of the pipe: the maker is gone without a word.
    match io::stdin()
        .read(&mut order)
        .context("cannot read from the maker")?
    {
        0 => teardown::teardown(id),
        _ => Ok(()),
    }
}
