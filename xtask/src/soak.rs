//! The `soak` verb: an agent that is killed again and again under traffic.

use std::time::Instant;

use anyhow::Result;

use crate::{
    binaries,
    cmd::{Cmd, say},
    tools::preflight,
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Agents to kill, each at another moment of its life
    #[arg(long, default_value_t = 1000)]
    pub kills: u64,

    /// What moments and changes are drawn from; printed by each run
    #[arg(long)]
    pub seed: Option<u64>,
}

/// Whether nothing forbidden got out, and nothing allowed broke.
pub fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    preflight::check("soak")?;
    let built = binaries::build(workspace, false)?;
    let seed = args.seed.map(|seed| ("SALLYPORT_SEED", seed.to_string()));
    let started = Instant::now();
    let ok = Cmd::new("cargo")
        .args(["test", "--package", "xtask", "--test", "soak", "--"])
        .args(["--nocapture", "killed_at_any_moment"])
        .current_dir(&workspace.root)
        .env("SALLYPORT_AGENT", &built.agent)
        .env("SALLYPORT_EGRESSCTL", &built.egressctl)
        .env("SALLYPORT_EBPF_OBJECT", &built.ebpf_object)
        .env("SALLYPORT_KILLS", args.kills.to_string())
        .envs(seed)
        .run_lines(|line| println!("{line}"))?;
    let seconds = started.elapsed().as_secs();
    say("soak", format_args!("{} kills in {seconds} s", args.kills));
    Ok(ok)
}
