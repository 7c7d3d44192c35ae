//! Finds the mounts that the agent needs in `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Why a mount could not be found.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("can't read {MOUNTINFO}: {0}")]
    Read(#[source] io::Error),
    #[error(
        "no cgroup2 filesystem is mounted here: Sallyport needs the unified cgroup hierarchy. \
         Boot with systemd.unified_cgroup_hierarchy=1, or mount it beside the old ones: \
         mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"
    )]
    NoCgroup2,
    #[error(
        "{path} is not on a cgroup2 filesystem: pass a directory of the unified hierarchy as \
         --cgroup-root, or leave the flag out to have it found"
    )]
    NotCgroup2 { path: PathBuf },
    #[error(
        "{path} is not on a BPF filesystem: pins would not outlive the agent. \
         Mount one: mkdir -p {path} && mount -t bpf bpf {path}"
    )]
    NoBpffs { path: PathBuf },
}

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Directory of the filesystem that is mounted; `/` is all of it.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Filesystem type, such as `cgroup2`.
    pub kind: String,
}

/// The mounts of this process's mount namespace, in the order in which they were made.
pub fn mounts() -> Result<Vec<Mount>, MountError> {
    Ok(parse(&std::fs::read(MOUNTINFO).map_err(MountError::Read)?))
}

/// The cgroup2 mount that shows the most: the whole hierarchy rather than a part of it, and the
/// shortest path among equals.
pub fn cgroup2(mounts: &[Mount]) -> Result<&Mount, MountError> {
    most_of_cgroup2(mounts, Path::new("/")).ok_or(MountError::NoCgroup2)
}

/// The same of the cgroup2 mounts at a path and below it.
fn most_of_cgroup2<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts
        .iter()
        .filter(|mount| mount.kind == "cgroup2" && mount.point.starts_with(path))
        .min_by_key(|mount| (height(&mount.root), mount.point.components().count()))
}

/// How far down a mount's root is, from the reader's own root. In a container that is the
/// container's cgroup (`cgroup_namespaces(7)`), and the node's hierarchy, mounted from the host,
/// begins as many `..` above it.
fn height(root: &Path) -> isize {
    root.components()
        .map(|part| match part {
            Component::ParentDir => -1,
            Component::Normal(_) => 1,
            _ => 0,
        })
        .sum()
}

/// The cgroup2 mount that holds `path`, and where to look on it: there, or where `path` is only the
/// directory that a hybrid machine has all its hierarchies in, at the unified one among them.
pub fn cgroup2_at<'a>(
    mounts: &'a [Mount],
    path: &Path,
) -> Result<(&'a Mount, PathBuf), MountError> {
    let holds = above(mounts, path).filter(|mount| mount.kind == "cgroup2");
    let found = match holds {
        Some(mount) => Some((mount, path.to_owned())),
        None => most_of_cgroup2(mounts, path).map(|mount| (mount, mount.point.clone())),
    };
    found.ok_or_else(|| MountError::NotCgroup2 {
        path: path.to_owned(),
    })
}

/// The BPF filesystem mounted at `path` or above it.
pub fn bpffs_above<'a>(mounts: &'a [Mount], path: &Path) -> Result<&'a Mount, MountError> {
    above(mounts, path)
        .filter(|mount| mount.kind == "bpf")
        .ok_or_else(|| MountError::NoBpffs {
            path: path.to_owned(),
        })
}

/// The mount that a path is on: the longest mount point above it, and of several on the same
/// point the last, which hides the others.
fn above<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
}

/// Lines that don't have mountinfo's form (proc(5)) are left out.
fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = unescape(fields.nth(3)?);
    let point = unescape(fields.next()?);
    // A varying number of optional fields ends with a lone dash.
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount {
        root,
        point,
        kind: String::from_utf8_lossy(kind).into_owned(),
    })
}

/// Mountinfo writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = octal {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
31 22 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:3 master:2 - cgroup cgroup rw,cpu
40 31 0:38 /kubelet /mnt/a\\040part rw - cgroup2 cgroup2 rw
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 22 0:40 / /sys/fs/bpf rw - bpf bpf rw,mode=700
43 22 0:41 / /mnt/twice rw - bpf bpf rw
44 22 0:42 / /mnt/twice rw - tmpfs tmpfs rw
broken line
";

    #[test]
    fn the_whole_hierarchy_is_preferred() {
        let mounts = parse(HYBRID);
        assert_eq!(mounts.len(), 8);
        assert_eq!(
            cgroup2(&mounts).unwrap().point,
            Path::new("/sys/fs/cgroup/unified")
        );
    }

    #[test]
    fn a_container_finds_the_nodes_hierarchy_beside_its_own() {
        let mounts = parse(
            b"127 126 0:38 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n\
              129 120 0:38 /../../../.. /host/cgroup ro,relatime - cgroup2 cgroup2 rw\n\
              130 120 0:38 /../.. /host/pod ro,relatime - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(cgroup2(&mounts).unwrap().point, Path::new("/host/cgroup"));
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(parse(HYBRID)[3].point, Path::new("/mnt/a part"));
        assert_eq!(unescape(b"\\04"), Path::new("\\04"));
        assert_eq!(unescape(b"a\\134b"), Path::new("a\\b"));
    }

    #[test]
    fn no_cgroup2_says_what_to_do() {
        let error = cgroup2(&parse(b"22 1 254:0 / / rw - ext4 /dev/root rw")).unwrap_err();
        assert!(error.to_string().contains("mount -t cgroup2"), "{error}");
    }

    #[test]
    fn bpffs_is_found_above_and_only_where_it_is_visible() {
        let mounts = parse(HYBRID);
        let found = bpffs_above(&mounts, Path::new("/sys/fs/bpf/sallyport/v1")).unwrap();
        assert_eq!(found.point, Path::new("/sys/fs/bpf"));
        // A name that only begins alike is another directory.
        let error = bpffs_above(&mounts, Path::new("/sys/fs/bpf2")).unwrap_err();
        assert!(
            error.to_string().contains("mount -t bpf bpf /sys/fs/bpf2"),
            "{error}"
        );
        assert!(
            bpffs_above(&mounts, Path::new("/mnt/twice")).is_err(),
            "hidden by the tmpfs"
        );
    }

    #[test]
    fn a_cgroup_root_elsewhere_is_refused() {
        let mounts = parse(HYBRID);
        let below = Path::new("/sys/fs/cgroup/unified/a");
        assert_eq!(cgroup2_at(&mounts, below).unwrap().1, below);
        assert!(cgroup2_at(&mounts, Path::new("/sys/fs/cgroup/cpu/a")).is_err());
        assert!(cgroup2_at(&mounts, Path::new("/sys/fs/cgroup/cpu")).is_err());
    }

    #[test]
    fn where_a_hybrid_machine_has_all_hierarchies_the_unified_one_is_taken() {
        let mounts = parse(HYBRID);
        let (mount, root) = cgroup2_at(&mounts, Path::new("/sys/fs/cgroup")).unwrap();
        assert_eq!(mount.point, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(root, mount.point);
    }
}
