//! A thread with an event loop of its own, for what gateways wait for.
//!
//! A decision takes microseconds, and so does not share a thread with passes over the node, which
//! may take milliseconds. One thread also answers in batches what came in one read: everything that
//! is ready is decided before the connection is written to, where several threads would write each
//! answer by itself (a system call, a TLS record and a packet for each).

use std::future::Future;
use std::io;
use std::thread;

use tokio::runtime;
use tokio::sync::oneshot;

/// Runs `work` on a new thread. The receiver gets what it came to, or an error if it panicked. What
/// `work` has spawned ends with it.
///
/// # Errors
/// If the kernel gives no thread or no event loop.
pub fn spawn<F>(name: &str, work: F) -> io::Result<oneshot::Receiver<F::Output>>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (ended, end) = oneshot::channel();
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Nobody may be waiting for it.
            let _ = ended.send(runtime.block_on(work));
        })?;
    Ok(end)
}
