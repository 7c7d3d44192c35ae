//! Programs of Debian for another architecture than this machine's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::initramfs::Initramfs;
use crate::cmd::say;
use crate::image::Arch;
use crate::tools::{debian, install};
use crate::workspace::Workspace;

const SUITE: &str = "trixie";
const PACKAGES: [&str; 5] = ["iproute2", "nftables", "util-linux", "mount", "dash"];

/// Unpacked packages, and all that they depend on.
#[derive(Debug)]
pub struct DebianRoot {
    root: PathBuf,
    arch: Arch,
}

impl DebianRoot {
    /// Finds them below the tools directory, or gets them there.
    pub fn ensure(workspace: &Workspace, arch: Arch) -> Result<Self> {
        let name = format!("debian-{SUITE}-{arch}");
        let root = workspace.tools.join(name);
        if !root.is_dir() {
            let _lock = install::lock(workspace)?;
            say(
                "vm",
                format_args!("getting {} for {arch} from {SUITE}", PACKAGES.join(", ")),
            );
            let staging = install::staging(workspace)?;
            let unpacked = debian::fetch_whole(SUITE, arch, &PACKAGES, staging.path())?;
            install::publish(&unpacked, &root)?;
        }
        Ok(Self { root, arch })
    }

    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let places = ["usr/bin", "usr/sbin"].map(|dir| self.root.join(dir).join(name));
        let found = places.into_iter().find(|path| path.is_file());
        found.with_context(|| format!("{} has no {name}", self.root.display()))
    }

    /// Puts all libraries and their loader into a machine.
    pub fn libraries(&self, machine: &mut Initramfs) -> Result<()> {
        let of_arch = format!("lib/{}-linux-gnu", self.arch.machine());
        for directory in ["lib", "lib64", &of_arch] {
            let Ok(listed) = fs::read_dir(self.root.join("usr").join(directory)) else {
                continue;
            };
            for entry in listed {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default();
                if name.to_string_lossy().contains(".so") && path.is_file() {
                    let to = Path::new(directory).join(name);
                    machine.executable(to, fs::read(&path)?);
                }
            }
        }
        Ok(())
    }
}
