//! Processes of a pod, from a helper that sees the node's processes.

use std::fs;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::{Value, json};

#[derive(Clone, Debug, clap::Args)]
pub struct Kill {
    /// UID of the pod; a process of another pod is never touched
    #[arg(long)]
    pod_uid: String,
    /// Name of the program, as in /proc/PID/comm
    #[arg(long)]
    program: String,
}

impl Kill {
    pub fn run(&self) -> Result<Value> {
        let mut killed = Vec::new();
        for entry in fs::read_dir("/proc").context("cannot list processes")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            // It may have ended meanwhile.
            let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            if read("comm").trim() == self.program && in_pod(&read("cgroup"), &self.pod_uid) {
                signal::kill(Pid::from_raw(pid), Signal::SIGKILL)
                    .with_context(|| format!("cannot kill process {pid}"))?;
                killed.push(pid);
            }
        }
        if killed.is_empty() {
            bail!("no process {} of pod {}", self.program, self.pod_uid);
        }
        Ok(json!({ "killed": killed }))
    }
}

/// Whether the cgroup of a process is below the pod's, by either driver's way to write the UID.
fn in_pod(cgroup: &str, uid: &str) -> bool {
    !uid.is_empty()
        && (cgroup.contains(&format!("pod{uid}"))
            || cgroup.contains(&format!("pod{}", uid.replace('-', "_"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_by_their_cgroups() {
        let uid = "0d3e5a54-7c6f-4b3c-9a55-000000000001";
        let systemd = "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod\
                       0d3e5a54_7c6f_4b3c_9a55_000000000001.slice/cri-containerd-ab.scope";
        assert!(in_pod(systemd, uid));
        assert!(in_pod(&format!("0::/kubepods/burstable/pod{uid}/ab"), uid));
        assert!(!in_pod(systemd, "0d3e5a54-7c6f-4b3c-9a55-000000000002"));
        assert!(!in_pod(systemd, ""));
    }
}
