//! bpf-linker, which turns LLVM bitcode into the kernel object.
//!
//! It must read the compiler's bitcode, so it is built on the very LLVM that rustc carries; one per
//! compiler, so that a toolchain change rebuilds it.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{install, rustc::Rustc};
use crate::{
    cmd::{Cmd, find_program, is_executable, say},
    workspace::Workspace,
};

const STEP: &str = "bpf-linker";
const VERSION: &str = "0.13.0";
/// The LLVM majors that this version can be built on.
const LLVM_MAJORS: std::ops::RangeInclusive<u32> = 21..=23;
const BINSTALL_LIMIT: Duration = Duration::from_mins(2);

/// `$SALLYPORT_BPF_LINKER`, else the one built before, else a new one.
pub fn ensure(workspace: &Workspace, rustc: &Rustc) -> Result<PathBuf> {
    if let Some(given) = env::var_os("SALLYPORT_BPF_LINKER") {
        let given = PathBuf::from(given);
        if !is_executable(&given) {
            bail!(
                "SALLYPORT_BPF_LINKER={} is no executable file",
                given.display()
            );
        }
        return Ok(given);
    }
    let linker = path(workspace, rustc);
    if is_executable(&linker) {
        say(
            STEP,
            format_args!("{VERSION} is there ({})", workspace.display(&linker)),
        );
        return Ok(linker);
    }
    let staging = install::staging(workspace)?;
    let built = match rustc_llvm(rustc) {
        Some(llvm) => {
            say(
                STEP,
                format_args!(
                    "building {VERSION} on rustc's LLVM {}: it links the kernel object",
                    rustc.llvm
                ),
            );
            build(workspace, rustc, &llvm, staging.path())
        }
        None => Err(anyhow::anyhow!(
            "{} has no LLVM library that bpf-linker {VERSION} can be built on",
            rustc.sysroot.join("lib").display()
        )),
    };
    let done = built.or_else(|built| {
        prebuilt(workspace, staging.path()).map_err(|prebuilt| {
            anyhow::anyhow!(
                "bpf-linker {VERSION} could not be had. Install it by hand (`cargo install bpf-linker`, it \
                 needs LLVM's development files) and name it in SALLYPORT_BPF_LINKER.\n\
                 from source: {built:#}\nprebuilt: {prebuilt:#}"
            )
        })
    })?;
    install::publish(&done, &linker)?;
    Ok(linker)
}

/// Where the linker of this compiler is kept.
fn path(workspace: &Workspace, rustc: &Rustc) -> PathBuf {
    workspace
        .tools
        .join("bpf-linker")
        .join(format!("{VERSION}-rustc-{}", rustc.id()))
        .join("bpf-linker")
}

/// The shared LLVM of rustup's toolchains; distributions' compilers use the system's.
fn rustc_llvm(rustc: &Rustc) -> Option<PathBuf> {
    if !LLVM_MAJORS.contains(&rustc.llvm) {
        return None;
    }
    let lib = rustc.sysroot.join("lib");
    let mut libraries: Vec<String> = fs::read_dir(&lib)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_llvm_library(name, rustc.llvm))
        .collect();
    libraries.sort();
    libraries.pop().map(|name| lib.join(name))
}

/// `libLLVM.so.22.1-rust-1.95.0-stable`; the `libLLVM-22-….so` beside it is a linker script.
fn is_llvm_library(name: &str, major: u32) -> bool {
    name.strip_prefix("libLLVM.so.")
        .and_then(|rest| rest.split('.').next())
        .is_some_and(|number| number == major.to_string())
}

fn build(workspace: &Workspace, rustc: &Rustc, llvm: &Path, staging: &Path) -> Result<PathBuf> {
    // The layout that llvm-sys looks for in LLVM_PREFIX.
    let prefix = staging.join("llvm");
    fs::create_dir_all(prefix.join("lib")).context("creating the LLVM prefix")?;
    symlink(llvm, prefix.join("lib/libLLVM.so")).context("linking rustc's LLVM")?;
    let rpath = rustc.sysroot.join("lib");
    let out = staging.join("out");
    rustc
        .command("cargo")
        .args(["install", "bpf-linker", "--version", VERSION, "--locked"])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{}", rustc.llvm),
        ])
        .arg("--root")
        .arg(&out)
        .arg("--target-dir")
        .arg(staging.join("build"))
        .current_dir(staging)
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            format!("-Clink-arg=-Wl,-rpath,{}", rpath.display()),
        )
        .env_remove("RUSTFLAGS")
        .run_quietly(
            "building bpf-linker",
            &install::log(workspace, "bpf-linker"),
        )?;
    working(out.join("bin/bpf-linker"))
}

/// A released binary, where cargo-binstall is there to fetch it.
fn prebuilt(workspace: &Workspace, staging: &Path) -> Result<PathBuf> {
    if find_program("cargo-binstall").is_none() {
        bail!("cargo-binstall is not installed");
    }
    say(
        STEP,
        format_args!("fetching the released {VERSION} with cargo-binstall"),
    );
    let out = staging.join("released");
    Cmd::new("cargo")
        .args([
            "binstall",
            "--no-confirm",
            "--disable-strategies",
            "compile",
        ])
        .arg("--root")
        .arg(&out)
        .arg(format!("bpf-linker@{VERSION}"))
        .timeout(BINSTALL_LIMIT)
        .run_quietly("fetching bpf-linker", &install::log(workspace, "binstall"))?;
    working(out.join("bin/bpf-linker"))
}

/// Only a linker that starts (finds its LLVM) is worth keeping.
fn working(linker: PathBuf) -> Result<PathBuf> {
    Cmd::new(&linker).arg("--version").output()?;
    Ok(linker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_told_from_the_linker_script() {
        assert!(is_llvm_library("libLLVM.so.22.1-rust-1.95.0-stable", 22));
        assert!(!is_llvm_library("libLLVM-22-rust-1.95.0-stable.so", 22));
        assert!(!is_llvm_library("libLLVM.so.22.1-rust-1.95.0-stable", 2));
        assert!(!is_llvm_library("librustc_driver-6108105cd7e839cf.so", 22));
    }
}
