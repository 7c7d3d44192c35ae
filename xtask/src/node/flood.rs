//! A process that sends to somebody again and again, whatever becomes of its device. Runs inside pods.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::probe::any;
use super::raw;

/// Between two packets.
const PAUSE: Duration = Duration::from_millis(1);

/// What to send.
#[derive(Clone, Debug, Args)]
pub struct Flood {
    /// Whom a datagram is sent to, each in turn
    #[arg(long, required = true)]
    pub to: Vec<SocketAddr>,
    #[arg(long)]
    pub payload: String,
    /// From this address, from a packet socket past the IP stack
    #[arg(long)]
    pub frames_from: Option<IpAddr>,
}

impl Flood {
    /// Sends until it is killed. What can't be sent just now is no reason to end.
    pub fn run(&self) -> Result<()> {
        loop {
            for to in &self.to {
                let _ = match self.frames_from {
                    Some(from) => self.frame(from, *to),
                    None => self.datagram(*to),
                };
                sleep(PAUSE);
            }
        }
    }

    fn datagram(&self, to: SocketAddr) -> Result<()> {
        // One of its own: a socket remembers its route.
        UdpSocket::bind(any(to))?.send_to(self.payload.as_bytes(), to)?;
        Ok(())
    }

    fn frame(&self, from: IpAddr, to: SocketAddr) -> Result<()> {
        let packet = raw::udp_packet(from, to.ip(), to.port(), self.payload.as_bytes())?;
        let (host, own) = (super::pod::HOST_MAC_BYTES, [2; 6]);
        raw::send_frame("eth0", &raw::ethernet_frame(host, own, None, &packet))
    }
}
