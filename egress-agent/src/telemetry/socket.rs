//! `agent.sock` in the run directory: whoever connects gets the recent events as JSON lines, then
//! those to come. A follower that can't keep up is told so and dropped.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast};
use tracing::{info, warn};

use super::flow::Notice;
use super::hub::Hub;

/// Name of the socket in the run directory.
pub const FILE: &str = "agent.sock";
/// Followers at once.
const FOLLOWERS: usize = 32;
/// A follower that takes nothing for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a failed `accept` (no descriptors left), before the next.
const PAUSE: Duration = Duration::from_millis(200);

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("can't make the socket {}: {error}", path.display())]
    Make {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error(
        "another agent answers at {}: stop it, or give this one its own --run-dir and --bpffs",
        path.display()
    )]
    InUse { path: PathBuf },
}

/// The listening socket. Its file is removed when it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Makes the socket, for root only. One that a killed agent left is replaced.
    ///
    /// # Errors
    /// If it can't be made, or somebody answers there.
    pub fn bind(run_dir: &Path) -> Result<Self, SocketError> {
        let path = run_dir.join(FILE);
        let failed = |error| SocketError::Make {
            path: path.clone(),
            error,
        };
        std::fs::create_dir_all(run_dir).map_err(failed)?;
        if is_answered(run_dir) {
            return Err(SocketError::InUse { path });
        }
        // Made under another name and then renamed, so that nobody finds it before its mode is set.
        let draft = run_dir.join(format!("{FILE}.new"));
        for stale in [&draft, &path] {
            match std::fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        let listener = UnixListener::bind(&draft).map_err(failed)?;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&draft, mode).map_err(failed)?;
        std::fs::rename(&draft, &path).map_err(failed)?;
        Ok(Self { listener, path })
    }

    /// Serves followers for ever; drop the future to stop.
    pub async fn run(self, hub: Arc<Hub>) {
        let places = Arc::new(Semaphore::new(FOLLOWERS));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(event = "socket-accept-failed", %error);
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                warn!(event = "follower-refused", followers = FOLLOWERS);
                continue;
            };
            let hub = hub.clone();
            tokio::spawn(async move {
                if let Err(End::Slow(lost)) = follow(stream, &hub).await {
                    info!(event = "follower-dropped", reason = "too slow", lost);
                }
                drop(place);
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already, or replaced by nobody: there is nothing to do about an error here.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether an agent runs: somebody answers at the socket.
pub fn is_answered(run_dir: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(run_dir.join(FILE)).is_ok()
}

/// Why a follower is let go.
enum End {
    /// It hung up.
    Closed,
    /// It fell behind by this many events; 0 if it took nothing at all.
    Slow(u64),
}

async fn follow(mut stream: UnixStream, hub: &Hub) -> Result<(), End> {
    let (recent, mut live) = hub.subscribe();
    for line in recent {
        send(&mut stream, &line).await?;
    }
    loop {
        match live.recv().await {
            Ok(line) => send(&mut stream, &line).await?,
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                let notice = Notice {
                    notice: format!("too slow: {lost} events were lost, connect again"),
                };
                if let Ok(line) = serde_json::to_string(&notice) {
                    send(&mut stream, &line).await?;
                }
                return Err(End::Slow(lost));
            }
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        }
    }
}

async fn send(stream: &mut UnixStream, line: &str) -> Result<(), End> {
    let bytes = format!("{line}\n");
    match tokio::time::timeout(PATIENCE, stream.write_all(bytes.as_bytes())).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Closed),
        Err(_) => Err(End::Slow(0)),
    }
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
