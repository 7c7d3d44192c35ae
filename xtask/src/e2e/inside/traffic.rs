//! Traffic that goes on while the agent is restarted: connections that are allowed and must stand,
//! and packets that are forbidden and must not get out.

use std::io::BufReader;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::node::mesh::Session;
use crate::node::probe::any;
use crate::node::{http, plan};

/// Between two requests on a connection.
const EVERY: Duration = Duration::from_millis(50);
/// Between two forbidden datagrams.
const FORBIDDEN_EVERY: Duration = Duration::from_millis(5);
/// How long an answer may take before the connection counts as broken.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, clap::Args)]
pub struct Traffic {
    /// Workload of the cluster, asked by HTTP on one connection
    #[arg(long)]
    keep: SocketAddr,
    /// Gateway, asked for httpbin.org by mutual TLS on one connection
    #[arg(long, requires = "certs")]
    gateway: Option<SocketAddr>,
    /// Directory of tls.crt and tls.key
    #[arg(long)]
    certs: Option<PathBuf>,
    /// Where forbidden datagrams go
    #[arg(long)]
    forbidden: SocketAddr,
    #[arg(long)]
    payload: String,
    /// Stops when this file is there
    #[arg(long)]
    until: PathBuf,
    /// Stops at the latest after so many seconds
    #[arg(long, default_value_t = 300)]
    limit_s: u64,
}

/// How it went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The connection to the workload.
    pub kept: Connection,
    /// The connection to the gateway, where there is one.
    pub gateway: Option<Connection>,
    /// Forbidden datagrams that the pod's own stack took.
    pub forbidden_sent: u64,
    pub seconds: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    pub requests: u64,
    /// Longest time that an answer took.
    pub slowest_ms: u128,
    /// Why it broke; absent if it did not.
    pub broke: Option<String>,
}

impl Connection {
    /// Whether it stood, and was used.
    pub fn stood(&self) -> bool {
        self.broke.is_none() && self.requests > 0
    }
}

impl Traffic {
    pub fn run(&self) -> Result<Summary> {
        // From an earlier time.
        if self.until.exists() {
            std::fs::remove_file(&self.until).context("cannot begin anew")?;
        }
        let start = Instant::now();
        thread::scope(|scope| {
            let kept = scope.spawn(|| self.repeat(start, self.workload()));
            let gateway = scope.spawn(|| {
                let certs = self.certs.as_ref()?;
                Some(self.repeat(start, mesh(self.gateway?, certs)))
            });
            let forbidden = scope.spawn(|| self.forbidden(start));
            let panicked = |_| anyhow!("a thread panicked");
            Ok(Summary {
                kept: kept.join().map_err(panicked)?,
                gateway: gateway.join().map_err(panicked)?,
                forbidden_sent: forbidden.join().map_err(panicked)??,
                seconds: start.elapsed().as_secs(),
            })
        })
    }

    fn goes_on(&self, start: Instant) -> bool {
        start.elapsed().as_secs() < self.limit_s && !self.until.exists()
    }

    fn repeat(
        &self,
        start: Instant,
        ask: Result<impl FnMut() -> Result<http::Message>>,
    ) -> Connection {
        let mut connection = Connection::default();
        let mut ask = match ask {
            Ok(ask) => ask,
            Err(error) => {
                connection.broke = Some(format!("{error:#}"));
                return connection;
            }
        };
        while self.goes_on(start) {
            let asked = Instant::now();
            let answer = ask().map(|answer| answer.status());
            connection.slowest_ms = connection.slowest_ms.max(asked.elapsed().as_millis());
            connection.requests += 1;
            connection.broke = match answer {
                Ok(Some(200)) => {
                    sleep(EVERY);
                    continue;
                }
                Ok(status) => Some(format!("answer {status:?}")),
                Err(error) => Some(format!("{error:#}")),
            };
            break;
        }
        connection
    }

    fn workload(&self) -> Result<impl FnMut() -> Result<http::Message>> {
        let stream = TcpStream::connect_timeout(&self.keep, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        Ok(move || {
            http::write_request(stream.get_mut(), "workload", "/")?;
            http::read(&mut stream)?.context("the connection was closed")
        })
    }

    fn forbidden(&self, start: Instant) -> Result<u64> {
        let socket = UdpSocket::bind(any(self.forbidden))?;
        let mut sent = 0;
        while self.goes_on(start) {
            // With `onDeny: Reject` an earlier one's refusal is an error here.
            let went = socket.send_to(self.payload.as_bytes(), self.forbidden);
            sent += u64::from(went.is_ok());
            sleep(FORBIDDEN_EVERY);
        }
        Ok(sent)
    }
}

fn mesh(
    gateway: SocketAddr,
    certs: &std::path::Path,
) -> Result<impl FnMut() -> Result<http::Message> + use<>> {
    let mut session = Session::open(gateway, certs, plan::OUTSIDE_NAME, PATIENCE)?;
    Ok(move || session.get("/get"))
}
