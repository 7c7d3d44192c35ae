//! Running commands: live, quietly behind a progress line, or for their output.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How often a running command is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How often a long step reports itself where there is no terminal to redraw a line on.
const REPORT_EVERY: Duration = Duration::from_secs(15);
/// How much of a failed command's log is shown.
const LOG_TAIL_LINES: usize = 25;

/// A command that can print itself.
#[derive(Debug)]
pub struct Cmd {
    command: Command,
    timeout: Option<Duration>,
}

impl Cmd {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(program),
            timeout: None,
        }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    #[must_use]
    pub fn envs<K: AsRef<OsStr>, V: AsRef<OsStr>>(
        mut self,
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.command.envs(vars);
        self
    }

    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(key);
        self
    }

    #[must_use]
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Kills the command when it takes longer; only [`Cmd::run_quietly`] looks at it.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Runs with the user's own terminal; an unsuccessful exit is an error.
    pub fn run(mut self) -> Result<()> {
        let status = self.command.status().with_context(|| self.cannot_start())?;
        self.check(status)
    }

    /// Runs for its standard output; what it says on standard error is part of the error only.
    pub fn output(mut self) -> Result<String> {
        let output = self
            .command
            .stdin(Stdio::null())
            .output()
            .with_context(|| self.cannot_start())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`{self}` failed ({}): {}", output.status, said.trim());
        }
        String::from_utf8(output.stdout).with_context(|| format!("`{self}` printed no UTF-8"))
    }

    /// Hands each line of standard output to `line` as it comes; standard error goes to the user.
    /// Returns whether the command succeeded.
    pub fn run_lines(mut self, mut line: impl FnMut(&str)) -> Result<bool> {
        use io::BufRead;
        let mut child = self
            .command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| self.cannot_start())?;
        let stdout = child.stdout.take().expect("stdout was piped above");
        let mut reader = io::BufReader::new(stdout);
        let mut buffer = Vec::new();
        while reader.read_until(b'\n', &mut buffer)? > 0 {
            line(String::from_utf8_lossy(&buffer).trim_end_matches('\n'));
            buffer.clear();
        }
        Ok(child.wait()?.success())
    }

    /// Runs behind a progress line with everything it prints in `log`, whose end is shown on failure.
    pub fn run_quietly(mut self, what: &str, log: &Path) -> Result<()> {
        if let Some(dir) = log.parent() {
            fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        }
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let errors = file.try_clone().context("sharing the log file")?;
        let child = self
            .command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .with_context(|| self.cannot_start())?;
        let status = wait_with_progress(child, what, self.timeout)?;
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!(
                "`{self}` failed ({status}); the end of {}:\n{}",
                log.display(),
                tail(log)
            ),
            None => bail!(
                "`{self}` was stopped after {} s; the end of {}:\n{}",
                self.timeout.unwrap_or_default().as_secs(),
                log.display(),
                tail(log)
            ),
        }
    }

    fn check(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        bail!("`{self}` failed ({status})")
    }

    fn cannot_start(&self) -> String {
        format!("cannot start `{self}`")
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.command.get_program().display())?;
        for arg in self.command.get_args() {
            write!(f, " {}", arg.display())?;
        }
        Ok(())
    }
}

/// `None` when the limit was reached and the command killed.
fn wait_with_progress(
    mut child: Child,
    what: &str,
    limit: Option<Duration>,
) -> Result<Option<ExitStatus>> {
    let started = Instant::now();
    let mut progress = Progress::new(what);
    loop {
        if let Some(status) = child.try_wait()? {
            progress.clear();
            return Ok(Some(status));
        }
        if limit.is_some_and(|limit| started.elapsed() > limit) {
            child.kill()?;
            child.wait()?;
            progress.clear();
            return Ok(None);
        }
        progress.tick(started.elapsed());
        thread::sleep(POLL);
    }
}

/// A line that ticks on a terminal, and an occasional line elsewhere.
#[derive(Debug)]
struct Progress<'a> {
    what: &'a str,
    terminal: bool,
    next: Duration,
}

impl<'a> Progress<'a> {
    fn new(what: &'a str) -> Self {
        let terminal = io::stderr().is_terminal();
        let next = if terminal {
            Duration::from_secs(1)
        } else {
            REPORT_EVERY
        };
        Self {
            what,
            terminal,
            next,
        }
    }

    fn tick(&mut self, elapsed: Duration) {
        if elapsed < self.next {
            return;
        }
        let mut out = io::stderr().lock();
        // A progress line that can't be written is no reason to stop the work.
        let _ = if self.terminal {
            self.next = elapsed + Duration::from_secs(1);
            write!(
                out,
                "\r\x1b[K         … {} {} s",
                self.what,
                elapsed.as_secs()
            )
        } else {
            self.next = elapsed + REPORT_EVERY;
            writeln!(out, "         … {} {} s", self.what, elapsed.as_secs())
        };
        let _ = out.flush();
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

fn tail(log: &Path) -> String {
    // What was logged need not be UTF-8, and a log that can't be read must not hide the failure.
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

/// One line on standard error: which step, and what it does or found.
pub fn say(step: &str, text: impl fmt::Display) {
    eprintln!("{step:>12}  {text}");
}

/// The first executable of that name on `PATH`, or in the system directories that an ordinary
/// user's `PATH` leaves out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| is_executable(candidate))
}

pub fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_returned_and_failure_names_the_command() {
        assert_eq!(
            Cmd::new("sh")
                .args(["-c", "echo hi"])
                .output()
                .expect("sh runs"),
            "hi\n"
        );
        let error = Cmd::new("sh")
            .args(["-c", "echo why >&2; exit 3"])
            .output()
            .expect_err("exit 3 is a failure")
            .to_string();
        assert!(error.contains("exit 3") && error.contains("why"), "{error}");
    }

    #[test]
    fn a_quiet_command_is_stopped_at_its_limit_and_shows_its_log() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let started = Instant::now();
        let error = Cmd::new("sh")
            .args(["-c", "echo so far; exec sleep 30"])
            .timeout(Duration::from_millis(300))
            .run_quietly("sleeping", &dir.path().join("log"))
            .expect_err("sleep outlasts the limit")
            .to_string();
        assert!(error.contains("so far"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn lines_come_one_by_one_with_the_exit() {
        let mut seen = Vec::new();
        let ok = Cmd::new("sh")
            .args(["-c", "echo a; printf b; exit 1"])
            .run_lines(|line| seen.push(line.to_owned()))
            .expect("sh runs");
        assert_eq!(seen, ["a", "b"]);
        assert!(!ok);
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-at-all").is_none());
    }
}
