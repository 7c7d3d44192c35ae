//! The cgroup2 mount, and trees of cgroups on it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Where the cgroup2 file system is mounted; also on machines with both versions.
pub(super) fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    find(&mounts).context(
        "no cgroup2 file system is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup",
    )
}

/// Looks through lines of `mountinfo`; the last one that is the root of a cgroup2 tree counts.
fn find(mountinfo: &str) -> Option<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            let point = mount.split(' ').nth(4)?;
            (kind.split(' ').next()? == "cgroup2")
                .then(|| PathBuf::from(point.replace("\\040", " ")))
        })
        .next_back()
}

/// Ends every process in the tree and removes it. A tree that is gone already is no error.
pub(super) fn remove(tree: &Path) -> Result<()> {
    match fs::write(tree.join("cgroup.kill"), "1") {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot end processes in {}", tree.display()));
        }
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match remove_empty(tree) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                bail!(
                    "cannot remove the cgroup {}: {error}; in it: {}",
                    tree.display(),
                    living(tree).join(", ")
                );
            }
            // The processes have the signal but are not gone yet.
            Err(_) => sleep(Duration::from_millis(10)),
        }
    }
}

/// Who is still in the tree, and what the kernel has each wait for.
fn living(tree: &Path) -> Vec<String> {
    let entries = fs::read_dir(tree).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.path().is_dir());
    let mut living: Vec<_> = below.flat_map(|entry| living(&entry.path())).collect();
    living.extend(members(tree));
    living
}

fn members(group: &Path) -> Vec<String> {
    let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let about = |pid: &str| {
        let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find(|line| line.starts_with("State:"));
        format!(
            "{pid} ({}, {}, waits in {})",
            read("comm").trim(),
            state.unwrap_or_default(),
            read("wchan")
        )
    };
    pids.lines().map(about).collect()
}

fn remove_empty(tree: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty(&entry.path())?;
        }
    }
    fs::remove_dir(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_unified_tree_beside_the_old_ones() {
        let mounts = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn a_machine_without_it_has_none() {
        assert_eq!(
            find("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"),
            None
        );
    }
}
