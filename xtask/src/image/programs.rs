//! The programs of the image, linked statically against musl.
//!
//! Rust brings musl and a linker for every architecture along, so nothing but a C compiler for the
//! cryptography is needed besides `rustup target add`.

use std::env;
use std::fmt;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::layer::Entry;
use crate::cmd::{Cmd, find_program, say};
use crate::ebpf;
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
            .find(|arch| arch.machine() == env::consts::ARCH)
            .with_context(|| format!("no image is written for {}", env::consts::ARCH))
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As compilers call it.
    fn machine(self) -> &'static str {
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
    let directory = compile(
        workspace,
        arch,
        &["--package", "egress-agent", "--bins"],
        |cmd| cmd.env("SALLYPORT_EBPF_OBJECT", &object),
    )?;
    Ok(PROGRAMS
        .map(|name| Entry {
            path: name.to_owned(),
            from: directory.join(name),
            mode: 0o755,
        })
        .into())
}

/// Compiles something of this workspace, optimised and static; returns where the programs are.
pub fn compile(
    workspace: &Workspace,
    arch: Arch,
    what: &[&str],
    settings: impl FnOnce(Cmd) -> Cmd,
) -> Result<std::path::PathBuf> {
    let rustc = Rustc::probe(None)?;
    let target = arch.target();
    add_target(&rustc, &target)?;
    let compiler = c_compiler(workspace, &rustc, arch)?;
    say("image", format_args!("compiling for {arch} ({})", what[1]));
    // Its own directory: these flags would have everything else compiled anew.
    let directory = workspace.target.join("image-build");
    let variable = target.replace('-', "_");
    let command = Cmd::new("cargo")
        .args(["build", "--release", "--locked", "--target", &target])
        .args(what)
        .arg("--target-dir")
        .arg(&directory)
        .current_dir(&workspace.root)
        .env(format!("CC_{variable}"), compiler)
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env_remove("RUSTFLAGS")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            flags(workspace, &rustc).join("\x1f"),
        );
    settings(command).run()?;
    Ok(directory.join(target).join("release"))
}

fn flags(workspace: &Workspace, rustc: &Rustc) -> Vec<String> {
    let mut flags = vec![
        "-Clinker=rust-lld".to_owned(),
        "-Clinker-flavor=ld.lld".to_owned(),
        "-Clink-self-contained=yes".to_owned(),
    ];
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(
        || env::home_dir().map(|home| home.join(".cargo")),
        |home| Some(home.into()),
    );
    // Where a compiler without the library's sources says that they are.
    let library = (
        rustc.sysroot.join("lib/rustlib/src/rust"),
        format!("/rustc/{}", rustc.commit),
    );
    let root = (workspace.root.clone(), "/sallyport".to_owned());
    let crates = cargo_home.map(|home| (home, "/cargo".to_owned()));
    // The last one that fits is taken.
    for (from, to) in crates.into_iter().chain([root, library]) {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
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
    say("image", format_args!("rustup target add {target}"));
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
