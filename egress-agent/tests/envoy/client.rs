//! A client of the gateway: HTTP/1.1 over mutual TLS, sent as it is given.

use std::io::{Read, Write};
use std::net::TcpStream;

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn is_denied(&self) -> bool {
        self.status == 403
            && self.body == "RBAC: access denied"
            && self.head.contains("\r\ncontent-type: text/plain\r\n")
            && self.head.contains("\r\ncontent-length: 19\r\n")
    }
}

/// TLS to the gateway.
pub type Session = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// A connection that takes requests.
pub struct Connection<S = Session> {
    stream: S,
}

impl Connection {
    /// The handshake comes with the first use.
    pub fn new(session: rustls::ClientConnection, stream: TcpStream) -> Self {
        Self {
            stream: rustls::StreamOwned::new(session, stream),
        }
    }

    /// What the gateway showed.
    pub fn server_certificate(&mut self) -> Vec<u8> {
        self.stream
            .conn
            .complete_io(&mut self.stream.sock)
            .expect("a handshake");
        let chain = self.stream.conn.peer_certificates().expect("a certificate");
        chain[0].to_vec()
    }
}

impl<S: Read + Write> Connection<S> {
    pub fn over(stream: S) -> Self {
        Self { stream }
    }

    pub fn ask(
        &mut self,
        method: &str,
        authority: &str,
        path: &str,
        headers: &str,
    ) -> std::io::Result<Answer> {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: {authority}\r\n{headers}\r\n");
        self.stream.write_all(request.as_bytes())?;
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            if let Some(answer) = parse(&text, method == "HEAD") {
                return Ok(answer);
            }
            match self.stream.read(&mut buffer)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => text.extend_from_slice(&buffer[..read]),
            }
        }
    }
}

/// The answer, once it is whole.
fn parse(bytes: &[u8], head_only: bool) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let head = format!("{head}\r\n");
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.trim().parse().unwrap_or(0));
    (head_only || body.len() >= length).then(|| Answer {
        status,
        head: head.clone(),
        body: body.to_owned(),
    })
}
