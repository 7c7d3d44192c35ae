//! Which kernels are tried, what is expected of them, and where they come from.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cmd::{find_program, say};
use crate::image::Arch;
use crate::tools::system::{self, Os, Wanted};
use crate::tools::{debian, install};
use crate::workspace::Workspace;

const STEP: &str = "vm";

/// What Sallyport says of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// The agent refuses to start, in a sentence that says this.
    Refused(&'static str),
    /// Holds pods by filters of clsact, with the programs in parts.
    Clsact,
    /// Holds pods by tcx.
    Tcx,
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused(_) => "refused",
            Self::Clsact => "clsact",
            Self::Tcx => "tcx",
        })
    }
}

/// One of Debian's kernels.
#[derive(Clone, Copy, Debug)]
pub struct Series {
    /// As `--kernel` and the table name it.
    pub name: &'static str,
    /// Where it is.
    suite: &'static str,
    pub support: Support,
}

impl Series {
    /// Oldest first.
    pub const ALL: [Self; 5] = [
        Self {
            name: "5.10",
            suite: "bullseye",
            support: Support::Refused("lacks bpf_ktime_get_coarse_ns"),
        },
        Self {
            name: "6.1",
            suite: "bookworm",
            support: Support::Clsact,
        },
        Self {
            name: "6.12",
            suite: "trixie",
            support: Support::Tcx,
        },
        Self {
            name: "6.18",
            suite: "trixie-backports",
            support: Support::Tcx,
        },
        Self {
            name: NEWEST,
            suite: "trixie-backports",
            support: Support::Tcx,
        },
    ];

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|series| series.name == name)
    }

    /// What it is called in paths.
    pub fn file_name(&self, arch: Arch) -> String {
        match arch {
            Arch::Amd64 => self.name.to_owned(),
            Arch::Arm64 => format!("{}-{arch}", self.name),
        }
    }

    fn has(&self, release: &str) -> bool {
        self.name == NEWEST || release.starts_with(&format!("{}.", self.name))
    }
}

/// Whatever is newest.
const NEWEST: &str = "newest";

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub arch: Arch,
    /// As `uname -r` has it.
    pub release: String,
    pub image: PathBuf,
    pub modules: PathBuf,
}

/// Finds a kernel below the tools directory, or gets it there.
pub fn ensure(workspace: &Workspace, series: &Series, arch: Arch) -> Result<Kernel> {
    let name = series.file_name(arch);
    let place = workspace.tools.join("kernels").join(&name);
    if let Some(kernel) = find(&place, arch) {
        say(
            STEP,
            format_args!("kernel {name} is there ({})", kernel.release),
        );
        return Ok(kernel);
    }
    let _lock = install::lock(workspace)?;
    say(
        STEP,
        format_args!("getting kernel {name} from {}", series.suite),
    );
    let staging = install::staging(workspace)?;
    let unpacked = debian::fetch_some(
        series.suite,
        arch,
        &format!("^linux-(image|binary|modules)-[0-9].*-cloud-{arch}$"),
        |names| pick(series, names),
        staging.path(),
    )?;
    install::publish(&unpacked, &place)?;
    find(&place, arch).with_context(|| format!("no kernel in the packages of {name}"))
}

/// The newest kernel of the series. From 6.19 on Debian has it in packages of their own.
fn pick(series: &Series, names: &[String]) -> Vec<String> {
    let release = |name: &str| {
        let rest = name.strip_prefix("linux-")?;
        let (kind, release) = rest.split_once('-')?;
        let fits = matches!(kind, "image" | "binary") && series.has(release);
        fits.then(|| release.to_owned())
    };
    let newest = names
        .iter()
        .filter_map(|name| release(name))
        .max_by_key(|release| numbers(release));
    let Some(newest) = newest else {
        return Vec::new();
    };
    let parts: Vec<String> = ["binary", "modules"]
        .map(|kind| format!("linux-{kind}-{newest}"))
        .into_iter()
        .filter(|name| names.contains(name))
        .collect();
    if parts.is_empty() {
        vec![format!("linux-image-{newest}")]
    } else {
        parts
    }
}

/// The numbers in a version, for comparing.
fn numbers(version: &str) -> Vec<u32> {
    version
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// Looks for image and modules among unpacked packages, wherever they were put.
fn find(place: &Path, arch: Arch) -> Option<Kernel> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    for root in ["usr/lib/modules", "lib/modules"] {
        let Some(modules) = entries(&place.join(root)).next() else {
            continue;
        };
        let release = modules.file_name().to_string_lossy().into_owned();
        let images = [
            modules.path().join("vmlinuz"),
            place.join(format!("boot/vmlinuz-{release}")),
        ];
        if let Some(image) = images.into_iter().find(|image| image.is_file()) {
            return Some(Kernel {
                arch,
                release,
                image,
                modules: modules.path(),
            });
        }
    }
    None
}

/// QEMU, installed where it is missing.
pub fn qemu(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    let (program, package) = match arch {
        Arch::Amd64 => ("qemu-system-x86_64", "qemu-system-x86"),
        Arch::Arm64 => ("qemu-system-aarch64", "qemu-system-arm"),
    };
    let wanted = Wanted {
        program,
        package,
        purpose: "other kernels are booted in it",
    };
    if find_program(wanted.program).is_none() {
        let _lock = install::lock(workspace)?;
        if let Err(error) = system::install(workspace, &[wanted]) {
            // Other parts of QEMU may be here from backports, with which the release's own don't fit.
            let os = Os::read();
            if !os.is_debian() {
                return Err(error);
            }
            let staging = install::staging(workspace)?;
            debian::install_backport(wanted.package, os.codename(), staging.path())
                .map_err(|backport| error.context(format!("{backport:#}")))?;
        }
    }
    find_program(wanted.program).with_context(|| format!("`{program}` is not on PATH"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_newest_of_a_series_is_taken() {
        let list = names(&[
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.12.1-cloud-amd64",
        ]);
        let series = Series::named("6.1").expect("a series");
        assert_eq!(pick(&series, &list), ["linux-image-6.1.0-50-cloud-amd64"]);
        let series = Series::named("5.10").expect("a series");
        assert_eq!(pick(&series, &list), Vec::<String>::new());
    }

    #[test]
    fn a_kernel_in_parts_is_taken_whole() {
        let list = names(&[
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
            "linux-image-7.2.12+deb13-cloud-amd64",
        ]);
        let series = Series::named(NEWEST).expect("a series");
        assert_eq!(
            pick(&series, &list),
            [
                "linux-binary-7.3.4+deb13-cloud-amd64",
                "linux-modules-7.3.4+deb13-cloud-amd64"
            ]
        );
    }
}
