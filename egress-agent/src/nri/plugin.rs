//! Keeps a connection to the runtime, for as long as the agent lives.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::sleep;

use super::board::Board;
use super::metrics::NriMetrics;
use super::session::{self, Context, OnTimeout};

/// Where runtimes have their socket unless they are told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/nri/nri.sock";

/// Between a connection that has ended and the next: a runtime that restarts is back soon.
const AGAIN: Duration = Duration::from_millis(500);
/// Between looks for a socket that is not there.
const LOOK: Duration = Duration::from_secs(5);

/// How the agent is a plugin.
#[derive(Clone, Debug)]
pub struct Settings {
    pub socket: PathBuf,
    /// The socket was named: that it isn't there is worth a warning.
    pub expected: bool,
    /// A sandbox is held no longer than this.
    pub timeout: Duration,
    pub on_timeout: OnTimeout,
}

/// Connects, again and again, from the first pass on: until then no sandbox waits for the agent.
pub async fn follow(settings: Settings, board: Arc<Board>, metrics: NriMetrics) {
    board.first_pass().await;
    let context = Arc::new(Context {
        board,
        timeout: settings.timeout,
        on_timeout: settings.on_timeout,
        metrics,
    });
    // Each trouble is told once for as long as it lasts.
    let mut told = String::new();
    loop {
        let wait = match UnixStream::connect(&settings.socket).await {
            Ok(stream) => {
                let ended = session::run(stream, &context).await;
                context.metrics.set_connected(false);
                if let Err(error) = ended {
                    let error = error.to_string();
                    if error != told {
                        tracing::warn!(
                            event = "nri_disconnected",
                            error,
                            "until it is back the closed gate alone holds new pods"
                        );
                        told = error;
                    }
                }
                AGAIN
            }
            Err(error) => {
                let error = error.to_string();
                let socket = settings.socket.display();
                if error != told && settings.expected {
                    tracing::warn!(
                        event = "nri_unreachable", %socket, error,
                        "enable NRI in the container runtime, or set --nri-socket"
                    );
                } else if error != told {
                    tracing::info!(event = "nri_absent", %socket, error);
                }
                told = error;
                LOOK
            }
        };
        sleep(wait).await;
    }
}
