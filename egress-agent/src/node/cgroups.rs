//! The pods' cgroups: where kubepods is, which pods are below it, and their processes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::DirEntry;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::mounts::{self, MountError};

/// How far below the cgroup root kubepods is looked for: kind puts it below `kubelet`, some
/// installers one deeper.
const SEARCH_DEPTH: usize = 3;

/// Why the pods' cgroups could not be found or read.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("can't read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "no kubepods cgroup below {root}: is the kubelet running? If it uses another name \
         (--cgroup-root of the kubelet), pass it as --kubepods, relative to {root}"
    )]
    NotFound { root: PathBuf },
    #[error("several kubepods cgroups below {root}: {found}. Choose one with --kubepods")]
    Ambiguous { root: PathBuf, found: String },
    #[error("--kubepods {given}: give a path relative to the cgroup root, without '..'")]
    BadPath { given: PathBuf },
    #[error(
        "{root} is not the root of the machine's cgroup hierarchy, so the depth of {kubepods} \
         can't be known from here: run the agent in a pod, or in the machine's own cgroup namespace"
    )]
    NotRoot { root: PathBuf, kubepods: PathBuf },
}

/// The kubepods directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubepods {
    /// The directory, absolute.
    pub path: PathBuf,
    /// Its cgroup id.
    pub id: u64,
    /// The root of the cgroup2 mount it is on.
    pub root: PathBuf,
}

/// One pod's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    pub id: u64,
    pub path: PathBuf,
}

impl Kubepods {
    /// Finds kubepods on the real cgroup2 hierarchy.
    ///
    /// `root` is where to look, by default the cgroup2 mount; the directory that a hybrid machine
    /// has it mounted in will do. `given` is kubepods relative to it, by default it is looked for.
    pub fn find(root: Option<&Path>, given: Option<&Path>) -> Result<Self, CgroupError> {
        let all = mounts::mounts()?;
        let (mount, root) = if let Some(root) = root {
            let root = root.canonicalize().map_err(|source| read(root, source))?;
            mounts::cgroup2_at(&all, &root)?
        } else {
            let mount = mounts::cgroup2(&all)?;
            (mount, mount.point.clone())
        };
        let path = locate(&root, given)?;
        let id = cgroup_id(&path)?;
        Ok(Self {
            path,
            id,
            root: mount.point.clone(),
        })
    }

    /// Depth below the root of the hierarchy, as `bpf_skb_ancestor_cgroup_id` counts: the root
    /// is 0, its children are 1.
    ///
    /// # Errors
    /// In a cgroup namespace the mount's root is somewhere inside the hierarchy, and the true
    /// depth is hidden. `Datapath::kubepods_depth` tells it to an agent in a pod.
    pub fn level(&self) -> Result<u32, CgroupError> {
        // Every cgroup but the true root has this file.
        let is_root = !self.root.join("cgroup.events").exists();
        let below = self.path.strip_prefix(&self.root).ok().filter(|_| is_root);
        let depth = below.map(|path| path.components().count());
        depth
            .and_then(|depth| u32::try_from(depth).ok())
            .ok_or_else(|| CgroupError::NotRoot {
                root: self.root.clone(),
                kubepods: self.path.clone(),
            })
    }

    /// Ids of the `QoS` directories, which hold pods but are none: besteffort, then burstable;
    /// 0 for one that does not exist.
    pub fn qos_ids(&self) -> Result<[u64; 2], CgroupError> {
        let mut ids = [0; 2];
        for (entry, name) in children(&self.path)? {
            if let Some(class) = qos_class(&name) {
                ids[class] = entry.metadata().map_or(0, |meta| meta.ino());
            }
        }
        Ok(ids)
    }

    /// The directories that pods' cgroups are made in: kubepods and the `QoS` directories.
    pub fn parents(&self) -> Result<Vec<PathBuf>, CgroupError> {
        let qos = children(&self.path)?
            .into_iter()
            .filter(|(_, name)| qos_class(name).is_some())
            .map(|(entry, _)| entry.path());
        Ok(std::iter::once(self.path.clone()).chain(qos).collect())
    }

    /// All pods' cgroups by UID.
    ///
    /// The key is what the cgroup's name says: for a static pod that is the hash of its
    /// configuration (annotation `kubernetes.io/config.hash`), not the mirror pod's UID.
    pub fn pods(&self) -> Result<BTreeMap<String, PodCgroup>, CgroupError> {
        let mut pods = BTreeMap::new();
        for parent in self.parents()? {
            let below = match children(&parent) {
                Ok(below) => below,
                // A QoS directory that went away while we looked holds nothing.
                Err(_) if parent != self.path => continue,
                Err(error) => return Err(error),
            };
            for (entry, name) in below {
                let Some(uid) = pod_uid(&name) else { continue };
                let Ok(meta) = entry.metadata() else { continue };
                pods.insert(
                    uid,
                    PodCgroup {
                        id: meta.ino(),
                        path: entry.path(),
                    },
                );
            }
        }
        Ok(pods)
    }

