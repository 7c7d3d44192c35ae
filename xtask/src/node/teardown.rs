//! Takes a node down by its id alone, so that any process can do it, after whatever happened.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};

use super::{cgroup, netns};

/// Holds a directory for each node that stands.
pub const ROOT: &str = "/run/sallyport-node";

pub(super) fn directory(id: &str) -> PathBuf {
    Path::new(ROOT).join(id)
}

pub(super) fn netns_prefix(id: &str) -> String {
    format!("sp-{id}-")
}

/// Name of a node's tree, relative to the cgroup2 mount.
pub(super) fn cgroup_name(id: &str) -> String {
    format!("sallyport-node-{id}")
}

/// Ends every process of the node and removes its cgroups, namespaces, mounts and files. What is
/// gone already is no error; every step is tried even if another fails.
pub fn teardown(id: &str) -> Result<()> {
    let steps = [
        cgroup::mount_point().and_then(|root| cgroup::remove(&root.join(cgroup_name(id)))),
        remove_namespaces(id),
        remove_directory(&directory(id)),
    ];
    let errors: Vec<String> = steps
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect();
    if errors.is_empty() {
        Ok(())
    } else {
        bail!("node {id}: {}", errors.join("; "))
    }
}

/// Takes down every node that was left standing; gives their ids. A node whose maker is alive is
/// left alone.
pub fn cleanup() -> Result<Vec<String>> {
    let entries = match fs::read_dir(ROOT) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {ROOT}")),
    };
    let mut removed = Vec::new();
    for entry in entries {
        let id = entry?.file_name().to_string_lossy().into_owned();
        if !has_maker(&directory(&id)) {
            teardown(&id)?;
            removed.push(id);
        }
    }
    Ok(removed)
}

/// Takes the lock that says that the maker of the node lives.
pub(super) fn lock(directory: &Path) -> Result<Flock<File>> {
    let path = directory.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| error)
        .with_context(|| format!("cannot lock {}", path.display()))
}

fn has_maker(directory: &Path) -> bool {
    lock(directory).is_err()
}

fn remove_namespaces(id: &str) -> Result<()> {
    let prefix = netns_prefix(id);
    let Ok(entries) = fs::read_dir(netns::DIR) else {
        return Ok(());
    };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) {
            netns::Netns::delete(&name)?;
        }
    }
    Ok(())
}

fn remove_directory(directory: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    // Later mounts may lie on earlier ones.
    for point in mounts_below(&mounts, directory).into_iter().rev() {
        umount2(&point, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => {
            // The last node takes the common directory with it; others keep it.
            let _ = fs::remove_dir(ROOT);
            Ok(())
        }
    }
}

fn mounts_below(mountinfo: &str, directory: &Path) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .filter(|point| point.starts_with(directory))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_this_node_are_undone() {
        let mounts = "31 23 0:28 / /run/sallyport-node/a1/bpf rw - bpf bpf rw\n\
                      32 23 0:29 / /run/sallyport-node/a10/bpf rw - bpf bpf rw\n";
        assert_eq!(
            mounts_below(mounts, Path::new("/run/sallyport-node/a1")),
            [PathBuf::from("/run/sallyport-node/a1/bpf")]
        );
    }
}
