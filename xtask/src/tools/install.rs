//! Putting things below the tools directory whole or not at all.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{cmd::say, workspace::Workspace};

const STAGING_PREFIX: &str = ".incomplete-";

/// Keeps a second set-up waiting until the returned file is closed, and clears away what a killed
/// one left.
pub fn lock(workspace: &Workspace) -> Result<File> {
    fs::create_dir_all(&workspace.tools)
        .with_context(|| format!("creating {}", workspace.tools.display()))?;
    let path = workspace.tools.join(".lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            say("tools", "waiting for another set-up in the same directory");
            file.lock()
                .with_context(|| format!("locking {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("locking {}", path.display()));
        }
    }
    for entry in fs::read_dir(&workspace.tools)? {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(STAGING_PREFIX)
        {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(file)
}

/// A directory beside the installed things, so that a rename can publish from it; removed when
/// dropped, whatever was left in it.
pub fn staging(workspace: &Workspace) -> Result<TempDir> {
    fs::create_dir_all(&workspace.tools)
        .with_context(|| format!("creating {}", workspace.tools.display()))?;
    tempfile::Builder::new()
        .prefix(STAGING_PREFIX)
        .tempdir_in(&workspace.tools)
        .with_context(|| format!("creating a directory in {}", workspace.tools.display()))
}

/// Moves a finished file or directory to its place, replacing what was there.
pub fn publish(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    // A directory is only replaced by rename when it is empty.
    if to.is_dir() {
        fs::remove_dir_all(to).with_context(|| format!("removing {}", to.display()))?;
    }
    fs::rename(from, to).with_context(|| format!("moving {} to {}", from.display(), to.display()))
}

/// Where the output of the step `name` is kept.
pub fn log(workspace: &Workspace, name: &str) -> PathBuf {
    workspace.tools.join("logs").join(format!("{name}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(dir: &Path) -> Workspace {
        Workspace {
            root: dir.into(),
            target: dir.join("target"),
            tools: dir.join("target/tools"),
        }
    }

    #[test]
    fn what_is_not_published_leaves_no_trace() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let workspace = workspace(dir.path());
        let half_done = staging(&workspace).expect("writable");
        fs::write(half_done.path().join("half"), "x").expect("writable");
        drop(half_done);
        assert_eq!(fs::read_dir(&workspace.tools).expect("readable").count(), 0);
    }

    #[test]
    fn what_a_killed_run_left_is_cleared_away() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let workspace = workspace(dir.path());
        let left = staging(&workspace).expect("writable").keep();
        let held = lock(&workspace).expect("nobody else holds it");
        assert!(!left.exists());
        drop(held);
        lock(&workspace).expect("free again");
    }

    #[test]
    fn publishing_replaces_files_and_directories() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let workspace = workspace(dir.path());
        let to = workspace.tools.join("thing");
        for content in ["old", "new"] {
            let staging = staging(&workspace).expect("writable");
            let from = staging.path().join("thing");
            fs::create_dir(&from).expect("writable");
            fs::write(from.join("file"), content).expect("writable");
            publish(&from, &to).expect("published");
            assert_eq!(
                fs::read_to_string(to.join("file")).expect("readable"),
                content
            );
        }
    }
}