    /// Ids of static pods' cgroups, by the hash that they are called by.
    pub fn static_pods(&self) -> Result<BTreeMap<String, u64>, CgroupError> {
        Ok(statics(&self.pods()?))
    }
}

/// Ids of those that are static pods'.
pub(super) fn statics(pods: &BTreeMap<String, PodCgroup>) -> BTreeMap<String, u64> {
    let pods = pods.iter().filter(|(uid, _)| is_static(uid));
    pods.map(|(uid, pod)| (uid.clone(), pod.id)).collect()
}

/// Whether a pod that is called so by its cgroup is a static one. The kubelet takes an MD5 of the manifest
/// for the UID there, in 32 digits; pods that are made through the API server get a UUID from it, which has
/// dashes. So only who writes the kubelet's own files, root on the node, makes one.
pub fn is_static(uid: &str) -> bool {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    uid.len() == 32 && uid.bytes().all(digit)
}

/// Id of a cgroup: the kernel uses the inode number of its directory (64-bit kernels, since 5.5).
pub fn cgroup_id(path: &Path) -> Result<u64, CgroupError> {
    Ok(std::fs::metadata(path)
        .map_err(|source| read(path, source))?
        .ino())
}

/// Processes in a cgroup and all below it; 0 stands for those that this PID namespace can't see.
/// What vanishes while we look is left out.
pub fn processes(path: &Path) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut open = vec![path.to_owned()];
    while let Some(dir) = open.pop() {
        // A threaded cgroup can't list processes; the domain above it lists them instead.
        if let Ok(text) = std::fs::read_to_string(dir.join("cgroup.procs")) {
            found.extend(text.lines().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        if let Ok(below) = children(&dir) {
            open.extend(below.into_iter().map(|(entry, _)| entry.path()));
        }
    }
    found
}

/// The pod's UID in the name of its cgroup: `pod<UID>` (cgroupfs driver) or
/// `…-pod<UID with _ for ->.slice` (systemd driver).
pub fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(stem) => stem
            .rsplit_once('-')
            .map_or(stem, |(_, last)| last)
            .strip_prefix("pod")?,
        None => name.strip_prefix("pod")?,
    };
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (!uid.is_empty() && uid.bytes().all(known)).then(|| uid.replace('_', "-"))
}

/// 0 for besteffort, 1 for burstable.
fn qos_class(name: &str) -> Option<usize> {
    let class = match name.strip_suffix(".slice") {
        Some(stem) => stem.rsplit_once('-')?.1,
        None => name,
    };
    ["besteffort", "burstable"]
        .iter()
        .position(|known| *known == class)
}

fn is_kubepods(name: &str) -> bool {
    name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
}

fn locate(root: &Path, given: Option<&Path>) -> Result<PathBuf, CgroupError> {
    let Some(given) = given else {
        return search(root);
    };
    let relative = given.strip_prefix("/").unwrap_or(given);
    if !relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        return Err(CgroupError::BadPath {
            given: given.to_owned(),
        });
    }
    let path = root.join(relative);
    if path.is_dir() {
        Ok(path)
    } else {
        Err(CgroupError::NotFound { root: path })
    }
}

/// Level by level, so that the one nearest to the root wins.
fn search(root: &Path) -> Result<PathBuf, CgroupError> {
    let mut level = vec![root.to_owned()];
    for depth in 0..SEARCH_DEPTH {
        let mut next = Vec::new();
        let mut found = Vec::new();
        for dir in &level {
            let below = match children(dir) {
                Ok(below) => below,
                Err(_) if depth > 0 => continue,
                Err(error) => return Err(error),
            };
            for (entry, name) in below {
                if is_kubepods(&name) {
                    &mut found
                } else {
                    &mut next
                }
                .push(entry.path());
            }
        }
        match found.as_slice() {
            [] => level = next,
            [one] => return Ok(one.clone()),
            several => {
                let mut names: Vec<_> = several
                    .iter()
                    .map(|path| {
                        path.strip_prefix(root)
                            .unwrap_or(path)
                            .display()
                            .to_string()
                    })
                    .collect();
                names.sort();
                return Err(CgroupError::Ambiguous {
                    root: root.to_owned(),
                    found: names.join(", "),
                });
            }
        }
    }
    Err(CgroupError::NotFound {
        root: root.to_owned(),
    })
}

/// The directories in a directory, with their names. Names that are not UTF-8 are nobody's pods.
fn children(dir: &Path) -> Result<Vec<(DirEntry, String)>, CgroupError> {
    let entries = std::fs::read_dir(dir).map_err(|source| read(dir, source))?;
    Ok(entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| {
            let name = OsStr::to_str(&entry.file_name())?.to_owned();
            Some((entry, name))
        })
        .collect())
}

fn read(path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
#[path = "cgroups_tests.rs"]
mod tests;
