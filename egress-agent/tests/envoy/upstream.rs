//! An outside server: HTTPS on loopback that answers with what it was asked.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::mesh::{Leaf, provider};

/// Serves until the test ends; returns its port.
pub fn serve_tls(leaf: &Leaf) -> u16 {
    let config = Arc::new(tls(leaf));
    serve(move |stream| {
        let Ok(session) = rustls::ServerConnection::new(config.clone()) else {
            return;
        };
        answer(rustls::StreamOwned::new(session, stream));
    })
}

fn tls(leaf: &Leaf) -> rustls::ServerConfig {
    rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_no_client_auth()
        .with_single_cert(leaf.chain(), leaf.key())
        .expect("a pair")
}

/// The same, and the server names that it was asked for.
#[allow(dead_code, reason = "each test binary uses its own part")]
pub fn serve_tls_named(leaf: &Leaf) -> (u16, Arc<Mutex<Vec<String>>>) {
    let config = Arc::new(tls(leaf));
    let names = Arc::new(Mutex::new(Vec::new()));
    let seen = names.clone();
    let port = serve(move |mut stream| {
        let Ok(mut session) = rustls::ServerConnection::new(config.clone()) else {
            return;
        };
        // A client that does not believe us ends it.
        let _ = session.complete_io(&mut stream);
        let name = session.server_name().unwrap_or_default().to_owned();
        seen.lock().expect("nobody has panicked").push(name);
        answer(rustls::StreamOwned::new(session, stream));
    });
    (port, names)
}

/// The same without TLS.
pub fn serve_plain() -> u16 {
    serve(answer)
}

/// What [`serve_greeting`] says first.
pub const GREETING: &str = "220 welcome\r\n";

/// A server that speaks first, and keeps count of its connections.
pub fn serve_greeting() -> (u16, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    let port = serve(move |mut stream| {
        counter.fetch_add(1, Ordering::SeqCst);
        if stream.write_all(GREETING.as_bytes()).is_ok() {
            // Until the client has enough.
            let _ = io::copy(&mut stream, &mut io::sink());
        }
    });
    (port, connections)
}

fn serve(handle: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port of loopback");
    let port = listener.local_addr().expect("an address").port();
    let handle = Arc::new(handle);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handle = handle.clone();
            thread::spawn(move || handle(stream));
        }
    });
    port
}

/// Echoes the head of each request as the body of the answer.
fn answer(stream: impl Read + Write) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            match stream.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if line == "\r\n" => break,
                Ok(_) => head.push_str(&line),
            }
        }
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/x-echo\r\ncontent-length: {}\r\n\r\n{head}",
            head.len()
        );
        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
        if stream.get_mut().flush().is_err() {
            return;
        }
    }
}
