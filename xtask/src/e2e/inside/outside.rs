//! The outside host in a cluster without an outside: a network namespace that hangs on the node by
//! a pair of devices, with an address of a range that is nobody's (RFC 5737, RFC 3849). A packet
//! for it leaves its pod, is routed by the node and arrives here as it would at the real outside.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, unshare};

use super::rtnl::Rtnl;
use super::seen::Record;
use crate::node::plan;
use crate::node::{raw, serve, wire};

/// Device on the node; gone with this process.
const HERE: &str = "sp-e2e-out";
const THERE: &str = "uplink0";
/// The node's addresses on it.
const NODE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 9)),
];

/// Not the smallest that fits: the first address of a prefix is every router's own (RFC 4291, 2.6.1).
const V6_PREFIX: u8 = 64;

#[derive(Clone, Debug, clap::Args)]
pub struct Outside {
    /// Directory of the outside host's tls.crt and tls.key
    #[arg(long)]
    certificates: PathBuf,
    /// Where to record what arrives
    #[arg(long)]
    record: PathBuf,
}

impl Outside {
    pub fn run(&self) -> Result<()> {
        let (send_namespace, namespace) = mpsc::channel();
        let (send_wired, wired) = mpsc::channel();
        let (certificates, record) = (self.certificates.clone(), self.record.clone());
        // Only a thread enters the new namespace; what it starts is in there too.
        let beyond = thread::Builder::new()
            .name("outside".into())
            .spawn(move || beyond(&send_namespace, &wired, &certificates, &record))
            .context("cannot start a thread")?;
        let rtnl = Rtnl::open()?;
        // One that was killed a moment ago may still be going.
        rtnl.remove(HERE)?;
        if let Ok(namespace) = namespace.recv() {
            connect(&rtnl, &namespace)?;
            send_wired
                .send(())
                .map_err(|_| anyhow!("the outside host has ended"))?;
        }
        beyond
            .join()
            .map_err(|_| anyhow!("the outside host panicked"))?
    }
}

/// The node's side.
fn connect(rtnl: &Rtnl, namespace: &OwnedFd) -> Result<()> {
    rtnl.veth(HERE, THERE, namespace.as_fd())?;
    rtnl.up(HERE)?;
    let [v4, v6] = NODE;
    rtnl.address(HERE, v4, 30)?;
    // A node without IPv6 has no pods with it either.
    if let Err(error) = rtnl.address(HERE, v6, V6_PREFIX) {
        eprintln!("no IPv6: {error:#}");
    }
    Ok(())
}

/// The other side, in a thread of its own.
fn beyond(
    namespace: &mpsc::Sender<OwnedFd>,
    wired: &mpsc::Receiver<()>,
    certificates: &Path,
    record: &Path,
) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)
        .context("cannot make a network namespace: the pod must be privileged")?;
    let own = File::open("/proc/thread-self/ns/net").context("cannot open the own namespace")?;
    namespace
        .send(own.into())
        .map_err(|_| anyhow!("nobody to connect to"))?;
    wired
        .recv()
        .map_err(|_| anyhow!("the node's side could not be made"))?;
    let rtnl = Rtnl::open()?;
    rtnl.up("lo")?;
    rtnl.up(THERE)?;
    let [v4, v6] = plan::OUTSIDE.all();
    rtnl.address(THERE, v4, 30)?;
    rtnl.default_route(NODE[0])?;
    if let Err(error) = rtnl
        .address(THERE, v6, V6_PREFIX)
        .and_then(|()| rtnl.default_route(NODE[1]))
    {
        eprintln!("no IPv6: {error:#}");
    }
    let mut record = Record::open(record)?;
    let socket = raw::packet_socket(THERE)?;
    thread::Builder::new()
        .name("recorder".into())
        .spawn(move || {
            let error = watch(&socket, &mut record);
            // Without the record every case would seem to go well.
            eprintln!("the recorder has ended: {error:?}");
            std::process::exit(1);
        })
        .context("cannot start a thread")?;
    serve::outside(certificates)
}

/// Records each packet that arrives; returns only with an error.
fn watch(socket: &OwnedFd, record: &mut Record) -> Result<()> {
    let mut frame = vec![0; 65536];
    loop {
        let received = match raw::receive(socket, &mut frame) {
            Ok(Some(received)) => received,
            Ok(None) => continue,
            Err(error) => match error.kind() {
                // The socket has a timeout.
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => continue,
                _ => return Err(error).context("cannot read packets"),
            },
        };
        if let Some(seen) = wire::parse(received) {
            let ours = plan::OUTSIDE.all().contains(&seen.destination);
            // Neighbour discovery is the wire's own.
            if ours && !(seen.protocol == 58 && is_neighbour(&seen.payload)) {
                record.push(&seen.into())?;
            }
        }
    }
}

/// Whether an `ICMPv6` message is neighbour discovery.
fn is_neighbour(payload: &[u8]) -> bool {
    payload
        .first()
        .is_some_and(|kind| (133..=137).contains(kind))
}
