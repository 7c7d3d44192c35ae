//! A BPF file system for a node that has none mounted, as its init system would mount it, for the
//! time of a run.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};
use nix::unistd::getppid;
use serde_json::{Value, json};

/// What the mount is said to be of: only what bears it is ours to remove.
const SOURCE: &str = "sallyport-e2e";

#[derive(Clone, Debug, clap::Args)]
pub struct Bpffs {
    /// Where it is to be on the node
    #[arg(long, default_value = "/sys/fs/bpf")]
    path: PathBuf,
    /// Take it away again, if it is ours
    #[arg(long)]
    remove: bool,
}

impl Bpffs {
    /// Looks and mounts where the container runtime does, which pods get their volumes from: it is
    /// the parent of a container's first process, and of what is started in a container later.
    pub fn run(&self) -> Result<Value> {
        let runtime = getppid();
        let place = File::open(format!("/proc/{runtime}/ns/mnt"))
            .with_context(|| format!("cannot open the mount namespace of process {runtime}"))?;
        setns(place, CloneFlags::CLONE_NEWNS)
            .context("cannot enter the node's mount namespace: the pod must be privileged")?;
        let mounts = fs::read_to_string("/proc/thread-self/mounts").context("reading mounts")?;
        let there = at(&mounts, &self.path.to_string_lossy());
        let did = match (there, self.remove) {
            (Some((SOURCE, "bpf")), true) => {
                umount2(&self.path, MntFlags::MNT_DETACH)
                    .with_context(|| format!("cannot unmount {}", self.path.display()))?;
                "removed"
            }
            (_, true) => "not ours",
            (Some((_, "bpf")), false) => "there",
            (_, false) => {
                self.mount()?;
                "mounted"
            }
        };
        Ok(json!({ "bpffs": did }))
    }

    fn mount(&self) -> Result<()> {
        let mut directory = fs::DirBuilder::new();
        // Below sysfs nothing can be made, and nothing needs to.
        let _ = directory.recursive(true).mode(0o700).create(&self.path);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(
            Some(SOURCE),
            &self.path,
            Some("bpf"),
            flags,
            Some("mode=700"),
        )
        .with_context(|| format!("cannot mount a BPF file system at {}", self.path.display()))
    }
}

/// Source and type of what is mounted at a path: the last of several hides the others.
fn at<'a>(mounts: &'a str, path: &str) -> Option<(&'a str, &'a str)> {
    mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ');
        let source = fields.next()?;
        (fields.next()? == path).then_some(())?;
        Some((source, fields.next()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mount_on_a_path_counts() {
        let mounts = "sysfs /sys sysfs rw 0 0\n\
                      bpf /sys/fs/bpf bpf rw 0 0\n\
                      sallyport-e2e /sys/fs/bpf bpf rw 0 0\n\
                      bpf /sys/fs/bpf/other bpf rw 0 0\n";
        assert_eq!(at(mounts, "/sys/fs/bpf"), Some((SOURCE, "bpf")));
        assert_eq!(at(mounts, "/sys"), Some(("sysfs", "sysfs")));
        assert_eq!(at(mounts, "/sys/fs"), None);
    }
}
