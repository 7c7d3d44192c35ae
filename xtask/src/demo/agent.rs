//! The agent as a process of the node, and what `egressctl` says.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::programs::Sallyport;
use super::signals;
use super::world::World;
use crate::node::pki::TRUST_DOMAIN;
use crate::node::{Node, plan};

/// How long the agent may take to be in step with a changed state.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the agent's `ready` file holds while it is in step.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ready {
    /// Names the state that the kernel holds.
    pub revision: String,
    /// Map writes since it was started.
    pub writes: u64,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: PathBuf,
    ready: PathBuf,
}

impl Agent {
    /// Starts it in the node's namespace and waits until it is in step.
    pub fn start(programs: &Sallyport, world: &World) -> Result<(Self, Ready)> {
        let node = &world.node;
        let log = node.directory().join("log/agent.log");
        let ready = run_dir(node).join("ready");
        // A killed agent could not remove it.
        if ready.exists() {
            fs::remove_file(&ready)
                .context("cannot remove the ready file of an agent that is gone")?;
        }
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let child = node
            .host_command(&programs.agent)?
            .args([
                "--node-name",
                plan::NODE_NAME,
                "--trust-domain",
                TRUST_DOMAIN,
            ])
            .args([
                "--metrics-address",
                "127.0.0.1:9471",
                "--log-format",
                "json",
            ])
            .arg("--state-dir")
            .arg(world.state.path())
            .arg("--bpffs")
            .arg(node.bpffs())
            .arg("--cgroup-root")
            .arg(node.cgroup_root())
            .arg("--kubepods")
            .arg(node.kubepods())
            .arg("--run-dir")
            .arg(run_dir(node))
            .arg("--gateway-config-dir")
            .arg(world.gateway_configuration())
            .arg("--gateway-cert-dir")
            .arg(world.gateway_certificates())
            .arg("--gateway-upstream-ca")
            .arg(world.upstream_authority())
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share the log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", programs.agent.display()))?;
        let mut agent = Self { child, log, ready };
        let ready = agent.wait_for(None)?;
        Ok((agent, ready))
    }

    /// Waits until it is in step with a state of another revision than this.
    pub fn wait_for(&mut self, old: Option<&Ready>) -> Result<Ready> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            signals::check()?;
            if let Some(status) = self
                .child
                .try_wait()
                .context("cannot look after the agent")?
            {
                bail!(
                    "the agent ended ({status}); its last words:\n{}",
                    tail(&self.log)
                );
            }
            // Absent, or written just now: looked at again.
            let ready = fs::read(&self.ready).ok();
            let ready = ready.and_then(|text| serde_json::from_slice::<Ready>(&text).ok());
            if let Some(ready) = ready
                && old.is_none_or(|old| old.revision != ready.revision)
            {
                return Ok(ready);
            }
            if Instant::now() > deadline {
                bail!(
                    "the agent is not in step after {} s; its last words:\n{}",
                    PATIENCE.as_secs(),
                    tail(&self.log)
                );
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// `kill -9`.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("cannot kill the agent")?;
        self.child
            .wait()
            .context("cannot wait for the agent")
            .map(drop)
    }
}

/// The agent's `--run-dir`.
pub fn run_dir(node: &Node) -> PathBuf {
    node.directory().join("run")
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// `egressctl` on this node.
#[derive(Clone, Debug)]
pub struct Egressctl {
    program: PathBuf,
    bpffs: PathBuf,
    run_dir: PathBuf,
}

impl Egressctl {
    pub fn new(programs: &Sallyport, node: &Node) -> Self {
        Self {
            program: programs.egressctl.clone(),
            bpffs: node.bpffs(),
            run_dir: run_dir(node),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--bpffs")
            .arg(&self.bpffs)
            .arg("--run-dir")
            .arg(&self.run_dir)
            .args(["-o", "json"])
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Runs it: how it ended, and the JSON that it printed.
    pub fn run(&self, args: &[&str]) -> Result<(ExitStatus, Value)> {
        let output = self
            .command(args)
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
            .command(&["events", "-f"])
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
