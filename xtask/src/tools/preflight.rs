//! What the machine must be like before kernel programs can be tried on it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// The oldest kernel with every helper and program type in use (BPF ring buffer 5.8, links for
/// cgroup programs 5.7), as (major, minor).
const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// The machine's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Major and minor version.
    pub kernel: (u32, u32),
    /// Where cgroup2 is mounted.
    pub cgroup2: PathBuf,
}

/// Checks root, kernel, BPF and cgroup2. `verb` is named in what to do when not root.
pub fn check(verb: &str) -> Result<Machine> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "`cargo xtask {verb}` loads kernel programs and makes network namespaces. Run it as root: \
             sudo -E env \"PATH=$PATH\" cargo xtask {verb}"
        );
    }
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel version")?;
    let kernel = parse_kernel(&release)
        .with_context(|| format!("the kernel version {:?} is no version", release.trim()))?;
    if kernel < OLDEST_KERNEL {
        bail!(
            "kernel {} is too old: {}.{} or newer is needed",
            release.trim(),
            OLDEST_KERNEL.0,
            OLDEST_KERNEL.1
        );
    }
    // Only a kernel built with CONFIG_BPF_SYSCALL has this setting.
    if !Path::new("/proc/sys/kernel/unprivileged_bpf_disabled").exists() {
        bail!("this kernel has no bpf() system call (CONFIG_BPF_SYSCALL): boot one that has it");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    let cgroup2 = find_cgroup2(&mounts).context(
        "cgroup2 is not mounted. Mount it: mount -t cgroup2 none /sys/fs/cgroup (or below it, where \
         cgroup v1 is in use)",
    )?;
    Ok(Machine { kernel, cgroup2 })
}

/// `6.18.44-fc-v595` is (6, 18).
fn parse_kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The mount point of the first cgroup2 in `mountinfo` (proc(5)).
fn find_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        if filesystem.split(' ').next()? != "cgroup2" {
            return None;
        }
        mount
            .split(' ')
            .nth(4)
            .map(|path| PathBuf::from(unescape(path)))
    })
}

/// Blanks in mount points are written as octal escapes.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions() {
        assert_eq!(parse_kernel("6.18.44-fc-v595\n"), Some((6, 18)));
        assert_eq!(parse_kernel("5.10-rc1"), Some((5, 10)));
        assert_eq!(parse_kernel("linux"), None);
        assert!(parse_kernel("5.9.0") < Some(OLDEST_KERNEL));
    }

    #[test]
    fn cgroup2_is_found_beside_v1() {
        let mounts = "30 29 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      31 29 0:27 / /sys/fs/cgroup/uni\\040fied rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(mounts), Some("/sys/fs/cgroup/uni fied".into()));
        assert_eq!(
            find_cgroup2("30 29 0:26 / / rw - ext4 /dev/root rw\n"),
            None
        );
    }
}
