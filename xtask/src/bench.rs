//! The `bench` verb: what the kernel programs cost a packet.
//!
//! The kernel does the measuring (`BPF_PROG_TEST_RUN`), so the benchmark itself needs no optimised
//! build.

use anyhow::Result;

use crate::{cmd::Cmd, ebpf, tools::preflight, workspace::Workspace};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the figures as JSON
    #[arg(long)]
    pub json: bool,
}

/// Builds the kernel object and runs the benchmark over it.
pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    preflight::check("bench")?;
    let object = ebpf::build(workspace)?;
    Cmd::new("cargo")
        .args([
            "bench",
            "--profile",
            "dev",
            "--package",
            "egress-agent",
            "--bench",
            "packet",
            "--",
        ])
        .args(args.json.then_some("--json"))
        .current_dir(&workspace.root)
        .env("SALLYPORT_EBPF_OBJECT", &object)
        .run()
}
