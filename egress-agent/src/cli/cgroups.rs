//! From cgroup ids to directories.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::node::mounts;

/// A cgroup's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    /// It or one below it has a process.
    pub populated: bool,
}

/// How deep a pod's cgroup may be below the mount: kind nests a node's tree in another.
const DEPTH: usize = 10;

/// Finds these cgroups below the cgroup2 mount. None if there is no such mount to look at.
pub fn find(ids: &BTreeSet<u64>) -> Option<BTreeMap<u64, Place>> {
    let mounts = mounts::mounts().ok()?;
    let root = mounts::cgroup2(&mounts).ok()?;
    let mut places = BTreeMap::new();
    walk(&root.point, DEPTH, ids, &mut places);
    Some(places)
}

fn walk(path: &Path, depth: usize, ids: &BTreeSet<u64>, places: &mut BTreeMap<u64, Place>) {
    // Directories come and go meanwhile: what can't be read is not there.
    if let Ok(metadata) = std::fs::metadata(path)
        && ids.contains(&metadata.ino())
    {
        let events = std::fs::read_to_string(path.join("cgroup.events"));
        let populated = events.is_ok_and(|text| text.lines().any(|line| line == "populated 1"));
        let path = path.to_owned();
        places.insert(metadata.ino(), Place { path, populated });
    }
    if depth == 0 || places.len() == ids.len() {
        return;
    }
    let Ok(entries) = std::fs::read_dir(path) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), depth - 1, ids, places);
        }
    }
}
