//! Ports for servers that must know theirs before they run.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port of loopback that nobody has, below those that the kernel gives to clients: nobody takes it
/// by chance before it is used.
pub fn free_port() -> u16 {
    // Processes begin apart from each other.
    let first = 10_000 + u16::try_from(std::process::id() % 2000).expect("small") * 10;
    for _ in 0..2000 {
        let port = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000 + 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of loopback is free");
}
