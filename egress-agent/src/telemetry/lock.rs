//! The ring of events has one reader: whoever holds the lock in the run directory.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Name of the lock file in the run directory.
pub const FILE: &str = "events.lock";

/// Why the lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("can't lock {}: {error}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
}

/// The right to read the ring, until it is dropped (or its process ends, however it does).
#[derive(Debug)]
pub struct RingLock {
    _file: Flock<File>,
}

impl RingLock {
    /// Takes the lock at once; none if another process has it. Makes the run directory.
    pub fn take(run_dir: &Path) -> Result<Option<Self>, LockError> {
        let path = run_dir.join(FILE);
        let failed = |error| LockError::Io {
            path: path.clone(),
            error,
        };
        std::fs::create_dir_all(run_dir).map_err(failed)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(Self { _file: file })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(failed(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().expect("tempdir");
        let run = dir.path().join("run");
        let held = RingLock::take(&run).expect("lock").expect("free");
        assert!(RingLock::take(&run).expect("lock").is_none());
        drop(held);
        assert!(RingLock::take(&run).expect("lock").is_some());
    }
}
