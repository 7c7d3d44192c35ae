//! What `egressctl` says: counters, coverage, events.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::agent::run_dir;
use super::programs::Sallyport;
use crate::node::Node;

/// `egressctl` on this node, in the node's own network namespace.
#[derive(Clone, Debug)]
pub struct Egressctl<'a> {
    program: &'a Path,
    node: &'a Node,
}

impl<'a> Egressctl<'a> {
    pub fn new(programs: &'a Sallyport, node: &'a Node) -> Self {
        Self {
            program: &programs.egressctl,
            node,
        }
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.node.host_command(self.program)?;
        command
            .arg("--bpffs")
            .arg(self.node.bpffs())
            .arg("--run-dir")
            .arg(run_dir(self.node))
            .args(["-o", "json"])
            .args(args)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs it: how it ended, and the JSON that it printed.
    pub fn run(&self, args: &[&str]) -> Result<(ExitStatus, Value)> {
        let output = self
            .command(args)?
            .output()
            .context("cannot start egressctl")?;
        let value = serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "egressctl {} did not print JSON: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            )
        })?;
        Ok((output.status, value))
    }

    /// Packets of the pod that ended with this reason, ever.
    pub fn count(&self, pod: &str, reason: &str) -> Result<u64> {
        let (status, value) = self.run(&["pods", "get", pod])?;
        if !status.success() {
            bail!("egressctl pods get {pod}: {status}");
        }
        counter(&value, reason)
            .with_context(|| format!("egressctl pods get {pod} tells no counters: {value}"))
    }

    /// Follows events into a file.
    pub fn follow(&self, file: &Path) -> Result<Events> {
        let output =
            File::create(file).with_context(|| format!("cannot make {}", file.display()))?;
        let child = self
            .command(&["events", "-f"])?
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start egressctl")?;
        Ok(Events {
            child,
            file: file.to_owned(),
        })
    }
}

/// Packets of a reason, in what `pods get` prints: a reason that never happened is left out there.
/// `None` if there are no counters at all.
fn counter(value: &Value, reason: &str) -> Option<u64> {
    let counters = value["items"].as_array()?.first()?["counters"].as_array()?;
    match counters.iter().find(|count| count["reason"] == reason) {
        Some(count) => count["packets"].as_u64(),
        None => Some(0),
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct Events {
    child: Child,
    file: PathBuf,
}

/// What an event must say.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    pub pod: &'a str,
    pub destination: &'a str,
    pub port: u16,
    pub reason: &'a str,
}

impl Events {
    /// A point in time; what [`Events::find`] takes.
    pub fn mark(&self) -> Result<usize> {
        Ok(self.lines()?.len())
    }

    fn lines(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.file).context("cannot read events")?;
        // The last line may not be whole yet.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        Ok(whole.lines().map(str::to_owned).collect())
    }

    /// Waits up to two seconds for an event after the mark that says all this.
    pub fn find(&self, mark: usize, expected: Expected<'_>) -> Result<Option<Value>> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            for line in self.lines()?.iter().skip(mark) {
                let event: Value = serde_json::from_str(line)
                    .with_context(|| format!("an event that is not JSON: {line}"))?;
                if matches(&event, expected) {
                    return Ok(Some(event));
                }
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It may have ended with the agent.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Name of the process that an event tells of.
pub fn process_of(event: &Value) -> Option<&str> {
    event["process"]["comm"]
        .as_str()
        .filter(|name| !name.is_empty())
}

fn matches(event: &Value, expected: Expected<'_>) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pod = &event["pod"];
    let destination = &event["destination"];
    format!("{}/{}", text(&pod["namespace"]), text(&pod["name"])) == expected.pod
        && destination["address"] == expected.destination
        && destination["port"] == expected.port
        && event["reason"] == expected.reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const EXPECTED: Expected<'static> = Expected {
        pod: "bookinfo/reviews-v1",
        destination: "203.0.113.10",
        port: 80,
        reason: "not-allowed",
    };

    #[test]
    fn an_event_must_say_it_all() {
        let event = json!({
            "pod": { "namespace": "bookinfo", "name": "reviews-v1" },
            "destination": { "address": "203.0.113.10", "port": 80 },
            "process": { "comm": "xtask", "pid": 7, "uid": 1337 },
            "reason": "not-allowed",
        });
        assert!(matches(&event, EXPECTED));
        assert!(!matches(
            &event,
            Expected {
                port: 443,
                ..EXPECTED
            }
        ));
        assert!(!matches(
            &event,
            Expected {
                reason: "spoofed",
                ..EXPECTED
            }
        ));
        assert!(!matches(
            &event,
            Expected {
                pod: "bookinfo/ratings-v1",
                ..EXPECTED
            }
        ));
        assert_eq!(process_of(&event), Some("xtask"));
        assert_eq!(process_of(&json!({ "reason": "not-allowed" })), None);
    }

    #[test]
    fn counters_are_found() {
        let pod = json!({ "items": [{ "counters": [{ "reason": "not-allowed", "packets": 7 }] }] });
        assert_eq!(counter(&pod, "not-allowed"), Some(7));
        assert_eq!(counter(&pod, "spoofed"), Some(0));
        assert_eq!(counter(&json!({ "items": [] }), "spoofed"), None);
    }
}
