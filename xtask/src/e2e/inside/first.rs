//! A packet from the first instruction on: what a pod does that wants to be out before its hooks
//! stand.

use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

#[derive(Clone, Debug, clap::Args)]
pub struct First {
    /// Where to; may be given several times
    #[arg(long, required = true)]
    to: Vec<SocketAddr>,
    #[arg(long)]
    payload: String,
    /// How long to go on, in milliseconds
    #[arg(long, default_value_t = 3000)]
    for_ms: u64,
    /// Pause between two rounds, in microseconds
    #[arg(long, default_value_t = 500)]
    every_us: u64,
    /// End afterwards, as an init container must
    #[arg(long)]
    exit: bool,
}

impl First {
    pub fn run(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_millis(self.for_ms);
        let mut sent = 0u64;
        let mut refused = 0u64;
        while Instant::now() < end {
            for to in &self.to {
                // A new socket each time: the first ones may be from before the pod has an address.
                let went = UdpSocket::bind(crate::node::probe::any(*to))
                    .and_then(|socket| socket.send_to(self.payload.as_bytes(), to));
                match went {
                    Ok(_) => sent += 1,
                    Err(_) => refused += 1,
                }
            }
            sleep(Duration::from_micros(self.every_us));
        }
        super::print(&serde_json::json!({ "sent": sent, "refused": refused }))?;
        if self.exit {
            return Ok(());
        }
        super::pause()
    }
}
