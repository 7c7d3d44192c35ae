//! The sockets of a process, and what a stranger gets from one.

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, Stream};

const PATIENCE: Duration = Duration::from_secs(3);
/// State of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Who can send something to a socket first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listens {
    /// A connection, a Unix socket, the kernel's netlink.
    Nobody,
    /// A TCP port of a loopback address.
    Loopback(u16),
    /// A TCP port.
    Everybody(u16),
    /// Of another protocol.
    Otherwise(&'static str),
}

/// All sockets of a process.
pub fn of(pid: u32) -> Vec<Listens> {
    let mut known: HashMap<u64, Listens> = HashMap::new();
    for (table, column, make) in TABLES {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let Some(inode) = fields.get(column).and_then(|inode| inode.parse().ok()) {
                known.insert(inode, make(&fields));
            }
        }
    }
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
    let mut found = Vec::new();
    for descriptor in descriptors.flatten() {
        let Ok(target) = fs::read_link(descriptor.path()) else {
            continue;
        };
        let target = target.display().to_string();
        let Some(inode) = target.strip_prefix("socket:[") else {
            continue;
        };
        let inode = inode.trim_end_matches(']').parse().expect("an inode");
        let socket = known.get(&inode).cloned();
        found.push(socket.unwrap_or(Listens::Otherwise("a kind that is not listed")));
    }
    found
}

type Make = fn(&[&str]) -> Listens;

/// Tables below `/proc/<pid>/net`, the column of the inode, and what a line means.
const TABLES: [(&str, usize, Make); 10] = [
    ("tcp", 9, tcp),
    ("tcp6", 9, tcp),
    ("udp", 9, |_| Listens::Otherwise("UDP")),
    ("udp6", 9, |_| Listens::Otherwise("UDP over IPv6")),
    ("raw", 9, |_| Listens::Otherwise("raw IP")),
    ("raw6", 9, |_| Listens::Otherwise("raw IPv6")),
    ("icmp", 9, |_| Listens::Otherwise("ICMP")),
    ("packet", 8, |_| Listens::Otherwise("frames")),
    ("unix", 6, |_| Listens::Nobody),
    ("netlink", 9, |_| Listens::Nobody),
];

fn tcp(fields: &[&str]) -> Listens {
    let (address, port) = fields[1].split_once(':').expect("address and port");
    if fields[3] != LISTEN {
        return Listens::Nobody;
    }
    let port = u16::from_str_radix(port, 16).expect("a port");
    // Words in the byte order of the machine.
    let loopback = ["0100007F", "00000000000000000000000001000000"].contains(&address);
    if loopback {
        Listens::Loopback(port)
    } else {
        Listens::Everybody(port)
    }
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

/// Whatever comes back over TLS, or why nothing does; with the certificate of this directory.
pub fn ask_over_tls(port: u16, certificate: Option<&Path>) -> Result<String> {
    let config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let config = match certificate {
        None => config.with_no_client_auth(),
        Some(directory) => {
            let chain = CertificateDer::pem_file_iter(directory.join("tls.crt"))?;
            let key = PrivateKeyDer::from_pem_file(directory.join("tls.key"))?;
            config.with_client_auth_cert(chain.collect::<Result<_, _>>()?, key)?
        }
    };
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from("agent")?)?;
    let mut stream = connect(port)?;
    let mut tls = Stream::new(&mut client, &mut stream);
    let _ = tls.write_all(REQUEST);
    let mut answer = Vec::new();
    let end = tls.read_to_end(&mut answer);
    Ok(format!("{}{end:?}", String::from_utf8_lossy(&answer)))
}

/// Whatever comes back in the clear.
pub fn ask_in_the_clear(port: u16) -> Result<String> {
    let mut stream = connect(port)?;
    stream.write_all(REQUEST)?;
    let mut answer = [0; 512];
    Ok(match stream.read(&mut answer) {
        Ok(length) => String::from_utf8_lossy(&answer[..length]).into_owned(),
        Err(error) => error.to_string(),
    })
}

/// Takes every server for the right one: the server's side is tried here.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PSS_SHA256,
        ]
    }
}
