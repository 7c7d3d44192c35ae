//! Programs that come from the distribution.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};

use super::install;
use crate::{
    cmd::{Cmd, find_program, say},
    workspace::Workspace,
};

const STEP: &str = "system";
const APT_LIMIT: Duration = Duration::from_mins(5);

/// A program, the Debian package it is in, and what it is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub program: &'static str,
    pub package: &'static str,
    pub purpose: &'static str,
}

const WANTED: [Wanted; 2] = [
    Wanted {
        program: "ip",
        package: "iproute2",
        purpose: "the demo's pods are network namespaces",
    },
    Wanted {
        program: "nft",
        package: "nftables",
        purpose: "the demo's Services and sidecars redirect with it",
    },
];

/// Where the distribution's programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    pub ip: PathBuf,
    pub nft: PathBuf,
}

/// Finds them; as root on Debian and its kin, installs what is missing.
pub fn ensure(workspace: &Workspace) -> Result<Programs> {
    let missing = missing(|program| find_program(program).is_some());
    if !missing.is_empty() {
        install(workspace, &missing)?;
    }
    Ok(Programs {
        ip: found("ip")?,
        nft: found("nft")?,
    })
}

fn found(program: &str) -> Result<PathBuf> {
    let path = find_program(program)
        .with_context(|| format!("`{program}` is not on PATH, though its package is installed"))?;
    say(
        STEP,
        format_args!("{program} is there ({})", path.display()),
    );
    Ok(path)
}

fn missing(is_there: impl Fn(&str) -> bool) -> Vec<Wanted> {
    WANTED
        .into_iter()
        .filter(|wanted| !is_there(wanted.program))
        .collect()
}

/// Installs packages as root on Debian and its kin, removing none; elsewhere the error says what to install.
pub fn install(workspace: &Workspace, missing: &[Wanted]) -> Result<()> {
    let packages: Vec<&str> = missing.iter().map(|wanted| wanted.package).collect();
    let packages = packages.join(" ");
    if !Os::read().is_debian_like() {
        let programs: Vec<&str> = missing.iter().map(|wanted| wanted.program).collect();
        bail!(
            "missing: {}. Install them with your package manager (Debian's packages are called {packages}).",
            programs.join(", ")
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("missing packages; run as root: apt-get install {packages}");
    }
    for wanted in missing {
        say(
            STEP,
            format_args!(
                "installing {} for `{}`: {}",
                wanted.package, wanted.program, wanted.purpose
            ),
        );
    }
    let log = install::log(workspace, "apt-install");
    let install = || {
        Cmd::new("apt-get")
            .args(["install", "--yes", "--no-install-recommends", "--no-remove"])
            .args(packages.split(' '))
            .env("DEBIAN_FRONTEND", "noninteractive")
            .timeout(APT_LIMIT)
            .run_quietly("apt-get install", &log)
    };
    // A machine without package lists, or with old ones, needs them read first; what else
    // may be wrong with its sources is shown by the second attempt.
    if install().is_ok() {
        return Ok(());
    }
    let update = Cmd::new("apt-get")
        .arg("update")
        .timeout(APT_LIMIT)
        .run_quietly("apt-get update", &install::log(workspace, "apt-update"));
    install().with_context(|| match update {
        Ok(()) => format!("install by hand: apt-get install {packages}"),
        Err(error) => format!("apt-get update failed as well ({error:#})"),
    })
}

/// What `/etc/os-release` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Os {
    id: String,
    codename: String,
    like: Vec<String>,
}

impl Os {
    /// An unknown system when the file is not there.
    pub fn read() -> Self {
        Self::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .map(|value| value.trim_matches(['"', '\'']).to_owned())
                .unwrap_or_default()
        };
        Self {
            id: field("ID"),
            codename: field("VERSION_CODENAME"),
            like: field("ID_LIKE")
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
        }
    }

    /// Debian itself: its kin package the Rust sources under other names.
    pub fn is_debian(&self) -> bool {
        self.id == "debian"
    }

    /// What Debian calls this release; empty where it has no name.
    pub fn codename(&self) -> &str {
        &self.codename
    }

    /// Has apt and Debian's package names.
    pub fn is_debian_like(&self) -> bool {
        self.is_debian() || self.id == "ubuntu" || self.like.iter().any(|like| like == "debian")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_distributions_apart() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        let debian = Os::parse(debian);
        assert_eq!(debian.codename(), "bookworm");
        assert!(debian.is_debian() && debian.is_debian_like());
        let mint = Os::parse("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n");
        assert!(!mint.is_debian() && mint.is_debian_like());
        let fedora = Os::parse("ID=fedora\n");
        assert!(!fedora.is_debian_like());
        assert!(!Os::parse("").is_debian_like());
    }

    #[test]
    fn only_what_is_missing_is_wanted() {
        assert!(missing(|_| true).is_empty());
        let packages: Vec<_> = missing(|program| program == "ip")
            .into_iter()
            .map(|wanted| wanted.package)
            .collect();
        assert_eq!(packages, ["nftables"]);
    }
}
