//! A connection of a caller who has proven who it is: it is served, told to go, and ended.

use std::convert::Infallible;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::server::TlsStream;
use tonic::Status;
use tonic::service::Routes;
use tower::ServiceExt as _;

use super::Caller;
use super::accept::Watcher;

/// Questions at once on one connection.
const MAX_STREAMS: u32 = 512;
/// All headers of one call, in bytes.
const MAX_HEADERS: u32 = 16 << 10;
/// From a call's headers to the beginning of its answer. Envoy waits less.
const CALL_TIME: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection is told to go after so long, so that certificates and authorities that have
/// changed are looked at again.
const MAX_AGE: Duration = Duration::from_mins(30);
/// What is under way then may take so long; configuration streams, which never end by themselves,
/// are cut.
const GRACE: Duration = Duration::from_secs(30);

/// How every connection is served.
pub(super) type Http2 = http2::Builder<TokioExecutor>;

pub(super) fn http2() -> Http2 {
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        // A gateway that begins may ask more at once than it is granted, before it hears of that:
        // what is too much is refused, and is no reason to end the connection.
        .max_local_error_reset_streams(None)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    http2
}

/// A connection that has shaken hands.
pub struct Connection {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) caller: Caller,
    /// It ends after so long at the latest: the caller's certificate has expired then, or a
    /// stranger has had its time.
    pub(super) left: Duration,
    pub(super) watcher: Arc<dyn Watcher>,
    /// Held as long as the connection stands.
    pub(super) permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("caller", &self.caller)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Answers calls until the caller goes, or its time is over. It is told to go (GOAWAY) before
    /// that, and when `stopping` changes, so that no call of a gateway is cut off.
    pub(super) async fn serve(
        self,
        http2: Http2,
        routes: Routes,
        mut stopping: watch::Receiver<bool>,
    ) {
        let Self {
            stream,
            caller,
            left,
            watcher,
            permits: _permits,
        } = self;
        let _closed = Closed(watcher);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(caller.clone());
            let answer = routes.clone().oneshot(request);
            async move {
                Ok::<_, Infallible>(match timeout(CALL_TIME, answer).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(never)) => match never {},
                    Err(_) => Status::deadline_exceeded("the call took too long").into_http(),
                })
            }
        });
        let (told, ended) = times(left);
        let begin = Instant::now();
        let mut serving = pin!(http2.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            // How it ended is the caller's matter.
            _ = serving.as_mut() => return,
            () = sleep_until(begin + told) => {}
            _ = stopping.wait_for(|stop| *stop) => {}
        }
        serving.as_mut().graceful_shutdown();
        tokio::select! {
            _ = serving => {}
            () = sleep_until(begin + ended) => {}
        }
    }
}

/// When a connection is told to go, and when it ends whatever is under way.
fn times(left: Duration) -> (Duration, Duration) {
    let grace = GRACE.min(left / 4);
    let told = MAX_AGE.min(left.saturating_sub(grace));
    (told, told + grace)
}

/// Says that the connection is no more.
struct Closed(Arc<dyn Watcher>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.closed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_told_to_go_before_their_certificate_expires() {
        let seconds = Duration::from_secs;
        for (left, told, ended) in [
            (86_400, 1800, 1830),
            (1830, 1800, 1830),
            (1000, 970, 1000),
            (40, 30, 40),
            (4, 3, 4),
            (0, 0, 0),
        ] {
            assert_eq!(
                times(seconds(left)),
                (seconds(told), seconds(ended)),
                "{left}"
            );
        }
    }
}
