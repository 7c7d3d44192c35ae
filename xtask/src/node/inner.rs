//! What `xtask` does inside the node: hidden verbs, called by [`super::Node`] alone.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;

use super::confine::{self, Confine};
use super::flood::Flood;
use super::probe::Probe;
use super::{Node, NodeOptions, dns, reaper, serve};

/// `xtask node …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Inner {
    /// Wait for the end of the node's maker, then take the node down
    Reap { id: String },
    /// Build a bare node, print its id, and let it stand as long as this process
    Stand,
    /// Become a program with the rights of its container
    Confine(Confine),
    /// Sleep, so that a pod has a process
    Pause,
    /// Try to reach somebody, and print how it went as JSON
    #[command(subcommand)]
    Probe(Probe),
    /// Send again and again, until it is killed
    Flood(Flood),
    /// Be the outside host
    ServeOutside { certificates: PathBuf },
    /// Be an ordinary workload
    ServeWorkload { name: String, port: u16 },
    /// Be the first process of a machine (`cargo xtask vm`)
    Machine,
    /// Be the cluster's DNS, with the names of a JSON file
    ServeDns { zone: PathBuf },
}

impl Inner {
    /// Runs it; servers return only with an error.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Reap { id } => reaper::wait(id),
            Self::Stand => {
                let node = Node::new(&NodeOptions::with_helper(std::env::current_exe()?))?;
                println!("{}", node.id());
                sleep_for_ever()
            }
            Self::Confine(args) => confine::run(args),
            Self::Pause => sleep_for_ever(),
            Self::Machine => crate::vm::guest::run(),
            Self::Probe(probe) => {
                println!("{}", serde_json::to_string(&probe.run())?);
                Ok(())
            }
            Self::Flood(flood) => flood.run(),
            Self::ServeOutside { certificates } => serve::outside(certificates),
            Self::ServeWorkload { name, port } => serve::workload(name, *port),
            Self::ServeDns { zone } => {
                let file =
                    File::open(zone).with_context(|| format!("cannot open {}", zone.display()))?;
                dns::serve(&serde_json::from_reader(file).context("the zone is not valid")?)
            }
        }
    }
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}
