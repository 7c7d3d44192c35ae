//! The suite's side inside pods: attempts to get out, traffic, an outside host, a look at the node.

mod bpffs;
mod first;
mod left;
mod outside;
mod packets;
mod processes;
mod rtnl;
mod seen;
mod traffic;

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::node::probe::Probe;
use crate::node::serve;

pub use left::Left;
pub use seen::{Arrivals, Arrived};
pub use traffic::{Connection, Summary};

/// `e2e-probe …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Inside {
    /// Be a pod that does nothing
    Pause,
    /// Be an ordinary workload: HTTP and UDP echo on one port
    Serve { name: String, port: u16 },
    /// Try to reach somebody, and print how it went as JSON
    #[command(subcommand)]
    Probe(Probe),
    /// Send packets with headers of one's own, and print how it went as JSON
    #[command(subcommand)]
    Craft(packets::Craft),
    /// Send datagrams from the first instruction on, for some time; then be a pod that does nothing
    First(first::First),
    /// Keep an allowed connection busy and try what is forbidden, until told to stop
    Traffic(traffic::Traffic),
    /// Tell `traffic` of this container to stop
    Stop { file: PathBuf },
    /// Be the outside host, in a network namespace of its own that hangs on this one
    Outside(outside::Outside),
    /// Mount a BPF file system on this node if it has none, or remove that one again
    Bpffs(bpffs::Bpffs),
    /// Print what arrived at the outside host after the first so many packets
    Seen(seen::Args),
    /// Kill a program of a pod on this node, with SIGKILL
    Kill(processes::Kill),
    /// Print what is left of Sallyport on this node
    Left(left::Args),
}

impl Inside {
    /// Runs it; servers return only with an error.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Pause => pause(),
            Self::Serve { name, port } => serve::workload(name, *port),
            Self::Probe(probe) => print(&probe.run()),
            Self::Craft(craft) => print(&craft.run()),
            Self::First(first) => first.run(),
            Self::Traffic(traffic) => print(&traffic.run()?),
            Self::Stop { file } => Ok(std::fs::write(file, [])?),
            Self::Outside(outside) => outside.run(),
            Self::Bpffs(bpffs) => print(&bpffs.run()?),
            Self::Seen(args) => print(&args.run()?),
            Self::Kill(kill) => print(&kill.run()?),
            Self::Left(args) => print(&args.run()?),
        }
    }
}

fn print(answer: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(answer)?);
    Ok(())
}

/// Waits for the end. As a container's first process it must ask for the signals that end it:
/// the kernel's default is to ignore them there.
fn pause() -> Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_block()?;
    ends.wait()?;
    Ok(())
}
