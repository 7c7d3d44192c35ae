//! The `build` verb: the kernel object, then the binaries that embed or talk to it.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    cmd::{Cmd, say},
    ebpf,
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Build the agent and egressctl optimised
    #[arg(long)]
    pub release: bool,
}

/// What there is to start; absolute paths.
#[derive(Debug, Clone)]
pub struct Built {
    pub agent: PathBuf,
    pub egressctl: PathBuf,
    pub ebpf_object: PathBuf,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let built = build(workspace, args.release)?;
    println!("egress-agent {}", built.agent.display());
    println!("egressctl    {}", built.egressctl.display());
    Ok(())
}

/// Builds everything that changed, getting the tools for it first.
pub fn build(workspace: &Workspace, release: bool) -> Result<Built> {
    let ebpf_object = ebpf::build(workspace)?;
    say("agent", "compiling egress-agent and egressctl");
    Cmd::new("cargo")
        .args(["build", "--package", "egress-agent", "--bins"])
        .args(release.then_some("--release"))
        .current_dir(&workspace.root)
        .env("SALLYPORT_EBPF_OBJECT", &ebpf_object)
        .run()?;
    Ok(Built {
        agent: workspace.binary("egress-agent", release),
        egressctl: workspace.binary("egressctl", release),
        ebpf_object,
    })
}
