//! The `image` verb: an OCI archive with the agent and egressctl, and nothing else, for each
//! architecture. No container engine is needed to write it.
//!
//! The same sources and compiler give the same bytes: entries are sorted, times are
//! `$SOURCE_DATE_EPOCH` (default: 1970), and paths of this machine are not in the programs.

mod archive;
mod layer;
mod programs;
mod reference;

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

pub use archive::{Platform, write};
pub use layer::Entry;
pub use programs::{Arch, cargo};
pub use reference::Reference;

use crate::cmd::say;
use crate::e2e;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Architectures, in the order in which the archive lists them [default: amd64,arm64]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub arch: Vec<Arch>,
    /// The end-to-end suite's own image instead (its program for pods, and an Envoy), for this
    /// machine's architecture
    #[arg(long, conflicts_with = "arch")]
    pub e2e: bool,
    /// Name of the image; one without a registry begins with localhost/, which runtimes look for on
    /// the node alone
    /// [default: localhost/sallyport/agent or e2e, with this version]
    #[arg(long, value_name = "REF")]
    pub tag: Option<Reference>,
    /// The archive [default: image/agent.tar or image/e2e.tar in the target directory]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Only put the programs into this folder; for one architecture
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["e2e", "tag", "output"])]
    pub programs: Option<PathBuf>,
}

/// Builds the programs and writes the archive.
pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let epoch = source_date_epoch()?;
    if let Some(folder) = &args.programs {
        return put_programs(workspace, &args.arch, folder);
    }
    let name = if args.e2e { "e2e" } else { "agent" };
    let reference = args.tag.clone().unwrap_or_else(|| Reference::own(name));
    let platforms = if args.e2e {
        vec![Platform {
            arch: Arch::of_this_machine()?,
            entries: e2e::image::contents(workspace)?,
            entrypoint: Vec::new(),
        }]
    } else {
        agents(workspace, &args.arch)?
    };
    let output = match &args.output {
        Some(output) => std::path::absolute(output)?,
        None => workspace.target.join(format!("image/{name}.tar")),
    };
    let written = write(&output, &reference, &platforms, epoch)?;
    say(
        "image",
        format_args!(
            "{} in {} ({})",
            reference,
            workspace.display(&output),
            size(written.bytes)
        ),
    );
    for (arch, bytes) in written.layers {
        println!("{arch}: {} compressed", size(bytes));
    }
    println!("digest: {}", written.digest);
    println!(
        "on a node: ctr --namespace k8s.io images import {0}; in kind: kind load image-archive {0}",
        workspace.display(&output)
    );
    Ok(())
}

fn agents(workspace: &Workspace, asked: &[Arch]) -> Result<Vec<Platform>> {
    let arches = if asked.is_empty() { &Arch::ALL } else { asked };
    let mut platforms: Vec<Platform> = Vec::new();
    for arch in arches {
        if platforms.iter().any(|it| it.arch == *arch) {
            bail!("--arch names {arch} twice");
        }
        platforms.push(Platform {
            arch: *arch,
            entries: programs::build(workspace, *arch)?,
            entrypoint: vec!["/egress-agent".to_owned()],
        });
    }
    Ok(platforms)
}

fn put_programs(workspace: &Workspace, asked: &[Arch], folder: &Path) -> Result<()> {
    let [arch] = asked else {
        bail!("--programs is for one architecture: choose it with --arch");
    };
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    for entry in programs::build(workspace, *arch)? {
        let to = folder.join(&entry.path);
        fs::copy(&entry.from, &to).with_context(|| format!("writing {}", to.display()))?;
        say("image", to.display());
    }
    Ok(())
}

/// Seconds since 1970, as reproducible builds agree on them.
fn source_date_epoch() -> Result<u64> {
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().with_context(|| {
            format!("SOURCE_DATE_EPOCH={text} is no number of seconds since 1970")
        }),
        Err(_) => Ok(0),
    }
}

/// In MB, with one digit.
fn size(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}
