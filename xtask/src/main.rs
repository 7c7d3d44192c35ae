//! `cargo xtask`: everything there is to do in this repository, one verb each.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{
    battery, bench, binaries, checks, crds, demo, deploy, e2e, fuzz, image, node, soak, test,
    tools, vm, workspace::Workspace,
};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    about = "Sallyport's set-up, build and tests",
    after_help = "Downloads are kept in $SALLYPORT_TOOLS (default: <target directory>/tools) and reused.\n\
                  $SALLYPORT_EBPF_TOOLCHAIN names another rustup toolchain for the kernel object."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build the kernel object, the agent and egressctl
    Build(binaries::Args),
    /// Install what building and running need, and print where it is
    Tools,
    /// Tell the story of the guide on a node in miniature (as root)
    Demo(demo::Args),
    /// Write the definitions of Sallyport's kinds to deploy/crds
    Crds(crds::Args),
    /// Write plain manifests, rendered from the chart, to deploy/kustomize
    Manifests(deploy::Args),
    /// Write the container image as an OCI archive; no container engine is needed
    Image(image::Args),
    /// Check formatting and lints
    Lint(checks::Args),
    /// Run every check and test there is
    Test(test::Args),
    /// Kill the agent a thousand times under traffic, while policy changes and pods come and go
    Soak(soak::Args),
    /// Measure what the kernel programs cost a packet
    Bench(bench::Args),
    /// Try every numbered way around, on a node in miniature (as root)
    Battery(battery::Args),
    /// Feed parsers and decisions what nobody would write, and see that they hold
    Fuzz(fuzz::Args),
    /// Try everything in a real cluster, case by case
    E2e(Box<e2e::Args>),
    /// Boot other kernels in QEMU and try everything that needs one on each (as root)
    Vm(vm::Args),
    /// What the node in miniature starts inside itself
    #[command(subcommand, hide = true)]
    Node(node::inner::Inner),
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        // What failed has been said; a line after it would hide the summary.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything went well, for the verbs that report failures by themselves.
fn run(cli: &Cli) -> Result<bool> {
    // Inside a pod, or a machine of `vm`, there is no workspace.
    match &cli.verb {
        Verb::Node(inner) => return inner.run().map(|()| true),
        Verb::Battery(args) => return battery::run(args),
        _ => {}
    }
    let workspace = Workspace::find()?;
    match &cli.verb {
        Verb::Demo(args) => demo::run(&workspace, args),
        Verb::Node(_) | Verb::Battery(_) => unreachable!("it has been run"),
        Verb::Build(args) => binaries::run(&workspace, args).map(|()| true),
        Verb::Tools => tools::run(&workspace).map(|()| true),
        Verb::Crds(args) => crds::run(&workspace, args),
        Verb::Manifests(args) => deploy::run(&workspace, args),
        Verb::Image(args) => image::run(&workspace, args).map(|()| true),
        Verb::Lint(args) => checks::run(&workspace, args).map(|()| true),
        Verb::Test(args) => test::run(&workspace, args),
        Verb::Soak(args) => soak::run(&workspace, args),
        Verb::E2e(args) => e2e::run(&workspace, args),
        Verb::Vm(args) => vm::run(&workspace, args),
        Verb::Fuzz(args) => fuzz::run(&workspace, args),
        Verb::Bench(args) => bench::run(&workspace, args).map(|()| true),
    }
}
