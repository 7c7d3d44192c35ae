//! One attempt of a pod, and whether anything came of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use super::world::World;
use crate::node::Pod;

/// How a pod tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Udp,
    Tcp,
    /// UDP from a raw socket, with a header of its own.
    Raw,
}

/// How long a client waits for an answer.
const PATIENCE_MS: &str = "150";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Text that is in one attempt only.
pub(super) fn token() -> String {
    format!("sp-try-{:05}-", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Tries it. Whether it came out: somebody answered, or the wire outside saw it.
pub(super) fn came(world: &World, pod: &Pod, to: SocketAddr, way: Way) -> Result<bool> {
    let token = token();
    let target = to.to_string();
    let mark = world.wire.mark();
    let own = pod.ips().all()[usize::from(to.is_ipv6())].to_string();
    let answer = match way {
        Way::Udp => {
            let args = [
                "udp",
                "--to",
                &target,
                "--payload",
                &token,
                "--timeout-ms",
                PATIENCE_MS,
            ];
            pod.probe(&args)?
        }
        Way::Tcp => pod.probe(&["tcp", "--to", &target, "--timeout-ms", PATIENCE_MS])?,
        Way::Raw => pod.probe(&["raw", "--from", &own, "--to", &target, "--payload", &token])?,
    };
    let syn = |destination: IpAddr, port: u16| {
        way == Way::Tcp && (destination, port) == (to.ip(), to.port())
    };
    let seen =
        world.wire.since(mark).iter().any(|packet| {
            packet.contains(&token) || syn(packet.destination, packet.destination_port)
        });
    Ok(answer.answered() || seen)
}
