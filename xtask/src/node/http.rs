//! As much of HTTP/1.1 as the probes and the servers of the demo need.

use std::io::{self, BufRead, Read, Write};

use anyhow::{Context as _, Result, bail};

/// A request or response head: its first line, then headers with lower-case names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub first: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Message {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Status code of a response.
    pub fn status(&self) -> Option<u16> {
        self.first.split(' ').nth(1)?.parse().ok()
    }

    /// Path of a request.
    pub fn path(&self) -> &str {
        self.first.split(' ').nth(1).unwrap_or("/")
    }
}

/// Longest head and body taken, in bytes.
const LIMIT: u64 = 1 << 20;

/// Reads a whole message; `None` where the other side closed instead of sending one.
pub fn read(stream: &mut impl BufRead) -> Result<Option<Message>> {
    let mut message = Message::default();
    loop {
        let mut line = String::new();
        let length = stream.take(LIMIT).read_line(&mut line)?;
        let line = line.trim_end();
        match (length, message.first.is_empty(), line.is_empty()) {
            (0, true, _) => return Ok(None),
            (0, false, _) => bail!("the connection ended within a header"),
            // Empty lines ahead of the first one are allowed (RFC 9112, 2.2).
            (_, true, true) => {}
            (_, true, false) => line.clone_into(&mut message.first),
            (_, false, true) => break,
            (_, false, false) => {
                let (name, value) = line.split_once(':').context("a header without a colon")?;
                message
                    .headers
                    .push((name.to_lowercase(), value.trim().to_owned()));
            }
        }
    }
    read_body(stream, &mut message)?;
    Ok(Some(message))
}

fn read_body(stream: &mut impl BufRead, message: &mut Message) -> Result<()> {
    if message.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut line = String::new();
            stream.take(LIMIT).read_line(&mut line)?;
            let size = u64::from_str_radix(line.trim(), 16).context("a chunk without a size")?;
            stream
                .take(size.min(LIMIT))
                .read_to_end(&mut message.body)?;
            line.clear();
            stream.take(LIMIT).read_line(&mut line)?;
            if size == 0 {
                return Ok(());
            }
        }
    }
    if let Some(length) = message.header("content-length") {
        let length: u64 = length
            .parse()
            .context("a content-length that is no number")?;
        stream
            .take(length.min(LIMIT))
            .read_to_end(&mut message.body)?;
    }
    Ok(())
}

/// Writes a GET request.
pub fn write_request(stream: &mut impl Write, host: &str, path: &str) -> io::Result<()> {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: sallyport-probe\r\n\r\n"
    )?;
    stream.flush()
}

/// Writes a response with a JSON body.
pub fn write_response(stream: &mut impl Write, body: &str) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let mut bytes = Vec::new();
        write_request(&mut bytes, "httpbin.org", "/get").unwrap();
        write_response(&mut bytes, "{}").unwrap();
        let mut stream = bytes.as_slice();
        let request = read(&mut stream).unwrap().unwrap();
        assert_eq!(
            (request.path(), request.header("host")),
            ("/get", Some("httpbin.org"))
        );
        let response = read(&mut stream).unwrap().unwrap();
        assert_eq!(
            (response.status(), response.body.as_slice()),
            (Some(200), &b"{}"[..])
        );
        assert_eq!(read(&mut stream).unwrap(), None);
    }

    #[test]
    fn reads_chunks() {
        let mut stream: &[u8] =
            b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nRBA\r\n1\r\nC\r\n0\r\n\r\n";
        let response = read(&mut stream).unwrap().unwrap();
        assert_eq!(
            (response.status(), response.body.as_slice()),
            (Some(403), &b"RBAC"[..])
        );
    }

    #[test]
    fn a_head_cut_short_is_an_error() {
        let mut stream: &[u8] = b"HTTP/1.1 200 OK\r\nserver: envoy\r\n";
        assert!(read(&mut stream).is_err());
    }
}
