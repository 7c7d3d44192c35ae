//! What arrives at the outside host, seen on its device and not from what clients say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Netns;
use super::raw;

/// A packet that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero where the protocol has none, or in a later fragment.
    pub source_port: u16,
    pub destination_port: u16,
    /// What follows the IP header.
    pub payload: Vec<u8>,
}

impl Seen {
    /// Whether `text` is in its payload.
    pub fn contains(&self, text: &str) -> bool {
        self.payload
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    }
}

/// Records packets while it lives.
#[derive(Debug)]
pub struct Wire {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Time that a packet may be under way between two namespaces of this machine.
const SETTLE: Duration = Duration::from_millis(60);

impl Wire {
    pub(super) fn watch(outside: &Netns) -> Result<Self> {
        let socket = outside.within(|| raw::packet_socket("uplink0"))?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new()
            .name("wire".into())
            .spawn({
                let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
                move || record(&socket, &seen, &stop)
            })
            .context("cannot start a thread")?;
        Ok(Self {
            seen,
            stop,
            thread: Some(thread),
        })
    }

    /// A point in time; what [`Wire::since`] takes.
    pub fn mark(&self) -> usize {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// What arrived since, after waiting for what is under way.
    pub fn since(&self, mark: usize) -> Vec<Seen> {
        sleep(SETTLE);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)[mark..].to_vec()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only reads; a panic in it has been printed.
            let _ = thread.join();
        }
    }
}

fn record(socket: &OwnedFd, seen: &Mutex<Vec<Seen>>, stop: &AtomicBool) {
    let mut frame = vec![0; 65536];
    while !stop.load(Ordering::Relaxed) {
        // A timeout; it is there to look at `stop`.
        let Ok(Some(received)) = raw::receive(socket, &mut frame) else {
            continue;
        };
        if let Some(packet) = parse(received) {
            seen.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(packet);
        }
    }
}

/// Reads an Ethernet frame; `None` for what is not IP.
pub(crate) fn parse(frame: &[u8]) -> Option<Seen> {
    let packet = frame.get(14..)?;
    let (source, destination, protocol, first, payload): (IpAddr, IpAddr, u8, bool, &[u8]) =
        match frame.get(12..14)? {
            [0x08, 0x00] => {
                let header = usize::from(packet.first()? & 0xf) * 4;
                let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
                let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
                let offset = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & 0x1fff;
                (
                    Ipv4Addr::from(source).into(),
                    Ipv4Addr::from(destination).into(),
                    *packet.get(9)?,
                    offset == 0,
                    packet.get(header..)?,
                )
            }
            [0x86, 0xdd] => {
                let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
                let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
                (
                    Ipv6Addr::from(source).into(),
                    Ipv6Addr::from(destination).into(),
                    *packet.get(6)?,
                    true,
                    packet.get(40..)?,
                )
            }
            _ => return None,
        };
    let port = |at: usize| {
        let known = first && matches!(protocol, 6 | 17);
        let bytes = payload.get(at..at + 2).filter(|_| known);
        bytes.map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    Some(Seen {
        source,
        destination,
        protocol,
        source_port: port(0),
        destination_port: port(2),
        payload: payload.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::plan;

    #[test]
    fn reads_back_what_the_raw_probe_builds() {
        for (source, destination) in plan::pod(11).all().into_iter().zip(plan::OUTSIDE.all()) {
            let packet = raw::udp_packet(source, destination, 9999, b"token-7").unwrap();
            let seen = parse(&raw::ethernet_frame([0xee; 6], [2; 6], None, &packet)).unwrap();
            assert_eq!((seen.source, seen.destination), (source, destination));
            assert_eq!((seen.protocol, seen.destination_port), (17, 9999));
            assert!(seen.contains("token-7") && !seen.contains("token-8"));
        }
    }

    #[test]
    fn what_is_not_ip_is_not_counted() {
        assert_eq!(parse(&[0; 60]), None);
    }
}
