//! The `build` verb: the kernel object, then the binaries that embed or talk to it.

use std::{fs, io, os::unix::fs::symlink, path::PathBuf};

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

    /// Build an agent and egressctl whose maps have another layout, for the tests of upgrades
    #[arg(long, conflicts_with = "release")]
    pub other_layout: bool,
}

/// What there is to start; absolute paths.
#[derive(Debug, Clone)]
pub struct Built {
    pub agent: PathBuf,
    pub egressctl: PathBuf,
    pub ebpf_object: PathBuf,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if args.other_layout {
        let built = build_other_layout(workspace)?;
        println!("{}", built.display());
        return Ok(());
    }
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

/// Builds one program that is the agent, or `egressctl`, of another layout, and links both names to
/// it; tells their directory.
pub fn build_other_layout(workspace: &Workspace) -> Result<PathBuf> {
    let object = ebpf::build_other_layout(workspace)?;
    let program = "sallyport-other-layout";
    say("agent", format_args!("compiling {program}"));
    Cmd::new("cargo")
        .args(["build", "--package", "egress-agent", "--bin", program])
        .args(["--features", ebpf::OTHER_LAYOUT])
        .current_dir(&workspace.root)
        .env("SALLYPORT_EBPF_OBJECT", &object)
        .run()?;
    let directory = workspace.other_layout();
    for name in ["egress-agent", "egressctl"] {
        let link = directory.join(name);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => symlink(workspace.binary(program, false), &link)?,
        }
    }
    Ok(directory)
}
