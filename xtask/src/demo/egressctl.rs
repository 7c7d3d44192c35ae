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
        Ok(counter(&value, reason).unwrap_or(0))
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

/// Finds the packets of a reason, wherever in the answer they are.
fn counter(value: &Value, reason: &str) -> Option<u64> {
    match value {
        Value::Array(items) => items.iter().find_map(|item| counter(item, reason)),
        Value::Object(fields) => {
            if let Some(count) = fields.get(reason) {
                return count.as_u64().or_else(|| count.get("packets")?.as_u64());
            }
            if fields.get("reason").and_then(Value::as_str) == Some(reason) {
                return fields.get("packets")?.as_u64();
            }
            fields.values().find_map(|field| counter(field, reason))
        }
        _ => None,
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
    let process = &event["process"];
    let name = process.as_str().or_else(|| process["comm"].as_str());
    name.filter(|name| !name.is_empty())
}

fn matches(event: &Value, expected: Expected<'_>) -> bool {
    let mut texts = Vec::new();
    leaves(event, &mut texts);
    let has = |text: &str| texts.iter().any(|leaf| leaf == text);
    let name = expected
        .pod
        .split_once('/')
        .map_or(expected.pod, |(_, name)| name);
    let Expected {
        destination,
        port,
        reason,
        ..
    } = expected;
    let whole = [
        format!("{destination}:{port}"),
        format!("[{destination}]:{port}"),
    ];
    let to = (has(destination) && has(&port.to_string())) || whole.iter().any(|text| has(text));
    (has(expected.pod) || has(name)) && to && has(reason)
}

fn leaves(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| leaves(item, into)),
        Value::Object(fields) => fields.values().for_each(|field| leaves(field, into)),
        Value::String(text) => into.push(text.clone()),
        Value::Null => {}
        other => into.push(other.to_string()),
    }
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
            "destination": "203.0.113.10:80",
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
    }

    #[test]
    fn counters_are_found() {
        let pod = json!({ "items": [{ "counters": [{ "reason": "not-allowed", "packets": 7 }] }] });
        assert_eq!(counter(&pod, "not-allowed"), Some(7));
        assert_eq!(counter(&pod, "spoofed"), None);
        let pod = json!({ "counters": { "spoofed": { "packets": 2, "bytes": 90 } } });
        assert_eq!(counter(&pod, "spoofed"), Some(2));
    }
}
