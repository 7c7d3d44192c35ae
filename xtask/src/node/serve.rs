//! Servers of the miniature world: the outside host, and ordinary workloads.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use super::{http, plan};

/// The outside host: HTTP, HTTPS with `tls.crt` and `tls.key` of a directory, and UDP echo.
pub(crate) fn outside(certificates: &Path) -> Result<()> {
    let tls = Arc::new(tls(certificates)?);
    let https = listen(plan::OUTSIDE_HTTPS)?;
    accept(https, move |stream| {
        let peer = stream.peer_addr()?;
        let session = ServerConnection::new(Arc::clone(&tls))?;
        answer_requests(
            StreamOwned::new(session, stream),
            peer,
            "https",
            plan::OUTSIDE_NAME,
        )
    });
    let http = listen(plan::OUTSIDE_HTTP)?;
    accept(http, |stream| {
        let peer = stream.peer_addr()?;
        answer_requests(stream, peer, "http", plan::OUTSIDE_NAME)
    });
    echo(plan::OUTSIDE_UDP)
}

/// A workload: answers HTTP requests and echoes datagrams on one port.
pub(crate) fn workload(name: &str, port: u16) -> Result<()> {
    let listener = listen(port)?;
    let own = name.to_owned();
    accept(listener, move |stream| {
        let peer = stream.peer_addr()?;
        answer_requests(stream, peer, "http", &own)
    });
    echo(port)
}

fn everywhere(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind(everywhere(port)).with_context(|| format!("cannot listen on port {port}"))
}

fn accept<F>(listener: TcpListener, serve: F)
where
    F: Fn(TcpStream) -> Result<()> + Send + Sync + 'static,
{
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || {
                if let Err(error) = serve(stream) {
                    eprintln!("a connection: {error:#}");
                }
            });
        }
    });
}

fn echo(port: u16) -> Result<()> {
    let socket = UdpSocket::bind(everywhere(port))
        .with_context(|| format!("cannot listen on UDP port {port}"))?;
    let mut buffer = vec![0; 65536];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).context("cannot receive")?;
        // The client may be gone; the next one is not.
        let _ = socket.send_to(&buffer[..length], from);
    }
}

/// Answers like httpbin's `/get`: what was asked, by whom.
fn answer_requests<S: Read + Write>(
    stream: S,
    peer: SocketAddr,
    scheme: &str,
    name: &str,
) -> Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = http::read(&mut stream)? {
        let host = request.header("host").unwrap_or(name).to_owned();
        let headers: serde_json::Map<String, serde_json::Value> = request
            .headers
            .iter()
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect();
        let body = json!({
            "served_by": name,
            "origin": peer.ip().to_canonical(),
            "url": format!("{scheme}://{host}{}", request.path()),
            "headers": headers,
        });
        http::write_response(stream.get_mut(), &body.to_string())?;
    }
    Ok(())
}

fn tls(certificates: &Path) -> Result<ServerConfig> {
    let pem = |name: &str| {
        let path = certificates.join(name);
        File::open(&path).with_context(|| format!("cannot open {}", path.display()))
    };
    let chain = CertificateDer::pem_reader_iter(pem("tls.crt")?)
        .collect::<Result<Vec<_>, _>>()
        .context("tls.crt is no certificate")?;
    let key = PrivateKeyDer::from_pem_reader(pem("tls.key")?).context("tls.key is no key")?;
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("TLS versions")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the certificate does not fit its key")
}
