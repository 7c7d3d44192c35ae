//! The directory in which a running agent can be found.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::index::Heritage;

/// Policy objects as they were taken last.
pub const LAST_GOOD: &str = "last-good.json";

/// Contents of `ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ready {
    /// Names the state that the kernel and the gateways have been brought to.
    pub revision: String,
    /// Changes of the kernel's state since this agent was started.
    pub writes: u64,
}

/// The directory, locked by this agent.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    ready: Option<Ready>,
    /// By name: why a file could not be written; said once for as long as it lasts.
    untold: BTreeMap<String, String>,
    /// The lock ends with the process, however that ends.
    _lock: File,
}

impl RunDir {
    /// # Errors
    /// If another agent holds it: two would undo each other's work.
    pub fn lock(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("can't make {}", path.display()))?;
        let file = path.join("lock");
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .with_context(|| format!("can't open {}", file.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another agent runs on this node: it holds {}. Stop it, or give this one another --run-dir",
                file.display()
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("can't lock {}", file.display()));
            }
        }
        // For people; the lock holds without it.
        let named = lock
            .set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        if let Err(error) = named {
            tracing::error!(event = "run_dir_unwritable", path = %file.display(), %error);
        }
        let mut run_dir = Self {
            path: path.to_owned(),
            ready: None,
            untold: BTreeMap::new(),
            _lock: lock,
        };
        // One that was killed left its own.
        run_dir.remove_ready()?;
        Ok(run_dir)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says that all is in step. On a full disk nobody can be told, which is no reason to do less.
    pub fn set_ready(&mut self, ready: Ready) -> Result<()> {
        if self.ready.as_ref() != Some(&ready) && self.tell("ready", &serde_json::to_vec(&ready)?) {
            self.ready = Some(ready);
        }
        Ok(())
    }

    /// Replaces a file that others read; whether it was written. What stands in the way is logged,
    /// and the next pass tries again.
    pub fn tell(&mut self, name: &str, content: &[u8]) -> bool {
        let Err(error) = self.write(name, content) else {
            self.untold.remove(name);
            return true;
        };
        let error = format!("{error:#}");
        if self.untold.get(name) != Some(&error) {
            tracing::error!(
                event = "run_dir_unwritable",
                error,
                "enforcement goes on; status and readiness can't be told"
            );
        }
        self.untold.insert(name.to_owned(), error);
        false
    }

    /// Whether the file is as it was to be written last.
    pub fn has_told(&self, name: &str) -> bool {
        !self.untold.contains_key(name)
    }

    /// Says that something is not in step.
    pub fn unset_ready(&mut self) -> Result<()> {
        if self.ready.take().is_some() {
            self.remove_ready()?;
        }
        Ok(())
    }

    fn remove_ready(&mut self) -> Result<()> {
        let path = self.path.join("ready");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("can't remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// What the agent before this one had taken of policy.
    pub fn heritage(&self) -> Heritage {
        let path = self.path.join(LAST_GOOD);
        let text = fs::read(&path).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::error!(event = "last_good_unreadable", path = %path.display(), %error);
            }
            Vec::new()
        });
        Heritage::read(&text)
    }

    /// Replaces a file of the directory at once.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        replace(&self.path, name, content)
    }
}

/// Replaces a file of a directory at once.
pub(super) fn replace(directory: &Path, name: &str, content: &[u8]) -> Result<()> {
    let (draft, path) = (directory.join(format!(".{name}.new")), directory.join(name));
    // On the disk before it has its name: after a power cut it is the old file or the new one.
    File::create(&draft)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_data()))
        .and_then(|()| fs::rename(&draft, &path))
        .with_context(|| format!("can't write {}", path.display()))
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.unset_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_refused_until_the_first_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = RunDir::lock(dir.path()).unwrap();
        let ready = Ready {
            revision: "r".into(),
            writes: 3,
        };
        first.set_ready(ready).unwrap();
        let text = fs::read_to_string(dir.path().join("ready")).unwrap();
        assert_eq!(text, r#"{"revision":"r","writes":3}"#);
        let refusal = RunDir::lock(dir.path()).unwrap_err().to_string();
        assert!(refusal.contains("--run-dir"), "{refusal}");
        assert!(dir.path().join("ready").exists());
        drop(first);
        assert!(!dir.path().join("ready").exists());
        RunDir::lock(dir.path()).unwrap();
    }
}
