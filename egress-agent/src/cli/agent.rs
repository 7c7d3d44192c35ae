//! Whether an agent runs, and what it says of itself in its run directory.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::Deserialize;

use crate::policy_server::xds::NodeState;
use crate::telemetry::socket;

/// What the run directory says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentState {
    pub running: bool,
    /// Process id of the running agent.
    pub pid: Option<u32>,
    /// Only while it runs and the kernel is as desired.
    pub ready: Option<Ready>,
    /// Only while it runs.
    pub pods: Vec<AgentPod>,
    /// Envoys that get their configuration from it. Only while it runs.
    pub gateways: Vec<NodeState>,
}

/// Contents of `ready`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ready {
    pub revision: String,
    pub writes: u64,
}

/// A pod in `status.json`: as much as the pins don't say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentPod {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub mode: String,
    pub gateway: bool,
    pub coverage: String,
    pub reason: Option<String>,
    pub lockdowns: Vec<String>,
    pub devices: Vec<AgentDevice>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AgentDevice {
    pub ifindex: u32,
    pub name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AgentStatus {
    pods: Vec<AgentPod>,
}

/// Reads the run directory. A file that is missing or torn says nothing.
pub fn read(run_dir: &Path) -> AgentState {
    let lock = run_dir.join("lock");
    let running = is_locked(&lock) || socket::is_answered(run_dir);
    if !running {
        return AgentState::default();
    }
    let pid = std::fs::read_to_string(&lock).ok();
    let status = std::fs::read(run_dir.join("status.json")).ok();
    let status = status.and_then(|text| serde_json::from_slice::<AgentStatus>(&text).ok());
    let gateways = std::fs::read(run_dir.join("gateways.json")).ok();
    let gateways = gateways.and_then(|text| serde_json::from_slice(&text).ok());
    let ready = std::fs::read(run_dir.join("ready")).ok();
    AgentState {
        running,
        pid: pid.and_then(|pid| pid.trim().parse().ok()),
        ready: ready.and_then(|text| serde_json::from_slice(&text).ok()),
        pods: status.unwrap_or_default().pods,
        gateways: gateways.unwrap_or_default(),
    }
}

/// Whether somebody holds a lock on the file. Looked up rather than tried: an agent that starts
/// just now must not find the lock taken by this question.
fn is_locked(path: &Path) -> bool {
    let Ok(metadata) = std::fs::metadata(path) else {
        return false;
    };
    let (device, inode) = (metadata.dev(), metadata.ino());
    let place = format!(
        "{:02x}:{:02x}:{inode}",
        nix::sys::stat::major(device),
        nix::sys::stat::minor(device)
    );
    std::fs::read_to_string("/proc/locks").is_ok_and(|locks| has_lock(&locks, &place))
}

/// Lines such as `3: FLOCK  ADVISORY  WRITE 812 08:01:1311 0 EOF`.
fn has_lock(locks: &str, place: &str) -> bool {
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // A `->` stands before those who wait.
        words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy_server::xds::Rejection;

    #[test]
    fn a_lock_is_seen_without_taking_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("lock");
        let file = std::fs::File::create(&path).expect("create");
        assert!(!read(dir.path()).running);
        file.try_lock().expect("lock");
        std::fs::write(&path, "4242\n").expect("write");
        std::fs::write(dir.path().join("ready"), r#"{"revision":"r","writes":3}"#).expect("write");
        let node = NodeState {
            gateway: "egress/vg".to_owned(),
            node: "pod".to_owned(),
            address: ([127, 0, 0, 1], 4).into(),
            revision: None,
            rejected: [("Listener".to_owned(), Rejection::default())].into(),
        };
        let list = serde_json::to_vec(std::slice::from_ref(&node)).expect("JSON");
        std::fs::write(dir.path().join("gateways.json"), list).expect("write");
        let state = read(dir.path());
        assert!(state.running);
        assert_eq!(state.gateways, [node]);
        assert_eq!(state.pid, Some(4242));
        assert_eq!(state.ready.map(|ready| ready.writes), Some(3));
        drop(file);
        assert_eq!(read(dir.path()), AgentState::default());
    }

    #[test]
    fn waiters_hold_nothing() {
        let locks = "1: FLOCK  ADVISORY  WRITE 8 08:01:5 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 9 08:01:6 0 EOF\n";
        assert!(has_lock(locks, "08:01:5"));
        assert!(!has_lock(locks, "08:01:6"));
    }
}
