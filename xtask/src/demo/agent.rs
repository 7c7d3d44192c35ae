//! The agent as a process of the node.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::programs::Sallyport;
use super::signals;
use super::world::{POLICY_PORT, World};
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
                // That of the machine is none of this node's.
                "--nri-socket",
                "off",
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
            .args(["--policy-address", &format!("[::]:{POLICY_PORT}")])
            .arg("--policy-cert-dir")
            .arg(world.agent_certificates())
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
