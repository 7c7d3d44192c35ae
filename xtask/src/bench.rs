//! The `bench` verb: what the kernel programs cost a packet, and the policy server a request.
//!
//! Packets are measured by the kernel (`BPF_PROG_TEST_RUN`), so those benchmarks need no
//! optimised build; the last does.

use anyhow::Result;

use crate::{
    cmd::Cmd,
    ebpf,
    tools::{envoy, preflight},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the figures as JSON, one document for each benchmark
    #[arg(long)]
    pub json: bool,
    /// Only one of them
    #[arg(long, value_enum)]
    pub only: Option<Bench>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bench {
    /// The kernel programs
    Packet,
    /// Fence and gate, on the way of a packet that the node forwards
    Filter,
    /// The policy server, and gateways that ask it
    Checks,
}

/// Builds what the benchmarks need and runs them.
pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let wants = |bench| args.only.is_none_or(|only| only == bench);
    if wants(Bench::Packet) || wants(Bench::Filter) {
        preflight::check("bench")?;
    }
    if wants(Bench::Packet) {
        let object = ebpf::build(workspace)?;
        cargo_bench(workspace, args, "packet", &["--profile", "dev"])
            .env("SALLYPORT_EBPF_OBJECT", &object)
            .run()?;
    }
    if wants(Bench::Filter) {
        cargo_bench(workspace, args, "filter", &["--profile", "dev"])
            .env("SALLYPORT_EBPF_OBJECT", workspace.ebpf_object())
            .run()?;
    }
    if wants(Bench::Checks) {
        let envoy = envoy::ensure(workspace)?;
        cargo_bench(workspace, args, "checks", &[])
            .env("SALLYPORT_ENVOY", &envoy)
            .run()?;
    }
    Ok(())
}

fn cargo_bench(workspace: &Workspace, args: &Args, name: &str, options: &[&str]) -> Cmd {
    Cmd::new("cargo")
        .arg("bench")
        .args(options)
        .args(["--package", "egress-agent", "--bench", name, "--"])
        .args(args.json.then_some("--json"))
        .current_dir(&workspace.root)
}
