//! Which compiler there is.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;

/// A Rust toolchain as its compiler describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rustc {
    /// The rustup name it was asked for by; `None` for the active one.
    pub toolchain: Option<String>,
    /// E.g. `1.95.0` or `1.97.0-nightly`.
    pub release: String,
    /// Hexadecimal digits; tells two compilers of one release (two nightlies) apart.
    pub commit: String,
    /// The host's target triple.
    pub host: String,
    /// The major version of the LLVM it carries.
    pub llvm: u32,
    pub sysroot: PathBuf,
}

impl Rustc {
    /// Asks the active compiler, or the one of a named rustup toolchain.
    pub fn probe(toolchain: Option<&str>) -> Result<Self> {
        let rustc = || with_toolchain(Cmd::new("rustc"), toolchain);
        let version = rustc()
            .arg("-vV")
            .output()
            .context("no usable Rust compiler: install Rust from https://rustup.rs")?;
        let sysroot = rustc().args(["--print", "sysroot"]).output()?;
        Self::parse(toolchain, &version, sysroot.trim())
    }

    fn parse(toolchain: Option<&str>, version: &str, sysroot: &str) -> Result<Self> {
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .with_context(|| format!("`rustc -vV` has no line `{name}`"))
        };
        let llvm = field("LLVM version")?;
        let Some(llvm_major) = llvm.split('.').next().and_then(|major| major.parse().ok()) else {
            bail!("`rustc -vV` names an LLVM version that is no version: {llvm}");
        };
        Ok(Self {
            toolchain: toolchain.map(str::to_owned),
            release: field("release")?.to_owned(),
            commit: field("commit-hash")?.to_owned(),
            host: field("host")?.to_owned(),
            llvm: llvm_major,
            sysroot: sysroot.into(),
        })
    }

    /// Nightlies (and compilers built by hand) accept `-Z` options as they are.
    pub fn accepts_unstable(&self) -> bool {
        self.release.ends_with("-nightly") || self.release.ends_with("-dev")
    }

    /// The host's architecture as BPF programs know it.
    pub fn arch(&self) -> &str {
        let arch = self.host.split('-').next().unwrap_or(&self.host);
        if arch.starts_with("riscv64") {
            "riscv64"
        } else {
            arch
        }
    }

    /// One word that changes when the compiler does.
    pub fn id(&self) -> String {
        format!("{}-{:.9}", self.release, self.commit)
    }

    /// `program` (rustc, cargo) of this toolchain.
    pub fn command(&self, program: &str) -> Cmd {
        with_toolchain(Cmd::new(program), self.toolchain.as_deref())
    }
}

fn with_toolchain(command: Cmd, toolchain: Option<&str>) -> Cmd {
    match toolchain {
        Some(name) => command.env("RUSTUP_TOOLCHAIN", name),
        None => command,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STABLE: &str = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\n\
        commit-hash: 59807616e1fa2540724bfbac14d7976d7e4a3860\ncommit-date: 2026-04-14\n\
        host: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n";

    #[test]
    fn reads_what_the_compiler_says() {
        let rustc = Rustc::parse(None, STABLE, "/s").expect("well-formed");
        assert_eq!(rustc.release, "1.95.0");
        assert_eq!(rustc.llvm, 22);
        assert_eq!(rustc.arch(), "x86_64");
        assert_eq!(rustc.id(), "1.95.0-59807616e");
        assert!(!rustc.accepts_unstable());
        let nightly = STABLE.replace("release: 1.95.0", "release: 1.97.0-nightly");
        let nightly = Rustc::parse(Some("nightly"), &nightly, "/s").expect("well-formed");
        assert!(nightly.accepts_unstable());
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        assert!(Rustc::parse(None, "rustc 1.95.0\n", "/s").is_err());
        let no_version = STABLE.replace("22.1.2", "unknown");
        assert!(Rustc::parse(None, &no_version, "/s").is_err());
    }
}
