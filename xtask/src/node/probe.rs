//! One attempt to reach somebody, told as JSON. Runs inside pods.

use std::io::{BufReader, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::{http, pod, raw};

/// How an attempt went, from the client's side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// `answered`, `connected`, `sent`, `timeout`, `refused`, or `error`.
    pub outcome: String,
    /// Whom it tried to reach.
    #[serde(default)]
    pub peer: Option<SocketAddr>,
    /// HTTP status.
    #[serde(default)]
    pub status: Option<u16>,
    /// HTTP headers with lower-case names.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// HTTP body or UDP answer, as far as it is text.
    #[serde(default)]
    pub body: String,
    #[serde(default)]
    pub error: Option<String>,
    #[serde(default)]
    pub milliseconds: u128,
    /// Process that tried; what an event may name.
    #[serde(default)]
    pub pid: u32,
}

impl Answer {
    /// Whether something came back.
    pub fn answered(&self) -> bool {
        self.outcome == "answered" || self.outcome == "connected"
    }

    /// Value of an HTTP header; its name is lower-case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// What to try.
#[derive(Clone, Debug, Subcommand)]
pub enum Probe {
    /// GET over plain HTTP
    Http {
        /// Host name or address to connect to
        host: String,
        #[arg(long, default_value_t = 80)]
        port: u16,
        #[arg(long, default_value = "/get")]
        path: String,
        /// Host header, if it is not `host`
        #[arg(long)]
        authority: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// GET over mutual TLS, without a sidecar
    Mesh {
        #[arg(long)]
        to: SocketAddr,
        /// Directory of tls.crt and tls.key
        #[arg(long)]
        certs: PathBuf,
        #[arg(long)]
        authority: String,
        #[arg(long, default_value = "/get")]
        path: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Open a TCP connection
    Tcp {
        #[arg(long)]
        to: SocketAddr,
        #[command(flatten)]
        wait: Wait,
    },
    /// Send a datagram and wait for the answer
    Udp {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        payload: String,
        /// To so many ports, from that on; the answer of the first is waited for
        #[arg(long, default_value_t = 1)]
        ports: u16,
        #[command(flatten)]
        wait: Wait,
    },
    /// Send a UDP packet from a raw socket, with an IP header of its own
    Raw(Forged),
    /// Send a UDP packet from a packet socket, past the IP stack
    Packet {
        #[command(flatten)]
        forged: Forged,
        /// Tag the frame with this VLAN
        #[arg(long)]
        vlan: Option<u16>,
    },
    /// Ask the cluster's DNS
    Dns {
        name: String,
        #[arg(long)]
        server: SocketAddr,
        #[arg(long)]
        tcp: bool,
        #[command(flatten)]
        wait: Wait,
    },
}

/// How long to wait.
#[derive(Clone, Copy, Debug, Args)]
pub struct Wait {
    #[arg(long, default_value_t = 2000)]
    pub timeout_ms: u64,
}

impl Wait {
    fn duration(self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// A UDP packet whose headers the sender writes.
#[derive(Clone, Debug, Args)]
pub struct Forged {
    #[arg(long)]
    pub from: IpAddr,
    #[arg(long)]
    pub to: SocketAddr,
    #[arg(long)]
    pub payload: String,
}

impl Probe {
    /// Tries it. What goes wrong on the way is part of the answer.
    pub fn run(&self) -> Answer {
        let start = Instant::now();
        let mut answer = self.attempt().unwrap_or_else(|error| failed(&error));
        answer.milliseconds = start.elapsed().as_millis();
        answer.pid = std::process::id();
        answer
    }

    fn attempt(&self) -> Result<Answer> {
        match self {
            Self::Http {
                host,
                port,
                path,
                authority,
                wait,
            } => {
                let peer = (host.as_str(), *port)
                    .to_socket_addrs()
                    .with_context(|| format!("cannot resolve {host}"))?
                    .next()
                    .with_context(|| format!("{host} has no address"))?;
                let authority = authority.as_ref().unwrap_or(host);
                get(peer, authority, path, wait.duration()).or_else(|error| {
                    Ok(Answer {
                        peer: Some(peer),
                        ..failed(&error)
                    })
                })
            }
            Self::Mesh {
                to,
                certs,
                authority,
                path,
                wait,
            } => {
                let response = super::mesh::get(*to, certs, authority, path, wait.duration())?;
                Ok(answered(*to, response))
            }
            Self::Tcp { to, wait } => {
                TcpStream::connect_timeout(to, wait.duration())?;
                Ok(Answer {
                    outcome: "connected".into(),
                    peer: Some(*to),
                    ..Answer::default()
                })
            }
            Self::Udp {
                to,
                payload,
                ports,
                wait,
            } => {
                let socket = UdpSocket::bind(any(*to))?;
                socket.set_read_timeout(Some(wait.duration()))?;
                for more in 1..*ports {
                    let port = to.port().wrapping_add(more);
                    // Refusals of earlier ones are no matter.
                    let _ = socket.send_to(payload.as_bytes(), (to.ip(), port));
                }
                socket.connect(to)?;
                socket.send(payload.as_bytes())?;
                let mut buffer = [0; 2048];
                let length = socket.recv(&mut buffer)?;
                Ok(Answer {
                    outcome: "answered".into(),
                    peer: Some(*to),
                    body: String::from_utf8_lossy(&buffer[..length]).into_owned(),
                    ..Answer::default()
                })
            }
            Self::Raw(forged) => {
                let packet = forged.packet()?;
                raw::send_raw(&packet, forged.to.ip())?;
                Ok(forged.sent())
            }
            Self::Packet { forged, vlan } => {
                let frame = raw::ethernet_frame(
                    pod::HOST_MAC_BYTES,
                    own_mac("eth0")?,
                    *vlan,
                    &forged.packet()?,
                );
                raw::send_frame("eth0", &frame)?;
                Ok(forged.sent())
            }
            Self::Dns {
                name,
                server,
                tcp,
                wait,
            } => {
                let addresses = super::dns::ask(name, *server, *tcp, wait.duration())?;
                Ok(Answer {
                    outcome: "answered".into(),
                    peer: Some(*server),
                    body: addresses
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(" "),
                    ..Answer::default()
                })
            }
        }
    }
}

impl Forged {
    pub(crate) fn packet(&self) -> Result<Vec<u8>> {
        self.packet_of(self.payload.as_bytes())
    }

    /// The same with another payload.
    pub(crate) fn packet_of(&self, payload: &[u8]) -> Result<Vec<u8>> {
        raw::udp_packet(self.from, self.to.ip(), self.to.port(), payload)
    }

    fn sent(&self) -> Answer {
        Answer {
            outcome: "sent".into(),
            peer: Some(self.to),
            ..Answer::default()
        }
    }
}

pub(crate) fn any(like: SocketAddr) -> SocketAddr {
    if like.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0u16; 8], 0).into()
    }
}

fn get(peer: SocketAddr, host: &str, path: &str, wait: Duration) -> Result<Answer> {
    let stream = TcpStream::connect_timeout(&peer, wait)?;
    stream.set_read_timeout(Some(wait))?;
    http::write_request(&mut &stream, host, path)?;
    let response =
        http::read(&mut BufReader::new(&stream))?.context("the connection was closed")?;
    Ok(answered(peer, response))
}

fn answered(peer: SocketAddr, response: http::Message) -> Answer {
    Answer {
        outcome: "answered".into(),
        peer: Some(peer),
        status: response.status(),
        body: String::from_utf8_lossy(&response.body).into_owned(),
        headers: response.headers,
        ..Answer::default()
    }
}

fn failed(error: &anyhow::Error) -> Answer {
    let kind = error
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind);
    let outcome = match kind {
        Some(ErrorKind::TimedOut | ErrorKind::WouldBlock) => "timeout",
        Some(ErrorKind::ConnectionRefused) => "refused",
        _ => "error",
    };
    Answer {
        outcome: outcome.into(),
        error: Some(format!("{error:#}")),
        ..Answer::default()
    }
}

fn own_mac(device: &str) -> Result<[u8; 6]> {
    // Not from /sys: that shows the devices of the namespace it was mounted in.
    let addresses = nix::ifaddrs::getifaddrs().context("cannot list devices")?;
    addresses
        .filter(|interface| interface.interface_name == device)
        .find_map(|interface| interface.address?.as_link_addr()?.addr())
        .with_context(|| format!("{device} has no MAC address"))
}
