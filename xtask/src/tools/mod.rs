//! What building and running need beyond Rust itself: found, or installed below the tools
//! directory, and reused the next time.

pub mod bpf_linker;
pub(crate) mod debian;
pub mod envoy;
pub mod helm;
pub(crate) mod install;
pub mod preflight;
pub mod rust_src;
pub mod rustc;
pub mod system;

use std::{env, path::PathBuf};

use anyhow::Result;

use self::{rust_src::Source, rustc::Rustc};
use crate::{
    cmd::{Cmd, find_program, say},
    workspace::Workspace,
};

/// What compiles the kernel object.
#[derive(Debug, Clone)]
pub struct BpfToolchain {
    pub rustc: Rustc,
    pub source: Source,
    pub linker: PathBuf,
}

/// What the demo and the tests start.
#[derive(Debug, Clone)]
pub struct Runtime {
    pub envoy: PathBuf,
    pub ip: PathBuf,
    pub nft: PathBuf,
}

/// The `tools` verb: everything, and where it is.
pub fn run(workspace: &Workspace) -> Result<()> {
    let bpf = bpf_toolchain(workspace)?;
    let runtime = runtime(workspace)?;
    println!(
        "rustc       {} (LLVM {})",
        bpf.rustc.release, bpf.rustc.llvm
    );
    let source = match &bpf.source {
        Source::Sysroot => bpf.rustc.sysroot.join("lib/rustlib/src/rust/library"),
        Source::Folder(folder) => folder.clone(),
    };
    for (name, path) in [
        ("rust-src", &source),
        ("bpf-linker", &bpf.linker),
        ("envoy", &runtime.envoy),
        ("ip", &runtime.ip),
        ("nft", &runtime.nft),
    ] {
        println!("{name:<11} {}", path.display());
    }
    Ok(())
}

/// Compiler, library source and linker for the kernel object.
///
/// The compiler is `$SALLYPORT_EBPF_TOOLCHAIN` if set, else the active one; a nightly that has the
/// source already stands in where the active one's can't be had.
pub fn bpf_toolchain(workspace: &Workspace) -> Result<BpfToolchain> {
    let _lock = install::lock(workspace)?;
    let asked = env::var("SALLYPORT_EBPF_TOOLCHAIN").ok();
    let rustc = Rustc::probe(asked.as_deref())?;
    let (rustc, source) = match rust_src::ensure(workspace, &rustc) {
        Ok(source) => (rustc, source),
        Err(error) if asked.is_none() => nightly_with_source(workspace).ok_or(error)?,
        Err(error) => return Err(error),
    };
    let linker = bpf_linker::ensure(workspace, &rustc)?;
    Ok(BpfToolchain {
        rustc,
        source,
        linker,
    })
}

fn nightly_with_source(workspace: &Workspace) -> Option<(Rustc, Source)> {
    find_program("rustup")?;
    let list = Cmd::new("rustup")
        .args(["toolchain", "list"])
        .output()
        .ok()?;
    let nightlies = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"));
    for name in nightlies {
        let Ok(rustc) = Rustc::probe(Some(name)) else {
            continue;
        };
        if let Some(source) = rust_src::find(workspace, &rustc) {
            say(
                "rust-src",
                format_args!("using {name}, which has the source"),
            );
            return Some((rustc, source));
        }
    }
    None
}

/// Envoy and the distribution's programs.
pub fn runtime(workspace: &Workspace) -> Result<Runtime> {
    let _lock = install::lock(workspace)?;
    let programs = system::ensure(workspace)?;
    let envoy = envoy::ensure(workspace)?;
    Ok(Runtime {
        envoy,
        ip: programs.ip,
        nft: programs.nft,
    })
}
