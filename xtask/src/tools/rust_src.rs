//! The standard library's source: `core` is built for BPF from it, since no prebuilt one exists.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail};

use super::{debian, install, rustc::Rustc, system};
use crate::{
    cmd::{find_program, say},
    workspace::Workspace,
};

const STEP: &str = "rust-src";
/// Long enough for the download where rustup can reach its server, and a bound where it can't.
const RUSTUP_LIMIT: Duration = Duration::from_mins(1);

/// Where the library's source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In the toolchain, where cargo looks by itself.
    Sysroot,
    /// This `library` folder, of exactly the compiler's version.
    Folder(PathBuf),
}

/// Finds the source, or gets it: from rustup, else from Debian.
pub fn ensure(workspace: &Workspace, rustc: &Rustc) -> Result<Source> {
    if let Some(source) = find(workspace, rustc) {
        let place = match &source {
            Source::Sysroot => "in the toolchain".to_owned(),
            Source::Folder(folder) => workspace.display(folder).to_string(),
        };
        say(STEP, format_args!("{} is there ({place})", rustc.release));
        return Ok(source);
    }
    say(
        STEP,
        format_args!(
            "getting {}: core is built from source for BPF",
            rustc.release
        ),
    );
    let mut tried = Vec::new();
    if find_program("rustup").is_some() {
        match from_rustup(workspace, rustc) {
            Ok(()) if in_sysroot(rustc) => return Ok(Source::Sysroot),
            Ok(()) => {
                tried.push("rustup: added the component, but it is not in the toolchain".into());
            }
            Err(error) => tried.push(format!("rustup: {error:#}")),
        }
    }
    if system::Os::read().is_debian() {
        say(STEP, "rustup did not provide it; trying Debian's package");
        match from_debian(workspace, rustc) {
            Ok(folder) => return Ok(Source::Folder(folder)),
            Err(error) => tried.push(format!("Debian: {error:#}")),
        }
    }
    bail!(
        "the library source of Rust {} is missing. Run `rustup component add rust-src{}` (or install \
         your distribution's rust-src of exactly this version) and try again.\n{}",
        rustc.release,
        rustc
            .toolchain
            .as_ref()
            .map_or_else(String::new, |name| format!(" --toolchain {name}")),
        tried.join("\n")
    )
}

/// What is there already; installs nothing.
pub fn find(workspace: &Workspace, rustc: &Rustc) -> Option<Source> {
    if in_sysroot(rustc) {
        return Some(Source::Sysroot);
    }
    let folder = folder(workspace, rustc);
    is_library(&folder).then_some(Source::Folder(folder))
}

fn in_sysroot(rustc: &Rustc) -> bool {
    is_library(&rustc.sysroot.join("lib/rustlib/src/rust/library"))
}

/// Cargo resolves the library's own lock file first, so that one must be there too.
fn is_library(folder: &Path) -> bool {
    folder.join("Cargo.lock").exists() && folder.join("core/src/lib.rs").exists()
}

fn folder(workspace: &Workspace, rustc: &Rustc) -> PathBuf {
    workspace
        .tools
        .join("rust-src")
        .join(&rustc.release)
        .join("library")
}

fn from_rustup(workspace: &Workspace, rustc: &Rustc) -> Result<()> {
    rustc
        .command("rustup")
        .args(["component", "add", "rust-src"])
        .timeout(RUSTUP_LIMIT)
        .run_quietly(
            "rustup component add rust-src",
            &install::log(workspace, "rustup"),
        )
}

fn from_debian(workspace: &Workspace, rustc: &Rustc) -> Result<PathBuf> {
    if rustc.release.contains('-') {
        bail!("Debian has no source of the pre-release {}", rustc.release);
    }
    let folder = folder(workspace, rustc);
    let staging = install::staging(workspace)?;
    let unpacked = debian::fetch("rust-src", &rustc.release, staging.path())?;
    let library = unpacked
        .join(format!("usr/src/rustc-{}", rustc.release))
        .join("library");
    if !is_library(&library) {
        bail!("the package rust-src has no {}", library.display());
    }
    install::publish(&library, &folder)?;
    Ok(folder)
}
