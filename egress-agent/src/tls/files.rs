//! Certificates from a directory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::identity::{Identity, IdentityError};
use super::source::Publisher;

/// The directory is read again so often, whatever is notified: symbolic links lead elsewhere, and
/// a good certificate expires without a change.
const POLL: Duration = Duration::from_secs(10);
/// While a certificate and its key are written one after the other they don't fit.
const QUIET: Duration = Duration::from_millis(200);
/// Larger files are refused.
const MAX_BYTES: u64 = 1 << 20;

pub(super) async fn follow(directory: &Path, mut publisher: Publisher) {
    let changed = Arc::new(Notify::new());
    let mut watcher = watcher(&changed);
    let mut poll = interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = publisher.closed() => return,
            () = changed.notified() => sleep(QUIET).await,
            _ = poll.tick() => {
                // It may have been made, or replaced by another of the same name.
                if let Some(watcher) = &mut watcher {
                    let _ = watcher.watch(directory, RecursiveMode::NonRecursive);
                }
            }
        }
        let from = directory.to_owned();
        let read = tokio::task::spawn_blocking(move || read(&from)).await;
        match read {
            Ok(Ok(identity)) => publisher.good(identity),
            Ok(Err(error)) => {
                publisher.bad(&directory.display().to_string(), &error.to_string());
            }
            Err(error) => publisher.bad(&directory.display().to_string(), &error.to_string()),
        }
    }
}

/// None where the kernel gives no notifications: then it is polled.
fn watcher(changed: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let changed = Arc::clone(changed);
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading causes events too.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            changed.notify_one();
        }
    })
    .ok()
}

fn read(directory: &Path) -> Result<Identity, IdentityError> {
    Identity::from_pem(
        &read_file(&directory.join("tls.crt"))?,
        &read_file(&directory.join("tls.key"))?,
        &read_file(&directory.join("ca.crt"))?,
    )
}

fn read_file(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let unreadable = |reason: String| IdentityError::Unreadable {
        file: path.display().to_string(),
        reason,
    };
    let length = std::fs::metadata(path)
        .map_err(|error| unreadable(error.to_string()))?
        .len();
    if length > MAX_BYTES {
        return Err(unreadable(format!("is larger than {MAX_BYTES} bytes")));
    }
    std::fs::read(path).map_err(|error| unreadable(error.to_string()))
}
