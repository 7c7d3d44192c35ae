//! The programs of the image, linked statically against musl.
//!
//! Rust brings musl and a linker for every architecture along, so nothing but a C compiler for the
//! cryptography is needed besides `rustup target add`.

use std::env;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::layer::Entry;
use crate::cmd::{Cmd, find_program, say};
use crate::ebpf;
use crate::remap;
use crate::tools::rustc::Rustc;
use crate::tools::system::{self, Wanted};
use crate::workspace::Workspace;

/// Architectures of nodes, by the names that images have for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// # Errors
    /// If it is none that nodes are supported on.
    pub fn of_this_machine() -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|arch| arch.is_here())
            .with_context(|| format!("nodes are not supported on {}", env::consts::ARCH))
    }

    /// Whether it is that of this machine.
    pub fn is_here(self) -> bool {
        self.machine() == env::consts::ARCH
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As compilers call it.
    pub fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    fn target(self) -> String {
        format!("{}-unknown-linux-musl", self.machine())
    }

    /// C compiler on a host of another architecture, and its package.
    fn cross_compiler(self) -> Wanted {
        let (program, package) = match self {
            Self::Amd64 => ("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"),
            Self::Arm64 => ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        };
        Wanted {
            program,
            package,
            purpose: "the cryptography of the other architecture's programs is C and assembly",
        }
    }

    /// Headers that the compiler looks for; a package of their own.
    fn cross_headers(self) -> Wanted {
        let package = match self {
            Self::Amd64 => "libc6-dev-amd64-cross",
            Self::Arm64 => "libc6-dev-arm64-cross",
        };
        Wanted {
            package,
            ..self.cross_compiler()
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names of the programs, which stand at the top of the image.
const PROGRAMS: [&str; 2] = ["egress-agent", "egressctl"];

/// Builds them for one architecture, getting what is needed first.
pub(super) fn build(workspace: &Workspace, arch: Arch) -> Result<Vec<Entry>> {
    // The same for every architecture: all are little-endian, and the programs read no registers.
    let object = ebpf::build(workspace)?;
    let (cargo, directory) = cargo(workspace, arch, "build")?;
    say("image", format_args!("compiling for {arch}"));
    cargo
        .args(["--release", "--package", "egress-agent", "--bins"])
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("SALLYPORT_EBPF_OBJECT", &object)
        .run()?;
    let directory = directory.join("release");
    Ok(PROGRAMS
        .map(|name| Entry {
            path: name.to_owned(),
            from: directory.join(name),
            mode: 0o755,
        })
        .into())
}

/// Cargo, for programs that are static, and the directory where it puts them, by profile. Gets what
/// is missing first.
pub fn cargo(workspace: &Workspace, arch: Arch, verb: &str) -> Result<(Cmd, PathBuf)> {
    let rustc = Rustc::probe(None)?;
    let target = arch.target();
    add_target(&rustc, &target)?;
    let compiler = c_compiler(workspace, &rustc, arch)?;
    // Its own directory: these flags would have everything else compiled anew.
    let directory = workspace.target.join("image-build");
    let variable = target.replace('-', "_");
    let command = Cmd::new("cargo")
        .args([verb, "--locked", "--target", &target])
        .arg("--target-dir")
        .arg(&directory)
        .current_dir(&workspace.root)
        .env(format!("CC_{variable}"), compiler)
        // Some C writes down when it was compiled.
        .env("SOURCE_DATE_EPOCH", "0")
        .env_remove("RUSTFLAGS")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            flags(workspace, &rustc).join("\x1f"),
        );
    Ok((command, directory.join(target)))
}

fn flags(workspace: &Workspace, rustc: &Rustc) -> Vec<String> {
    let mut flags = vec![
        "-Clinker=rust-lld".to_owned(),
        "-Clinker-flavor=ld.lld".to_owned(),
        "-Clink-self-contained=yes".to_owned(),
    ];
    // Where a compiler without the library's sources says that they are.
    let library = rustc.sysroot.join("lib/rustlib/src/rust");
    let original = format!("/rustc/{}", rustc.commit);
    flags.extend(remap::flags(workspace, (library, &original)));
    flags
}

/// Rust's own libraries for the target.
fn add_target(rustc: &Rustc, target: &str) -> Result<()> {
    let libraries = rustc.sysroot.join("lib/rustlib").join(target).join("lib");
    if libraries.is_dir() {
        return Ok(());
    }
    let by_hand = || {
        format!(
            "this Rust has no libraries for {target}: run `rustup target add {target}`, or install \
             your distribution's package of them"
        )
    };
    if find_program("rustup").is_none() {
        bail!(by_hand());
    }
    say("rust", format_args!("rustup target add {target}"));
    Cmd::new("rustup")
        .args(["target", "add", target])
        .run()
        .with_context(by_hand)
}

fn c_compiler(workspace: &Workspace, rustc: &Rustc, arch: Arch) -> Result<&'static str> {
    if rustc.host.starts_with(arch.machine()) {
        return Ok("cc");
    }
    let wanted = arch.cross_compiler();
    if find_program(wanted.program).is_none() {
        system::install(workspace, &[wanted, arch.cross_headers()])?;
    }
    Ok(wanted.program)
}
