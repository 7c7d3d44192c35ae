//! As much HTTP/1.1 as a scraper and a kubelet's probe need: one GET a connection. In the clear on
//! loopback, to others over mutual TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use super::metrics::Metrics;
use crate::tls::{Identities, MinVersion, server_config};

/// Bytes of a request's head; a scraper's is far smaller.
const MAX_HEAD: usize = 8192;
/// For the whole exchange.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at once.
const CONNECTIONS: usize = 16;
/// After a failed `accept`, before the next.
const PAUSE: Duration = Duration::from_millis(200);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
#[error("can't serve metrics at {address}: {error}; choose another --metrics-address")]
pub struct HttpError {
    address: SocketAddr,
    #[source]
    error: io::Error,
}

/// A bound address that will serve `/metrics`.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    /// Clients need a certificate of the same authorities; none is in the clear.
    identities: Option<Identities>,
}

impl Server {
    pub async fn bind(address: SocketAddr) -> Result<Self, HttpError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| HttpError { address, error })?;
        Ok(Self {
            listener,
            identities: None,
        })
    }

    /// Takes only clients that have a certificate of an authority of the latest identity; nobody
    /// before there is one.
    #[must_use]
    pub fn over_tls(mut self, identities: Identities) -> Self {
        self.identities = Some(identities);
        self
    }

    /// Where it listens: the port is known only now if 0 was asked for.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers for ever; drop the future to stop.
    pub async fn run(self, metrics: Arc<Metrics>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let place = places.clone().acquire_owned().await;
            let Ok(place) = place else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let metrics = metrics.clone();
                    let identities = self.identities.clone();
                    tokio::spawn(async move {
                        // A scraper that goes away or dawdles is its own problem.
                        let _ = tokio::time::timeout(PATIENCE, async {
                            match identities {
                                None => answer(stream, &metrics).await,
                                Some(identities) => {
                                    answer_over_tls(stream, &identities, &metrics).await
                                }
                            }
                        })
                        .await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(event = "metrics-accept-failed", %error);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn answer_over_tls(
    stream: TcpStream,
    identities: &Identities,
    metrics: &Arc<Metrics>,
) -> io::Result<()> {
    // Not held while it waits: certificates are followed meanwhile.
    let identity = identities.borrow().clone();
    let Some(identity) = identity else {
        return Ok(());
    };
    let mut config = server_config(&identity, MinVersion::default()).map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
    answer(stream, metrics).await
}

async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    metrics: &Arc<Metrics>,
) -> io::Result<()> {
    let head = read_head(&mut stream).await?;
    let (status, kind, body) = match route(&head) {
        Route::Metrics => {
            let metrics = metrics.clone();
            // It reads maps: some milliseconds that other tasks shall not wait for.
            match tokio::task::spawn_blocking(move || metrics.render()).await {
                Ok(Ok(text)) => ("200 OK", OPENMETRICS, text),
                Ok(Err(_)) | Err(_) => (
                    "500 Internal Server Error",
                    PLAIN,
                    "the metrics could not be written\n".to_owned(),
                ),
            }
        }
        Route::Alive if is_alive(metrics.stuck_for()) => ("200 OK", PLAIN, "ok\n".to_owned()),
        Route::Alive => (
            "503 Service Unavailable",
            PLAIN,
            "the agent's loop is stuck in a pass\n".to_owned(),
        ),
        Route::Ready if metrics.has_synced() => ("200 OK", PLAIN, "ok\n".to_owned()),
        Route::Ready => (
            "503 Service Unavailable",
            PLAIN,
            "the kernel is not yet as desired; the log says what is missing\n".to_owned(),
        ),
        Route::NotFound => (
            "404 Not Found",
            PLAIN,
            "here are /metrics, /healthz and /readyz\n".to_owned(),
        ),
        Route::NotAllowed => (
            "405 Method Not Allowed\r\nAllow: GET",
            PLAIN,
            "only GET\n".to_owned(),
        ),
        Route::Bad => ("400 Bad Request", PLAIN, "not HTTP/1\n".to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Reads up to the empty line; less if the peer ends or goes on for too long.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while head.len() < MAX_HEAD && !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            break;
        }
        head.extend_from_slice(&chunk[..read]);
    }
    Ok(head)
}

/// A pass asks no API server and waits for nobody: whoever waits for objects goes round meanwhile. One
/// that takes so long will not end, and an agent may be killed at any moment.
const STUCK: Duration = Duration::from_mins(10);

fn is_alive(stuck_for: Duration) -> bool {
    stuck_for < STUCK
}

#[derive(Debug, PartialEq, Eq)]
enum Route {
    Metrics,
    /// Whether the agent's loop goes round.
    Alive,
    /// Whether this agent has brought the kernel in step once.
    Ready,
    NotFound,
    NotAllowed,
    Bad,
}

fn route(head: &[u8]) -> Route {
    let whole = head.windows(4).any(|window| window == b"\r\n\r\n");
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let Ok(line) = str::from_utf8(line) else {
        return Route::Bad;
    };
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Route::Bad;
    };
    if !whole || !version.starts_with("HTTP/1.") {
        return Route::Bad;
    }
    let path = target.split('?').next().unwrap_or_default();
    match (path, method) {
        ("/metrics", "GET") => Route::Metrics,
        ("/healthz", "GET") => Route::Alive,
        ("/readyz", "GET") => Route::Ready,
        ("/metrics" | "/healthz" | "/readyz", _) => Route::NotAllowed,
        _ => Route::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn requests() {
        let tail = "Host: x\r\n\r\n";
        let of = |line: &str| route(format!("{line}\r\n{tail}").as_bytes());
        assert_eq!(of("GET /metrics HTTP/1.1"), Route::Metrics);
        assert_eq!(of("GET /metrics?name=x HTTP/1.0"), Route::Metrics);
        assert_eq!(of("POST /metrics HTTP/1.1"), Route::NotAllowed);
        assert_eq!(of("GET /healthz HTTP/1.1"), Route::Alive);
        assert_eq!(of("GET /readyz HTTP/1.1"), Route::Ready);
        assert_eq!(of("PUT /readyz HTTP/1.1"), Route::NotAllowed);
        assert_eq!(of("GET / HTTP/1.1"), Route::NotFound);
        assert_eq!(of("GET /metrics HTTP/2"), Route::Bad);
        assert_eq!(of("hello"), Route::Bad);
        assert_eq!(route(b"GET /metrics HTTP/1.1\r\n"), Route::Bad);
    }

    async fn serve(metrics: Arc<Metrics>) -> SocketAddr {
        let server = Server::bind(([127, 0, 0, 1], 0).into())
            .await
            .expect("bind");
        let address = server.address().expect("address");
        tokio::spawn(server.run(metrics));
        address
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("answer");
        text
    }

    #[tokio::test]
    async fn ready_is_who_has_been_in_step_once() {
        let metrics = Metrics::new(None);
        let address = serve(metrics.clone()).await;
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200 "));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503 "));
        metrics.reconciled(Duration::from_millis(1), 0, 1);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503 "));
        metrics.reconciled(Duration::from_millis(1), 1, 0);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn a_loop_that_goes_round_is_alive_and_one_that_is_stuck_is_not() {
        assert!(is_alive(Duration::from_mins(9)));
        assert!(!is_alive(STUCK));
        let pause = Duration::from_millis(20);
        let begin = Instant::now();
        let metrics = Metrics::new(None);
        std::thread::sleep(pause);
        assert!(metrics.stuck_for() >= pause);
        metrics.goes_round();
        // Counted from then on, however long this takes.
        assert!(metrics.stuck_for() + pause <= begin.elapsed());
    }

    #[tokio::test]
    async fn a_scrape() {
        let address = serve(Metrics::new(None)).await;
        let text = get(address, "/metrics").await;
        let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains(&format!("Content-Length: {}", body.len())),
            "{head}"
        );
        assert!(body.ends_with("# EOF\n"), "{body}");
    }
}
