//! A directory of YAML files as the source of objects: watched, read again after each change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};

use super::error::SourceError;
use super::files::{Files, Reading, Snapshot};

/// A change is read once the directory has been quiet for so long: an editor writes several times.
const QUIET: Duration = Duration::from_millis(100);
/// But a change is read after so long at the latest.
const LATEST: Duration = Duration::from_secs(1);
/// Everything is read again so often, in case a notification was lost.
const RESCAN: Duration = Duration::from_secs(30);
/// As `RESCAN`, where the kernel gives no notifications.
const POLL: Duration = Duration::from_secs(2);
/// Larger files are refused: objects of a node don't come near.
const MAX_BYTES: u64 = 16 << 20;

/// Reads `*.yaml`, `*.yml` and `*.json` of one directory (not below it, and no hidden files).
/// A file that can't be taken is reported, and its last good content stands.
#[derive(Debug)]
pub struct YamlDir {
    directory: PathBuf,
    files: Files,
    snapshots: watch::Sender<Arc<Snapshot>>,
    known_problems: Vec<SourceError>,
}

impl YamlDir {
    /// Reads the directory for the first time; the receiver has that snapshot at once, and the
    /// latest one while [`YamlDir::run`] runs.
    ///
    /// # Errors
    /// If the directory can't be read. A file that can't is a problem of the snapshot.
    pub fn open(directory: &Path) -> Result<(Self, watch::Receiver<Arc<Snapshot>>), SourceError> {
        let readings = read_directory(directory).map_err(|reason| SourceError {
            file: directory.to_owned(),
            reason,
            ..SourceError::default()
        })?;
        let (snapshots, receiver) = watch::channel(Arc::new(Snapshot::default()));
        let mut source = Self {
            directory: directory.to_owned(),
            files: Files::default(),
            snapshots,
            known_problems: Vec::new(),
        };
        source.files.update(readings);
        source.publish();
        Ok((source, receiver))
    }

    /// Follows the directory until every receiver is gone.
    pub async fn run(mut self) {
        let changed = Arc::new(Notify::new());
        let mut watcher = self.watcher(&changed);
        let mut rescan = interval(if watcher.is_some() { RESCAN } else { POLL });
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once: it finds what changed between `open` and the watch.
        loop {
            tokio::select! {
                () = self.snapshots.closed() => return,
                () = changed.notified() => settle(&changed).await,
                _ = rescan.tick() => {
                    // The directory may have been replaced by another of the same name.
                    if let Some(watcher) = &mut watcher {
                        let _ = watcher.watch(&self.directory, RecursiveMode::NonRecursive);
                    }
                }
            }
            self.rescan().await;
        }
    }

    /// Without notifications (no inotify watches left) it is polled.
    fn watcher(&self, changed: &Arc<Notify>) -> Option<RecommendedWatcher> {
        let changed = Arc::clone(changed);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files causes events of its own.
            let kind = event.map_or(EventKind::Any, |event| event.kind);
            let writes = AccessKind::Close(AccessMode::Write);
            if !matches!(kind, EventKind::Access(access) if access != writes) {
                changed.notify_one();
            }
        })
        .and_then(|mut watcher| {
            watcher.watch(&self.directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        watcher
            .inspect_err(|error| {
                tracing::warn!(
                    event = "source_watch_failed",
                    directory = %self.directory.display(),
                    %error,
                    "polling instead; raise fs.inotify.max_user_instances or max_user_watches"
                );
            })
            .ok()
    }

    async fn rescan(&mut self) {
        let directory = self.directory.clone();
        let reading = tokio::task::spawn_blocking(move || read_directory(&directory)).await;
        let changed = match reading {
            Ok(Ok(readings)) => self.files.update(readings),
            Ok(Err(reason)) => self.files.lost(&self.directory, reason),
            Err(error) => self.files.lost(&self.directory, error.to_string()),
        };
        if changed {
            self.publish();
        }
    }

    fn publish(&mut self) {
        let snapshot = self.files.snapshot();
        for problem in snapshot
            .problems
            .iter()
            .filter(|p| !self.known_problems.contains(p))
        {
            tracing::error!(
                event = "source_error",
                file = %problem.file.display(),
                line = problem.line,
                column = problem.column,
                object = problem.object,
                field = problem.field,
                reason = problem.reason,
                "{problem}; what was good before still stands"
            );
        }
        for problem in self
            .known_problems
            .iter()
            .filter(|p| !snapshot.problems.contains(p))
        {
            tracing::info!(
                event = "source_error_gone",
                file = %problem.file.display(),
                line = problem.line,
                field = problem.field,
            );
        }
        self.known_problems.clone_from(&snapshot.problems);
        tracing::info!(
            event = "source_read",
            directory = %self.directory.display(),
            objects = snapshot.objects.len(),
            problems = snapshot.problems.len(),
        );
        self.snapshots.send_replace(Arc::new(snapshot));
    }
}

/// Waits until no change has come for a while.
async fn settle(changed: &Notify) {
    let latest = Instant::now() + LATEST;
    loop {
        let quiet = (Instant::now() + QUIET).min(latest);
        if timeout_at(quiet, changed.notified()).await.is_err() || Instant::now() >= latest {
            sleep_until(quiet).await;
            return;
        }
    }
}

/// What each file of the directory holds, or why the directory can't be read.
fn read_directory(directory: &Path) -> Result<BTreeMap<PathBuf, Reading>, String> {
    let explain = |error: std::io::Error| format!("can't read the directory: {error}");
    let mut readings = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(explain)? {
        let entry = entry.map_err(explain)?;
        let path = directory.join(entry.file_name());
        if !is_manifest(&path) {
            continue;
        }
        match read_file(&path) {
            Ok(Some(text)) => readings.insert(path, Ok(text)),
            Ok(None) => None,
            Err(reason) => readings.insert(path, Err(reason)),
        };
    }
    Ok(readings)
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.to_string_lossy().starts_with('.'));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// None for a file that is gone by now, and for what is no file.
fn read_file(path: &Path) -> Result<Option<String>, String> {
    let explain = |error: std::io::Error| format!("can't read it: {error}");
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(explain)?,
    };
    if !metadata.is_file() {
        return Ok(None);
    }
    if metadata.len() > MAX_BYTES {
        return Err(format!("is larger than {MAX_BYTES} bytes; split it"));
    }
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(explain(error)),
    }
}
