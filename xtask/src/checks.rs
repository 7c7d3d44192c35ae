//! The `lint` verb: formatting, clippy on both sides, and the dependencies on request.

use anyhow::{Context, Result};

use crate::{
    cmd::{Cmd, find_program, is_executable, say},
    ebpf,
    workspace::Workspace,
};

const CARGO_DENY_VERSION: &str = "0.20.2";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Check licences, advisories and sources of dependencies too; builds cargo-deny first where
    /// it is missing, which takes several minutes once
    #[arg(long)]
    pub deny: bool,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    for (_, step) in STEPS {
        step(workspace)?;
    }
    if args.deny { deny(workspace) } else { Ok(()) }
}

/// A check and what it is called in the summary.
pub type Step = (&'static str, fn(&Workspace) -> Result<()>);

/// Formatting and clippy; the kernel programs are also checked as the kernel will get them.
pub const STEPS: [Step; 3] = [
    ("formatting", formatting),
    ("clippy", clippy),
    ("clippy for BPF", clippy_bpf),
];

fn formatting(workspace: &Workspace) -> Result<()> {
    say("lint", "formatting");
    Cmd::new("cargo")
        .args(["fmt", "--all", "--check"])
        .current_dir(&workspace.root)
        .run()
        .context("run `cargo fmt --all`")
}

fn clippy(workspace: &Workspace) -> Result<()> {
    say("lint", "clippy of the workspace");
    Cmd::new("cargo")
        .args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ])
        .current_dir(&workspace.root)
        .env("SALLYPORT_EBPF_OBJECT", workspace.ebpf_object())
        .run()
}

fn clippy_bpf(workspace: &Workspace) -> Result<()> {
    say("lint", "clippy of the kernel programs");
    ebpf::clippy(workspace)
}

fn deny(workspace: &Workspace) -> Result<()> {
    let own = workspace.tools.join("cargo-deny").join(CARGO_DENY_VERSION);
    let installed = own.join("bin/cargo-deny");
    let program = match find_program("cargo-deny") {
        Some(found) => found,
        None if is_executable(&installed) => installed,
        None => {
            say(
                "lint",
                format_args!("building cargo-deny {CARGO_DENY_VERSION}: it checks dependencies"),
            );
            // Cargo moves the binary to its place only when it is done.
            Cmd::new("cargo")
                .args([
                    "install",
                    "cargo-deny",
                    "--locked",
                    "--version",
                    CARGO_DENY_VERSION,
                ])
                .arg("--root")
                .arg(&own)
                .run_quietly(
                    "building cargo-deny",
                    &workspace.tools.join("logs/cargo-deny.log"),
                )
                .context("install cargo-deny by hand and try again")?;
            installed
        }
    };
    say("lint", "dependencies: advisories, bans, licences, sources");
    // Called by its path it still expects its own name first, as cargo passes it.
    Cmd::new(program)
        .args(["deny", "--workspace", "check"])
        .current_dir(&workspace.root)
        .run()
}
