//! The agent on the node, and what `egressctl` says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::world::World;
use crate::demo::programs::Sallyport;
use crate::demo::signals;
use crate::node::{Node, Pod, patience, plan};

/// What takes more of the node's side of the pod's device than it has by itself.
const IN_BULK: &str = "B-293";

/// A running agent; it ends with the node at the latest.
#[derive(Debug)]
pub(super) struct Agent {
    child: Child,
    egressctl: PathBuf,
    run_dir: PathBuf,
}

/// A row of `egressctl verify`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Verified {
    pub number: String,
    pub attempt: String,
    pub family: String,
    pub expected: Vec<String>,
    pub outcome: String,
    #[serde(default)]
    pub sent: u64,
    pub reasons: BTreeMap<String, u64>,
    #[serde(default)]
    pub fenced: u64,
    pub elsewhere: BTreeMap<String, u64>,
    #[serde(default)]
    pub why: Option<String>,
}

impl Agent {
    pub(super) fn start(programs: &Sallyport, world: &World) -> Result<Self> {
        let node = &world.node;
        let run_dir = node.directory().join("run");
        let log =
            File::create(node.directory().join("log/agent.log")).context("cannot make a log")?;
        let child = node
            .host_command(&programs.agent)?
            .args(["--node-name", plan::NODE_NAME, "--log-format", "json"])
            // That of the machine is none of this node's.
            .args(["--nri-socket", "off"])
            .arg("--state-dir")
            .arg(world.state.path())
            .arg("--bpffs")
            .arg(node.bpffs())
            .arg("--cgroup-root")
            .arg(node.cgroup_root())
            .arg("--kubepods")
            .arg(node.kubepods())
            .arg("--run-dir")
            .arg(&run_dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", programs.agent.display()))?;
        let mut agent = Self {
            child,
            egressctl: programs.egressctl.clone(),
            run_dir,
        };
        agent.wait(None)?;
        Ok(agent)
    }

    /// Changes the declared state, and waits until the kernel has it.
    pub(super) fn declare(&mut self, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let old = self.revision();
        change()?;
        self.wait(old.as_deref())
    }

    fn revision(&self) -> Option<String> {
        let text = fs::read(self.run_dir.join("ready")).ok()?;
        let ready: Value = serde_json::from_slice(&text).ok()?;
        Some(ready["revision"].as_str()?.to_owned())
    }

    fn wait(&mut self, old: Option<&str>) -> Result<()> {
        let deadline = Instant::now() + patience();
        loop {
            signals::check()?;
            let ended = self
                .child
                .try_wait()
                .context("cannot look after the agent")?;
            if ended.is_some() || Instant::now() > deadline {
                bail!(
                    "the agent is not in step ({ended:?}):\n{}",
                    self.last_words()
                );
            }
            if self.revision().is_some_and(|now| old != Some(&*now)) {
                return Ok(());
            }
            sleep(Duration::from_millis(20));
        }
    }

    fn last_words(&self) -> String {
        let log = self.run_dir.with_file_name("log").join("agent.log");
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Runs `egressctl verify` from `web`, with all it has, or only with these numbers and groups.
    pub(super) fn verify(&self, world: &World, only: &[String]) -> Result<Vec<Verified>> {
        let only: Vec<&str> = only.iter().flat_map(|only| ["--only", only]).collect();
        let mut rows = self.verify_with(world, &only)?;
        if rows.iter().all(|row| row.number != IN_BULK) {
            return Ok(rows);
        }
        // The node's side takes frames of XDP only where it receives in bulk. All else is tried
        // without, as devices are by themselves.
        world.web.receive_offload(true)?;
        let in_bulk = self.verify_with(world, &["--only", IN_BULK])?;
        world.web.receive_offload(false)?;
        rows.retain(|row| row.number != IN_BULK);
        rows.extend(in_bulk);
        Ok(rows)
    }

    fn verify_with(&self, world: &World, more: &[&str]) -> Result<Vec<Verified>> {
        let pod = world.web.id();
        let args = [&["verify", "--pod", &pod, "--intrusive"], more].concat();
        let report = self.egressctl(&world.node, &args)?;
        serde_json::from_value(report["items"].clone()).context("egressctl verify's rows")
    }

    /// A pod's packets by reason.
    pub(super) fn counters(&self, node: &Node, pod: &Pod) -> Result<BTreeMap<String, u64>> {
        let got = self.egressctl(node, &["pods", "get", &pod.id()])?;
        Ok(counts(&got["items"][0]["counters"]))
    }

    /// Packets by reason of pods that the kernel does not know.
    pub(super) fn unknown(&self, node: &Node) -> Result<BTreeMap<String, u64>> {
        let got = self.egressctl(node, &["maps", "dump", "sp_counters"])?;
        let items = got["items"].as_array().cloned().unwrap_or_default();
        let unknown = items.into_iter().filter(|item| item["slot"] == 0);
        Ok(counts(&Value::Array(unknown.collect())))
    }

    fn egressctl(&self, node: &Node, args: &[&str]) -> Result<Value> {
        let output = node
            .host_command(Path::new(&self.egressctl))?
            .arg("--bpffs")
            .arg(node.bpffs())
            .arg("--run-dir")
            .arg(&self.run_dir)
            .args(["-o", "json"])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("cannot run egressctl")?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!(
                "egressctl {} ({}): {}",
                args.join(" "),
                output.status,
                said.trim()
            )
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn counts(items: &Value) -> BTreeMap<String, u64> {
    let items = items.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| {
            let reason = item["reason"].as_str()?;
            Some((reason.to_owned(), item["packets"].as_u64()?))
        })
        .collect()
}
