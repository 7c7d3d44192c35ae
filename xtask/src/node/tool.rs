//! Runs the system's own tools, and says what to install where one is missing.

use std::io::{ErrorKind, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};

/// Runs `program`, feeds it `input`, and gives its output. An error holds what it said.
pub(super) fn run(program: &str, args: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                anyhow!("`{program}` is not installed; install the packages iproute2 and nftables")
            }
            _ => anyhow!("cannot start `{program}`: {error}"),
        })?;
    let mut stdin = child.stdin.take().context("stdin was piped")?;
    // A tool that stops early closes its end; what it says then is the better error.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child
        .wait_with_output()
        .with_context(|| format!("waiting for `{program}`"))?;
    if !output.status.success() {
        bail!(
            "`{program} {}` failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
