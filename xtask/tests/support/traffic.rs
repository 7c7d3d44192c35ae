//! Traffic that goes on in the background while things happen to the agent.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use xtask::node::{Netns, Pod, plan};

use super::{Cluster, RATINGS_SERVICE};

/// In every forbidden packet.
pub const SECRET: &str = "secret";
const INBOUND_PORT: u16 = 7000;
const SERVICE_PORT: u16 = 9080;
/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(3);

/// Requests from `web` to a Service, one connection from outside to `web`, and forbidden datagrams
/// from `web`, in both families, until told to stop.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    allowed: Vec<JoinHandle<u64>>,
    forbidden: Vec<JoinHandle<()>>,
    sent: Arc<AtomicU64>,
}

impl Traffic {
    pub fn start(cluster: &Cluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (mut allowed, mut forbidden) = (Vec::new(), Vec::new());
        echo(cluster.ratings.netns(), SERVICE_PORT);
        echo(cluster.web.netns(), INBOUND_PORT);
        for ip in plan::service(RATINGS_SERVICE).all() {
            let stream = connect(cluster.web.netns(), ip, SERVICE_PORT);
            allowed.push(talk(stream, stop.clone()));
        }
        for ip in plan::pod(11).all() {
            let stream = connect(cluster.node.outside(), ip, INBOUND_PORT);
            allowed.push(talk(stream, stop.clone()));
        }
        for ip in plan::OUTSIDE.all() {
            forbidden.push(leak(cluster.web.netns(), ip, stop.clone(), sent.clone()));
        }
        Self {
            stop,
            allowed,
            forbidden,
            sent,
        }
    }

    /// Stops it; requests answered by each connection, and forbidden packets sent.
    ///
    /// # Panics
    /// If a request was not answered in time.
    pub fn stop(self) -> (Vec<u64>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let answered = self
            .allowed
            .into_iter()
            .map(|it| it.join().expect("answered"))
            .collect();
        for thread in self.forbidden {
            thread.join().expect("a sender");
        }
        (answered, self.sent.load(Ordering::Relaxed))
    }
}

/// Sends outside from a process of the pod, in both families: the gate holds it before its hooks do.
pub fn tries(pod: &Pod) {
    for ip in plan::OUTSIDE.all() {
        let to = SocketAddr::new(ip, plan::OUTSIDE_UDP).to_string();
        let what = ["udp", "--to", &to, "--payload", SECRET];
        let probe = [&what[..], &["--timeout-ms", "30"]].concat();
        pod.probe(&probe).expect("a probe");
    }
}

/// Answers every line with itself, in both families, for as long as the test runs.
fn echo(netns: &Netns, port: u16) {
    let listener = netns
        .within(move || Ok(TcpListener::bind(("::", port))?))
        .expect("listen");
    spawn(move || {
        for stream in listener.incoming().flatten() {
            spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().expect("a socket"));
                let (mut stream, mut line) = (stream, String::new());
                while lines.read_line(&mut line).is_ok_and(|n| n > 0) {
                    if stream.write_all(line.as_bytes()).is_err() {
                        return;
                    }
                    line.clear();
                }
            });
        }
    });
}

fn connect(netns: &Netns, ip: IpAddr, port: u16) -> TcpStream {
    let connected = netns.within(move || {
        let stream = TcpStream::connect_timeout(&SocketAddr::new(ip, port), PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    });
    connected.unwrap_or_else(|error| panic!("{ip}: {error:#}"))
}

/// One request after another over one connection; each must be answered with its own number.
fn talk(mut stream: TcpStream, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    spawn(move || {
        let mut lines = BufReader::new(stream.try_clone().expect("a socket"));
        let (mut number, mut line) = (0, String::new());
        while !stop.load(Ordering::Relaxed) {
            let request = format!("{number}\n");
            stream
                .write_all(request.as_bytes())
                .expect("send a request");
            line.clear();
            lines
                .read_line(&mut line)
                .unwrap_or_else(|error| panic!("request {number}: {error}"));
            assert_eq!(line, request);
            number += 1;
            sleep(Duration::from_millis(2));
        }
        number
    })
}

fn leak(netns: &Netns, ip: IpAddr, stop: Arc<AtomicBool>, sent: Arc<AtomicU64>) -> JoinHandle<()> {
    let socket = netns.within(move || {
        let socket = UdpSocket::bind(if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(SocketAddr::new(ip, plan::OUTSIDE_UDP))?;
        Ok(socket)
    });
    let socket = socket.expect("a socket");
    spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let number = sent.fetch_add(1, Ordering::Relaxed);
            // An error would be an answer to an earlier one; sending goes on.
            let _ = socket.send(format!("{SECRET} {number}").as_bytes());
            sleep(Duration::from_millis(2));
        }
    })
}
