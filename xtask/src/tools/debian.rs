//! Fetching packages from another Debian suite, or for another architecture, without touching the
//! machine's apt.
//!
//! A private configuration with its own sources, lists and cache; mirror, proxy and certificate
//! settings are the machine's.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{cmd::Cmd, image::Arch};

/// The archive's signing keys, from the package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where a newer package than the installed release has may be, smallest index first.
const SUITES: [&str; 3] = ["stable-backports", "testing", "unstable"];
const LIMIT: Duration = Duration::from_mins(3);

/// Looks for `package` of upstream version `upstream` and unpacks it below `dir`.
/// The error says what was looked for and where.
pub fn fetch(package: &str, upstream: &str, dir: &Path) -> Result<PathBuf> {
    if !Path::new(KEYRING).exists() {
        bail!("{KEYRING} is missing (package debian-archive-keyring)");
    }
    let mirrors = mirrors()?;
    for mirror in &mirrors {
        for suite in SUITES {
            let apt = PrivateApt::new(&dir.join("apt"), mirror, &[suite])?;
            let log = dir.join(format!("{suite}.log"));
            // A mirror need not carry every suite; the next one is tried.
            if apt.update(suite, &log).is_err() {
                continue;
            }
            if let Some(version) = apt.version_of(package, upstream)? {
                return apt.unpack(&[format!("{package}={version}")], dir);
            }
        }
    }
    bail!(
        "no {package} {upstream} in {} of {}",
        SUITES.join(", "),
        if mirrors.is_empty() {
            "any Debian mirror: apt knows none".into()
        } else {
            mirrors.join(", ")
        }
    )
}

/// Unpacks packages of one suite, for `arch`, below `dir`: those that `pick` takes from the names that
/// match the regular expression `names`.
pub fn fetch_some(
    suite: &str,
    arch: Arch,
    names: &str,
    pick: impl Fn(&[String]) -> Vec<String>,
    dir: &Path,
) -> Result<PathBuf> {
    fetch_for(suite, arch, names, dir, |apt| {
        let picked = pick(&apt.names(names)?);
        if picked.is_empty() {
            return Ok(None);
        }
        apt.unpack(&picked, dir).map(Some)
    })
}

/// Unpacks packages of one suite, for `arch`, with all that they depend on, below `dir`.
pub fn fetch_whole(suite: &str, arch: Arch, packages: &[&str], dir: &Path) -> Result<PathBuf> {
    fetch_for(suite, arch, &packages.join(" "), dir, |apt| {
        apt.unpack_whole(packages, dir).map(Some)
    })
}

/// What `get` finds at the first mirror that has the suite; `what` names it.
fn fetch_for(
    suite: &str,
    arch: Arch,
    what: &str,
    dir: &Path,
    get: impl Fn(&PrivateApt) -> Result<Option<PathBuf>>,
) -> Result<PathBuf> {
    if !Path::new(KEYRING).exists() {
        bail!("{KEYRING} is missing (package debian-archive-keyring)");
    }
    let mirrors = mirrors()?;
    for mirror in &mirrors {
        let apt = PrivateApt::new(&dir.join("apt"), mirror, &[suite])?;
        apt.only_for(arch)?;
        if apt
            .update(suite, &dir.join(format!("{suite}.log")))
            .is_err()
        {
            continue;
        }
        if let Some(unpacked) = get(&apt)? {
            return Ok(unpacked);
        }
    }
    bail!(
        "no package {what} for {arch} in {suite} of {}",
        if mirrors.is_empty() {
            "any Debian mirror: apt knows none".into()
        } else {
            mirrors.join(", ")
        }
    )
}

/// Installs a package and what it needs from the backports of this machine's release, where a package
/// from there stands in the way of the release's own. Removes nothing.
pub fn install_backport(package: &str, release: &str, dir: &Path) -> Result<()> {
    let backports = format!("{release}-backports");
    let mirrors = mirrors()?;
    for mirror in &mirrors {
        let apt = PrivateApt::new(&dir.join("apt"), mirror, &[release, &backports])?;
        if apt.update(&backports, &dir.join("update.log")).is_ok() {
            return apt
                .apt("apt-get")
                .args(["install", "--yes", "--no-install-recommends", "--no-remove"])
                .args(["--target-release", &backports, package])
                .env("DEBIAN_FRONTEND", "noninteractive")
                .timeout(LIMIT)
                .run_quietly(
                    &format!("installing {package} from {backports}"),
                    &dir.join("install.log"),
                );
        }
    }
    bail!("no mirror that apt knows has {backports}")
}

/// The mirrors of Debian's main archive that this machine's apt is set up for.
fn mirrors() -> Result<Vec<String>> {
    let targets = Cmd::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)",
            "Created-By: Packages",
        ])
        .output()?;
    Ok(main_archive_mirrors(&targets))
}

/// The security archive has suites of its own and is left out by its label.
fn main_archive_mirrors(targets: &str) -> Vec<String> {
    let mut mirrors = Vec::new();
    for target in targets.lines() {
        let fields: Vec<&str> = target.split('|').collect();
        if let ["Debian", "Debian", "main", uri] = fields[..]
            && !mirrors.iter().any(|known| known == uri)
        {
            mirrors.push(uri.to_owned());
        }
    }
    mirrors
}

#[derive(Debug)]
struct PrivateApt {
    config: PathBuf,
}

impl PrivateApt {
    fn new(dir: &Path, mirror: &str, suites: &[&str]) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        let sources = dir.join("sources.list");
        let lines = suites
            .iter()
            .map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"));
        write(&sources, &lines.collect::<String>())?;
        let acquire = Cmd::new("apt-config")
            .args(["dump", "--format", "%F \"%v\";%n", "Acquire"])
            .output()?;
        let config = dir.join("apt.conf");
        let dir = dir.display();
        // No hooks, preferences or sources of the machine's: they act on the machine.
        write(
            &config,
            &format!(
                "Dir::Etc::main \"/dev/null\";\n\
                 Dir::Etc::parts \"/dev/null\";\n\
                 Dir::Etc::sourcelist \"{dir}/sources.list\";\n\
                 Dir::Etc::sourceparts \"/dev/null\";\n\
                 Dir::Etc::preferences \"/dev/null\";\n\
                 Dir::Etc::preferencesparts \"/dev/null\";\n\
                 Dir::State::lists \"{dir}/lists\";\n\
                 Dir::Cache \"{dir}/cache\";\n\
                 APT::Sandbox::User \"root\";\n\
                 APT::Get::List-Cleanup \"true\";\n\
                 {}",
                acquire_settings(&acquire)
            ),
        )?;
        Ok(Self { config })
    }

    /// From now on knows only packages for `arch`, as on a machine that has nothing installed.
    fn only_for(&self, arch: Arch) -> Result<()> {
        let status = self.config.with_file_name("status");
        write(&status, "")?;
        let settings = fs::read_to_string(&self.config)?;
        write(
            &self.config,
            &format!(
                "{settings}\
                 APT::Architecture \"{arch}\";\n\
                 APT::Architectures {{ \"{arch}\"; }};\n\
                 Dir::State::status \"{}\";\n",
                status.display()
            ),
        )
    }

    fn update(&self, suite: &str, log: &Path) -> Result<()> {
        self.apt("apt-get")
            .args(["update", "--error-on=any"])
            .timeout(LIMIT)
            .run_quietly(&format!("reading the package index of {suite}"), log)
    }

    fn version_of(&self, package: &str, upstream: &str) -> Result<Option<String>> {
        let table = self.apt("apt-cache").args(["madison", package]).output()?;
        Ok(matching_version(&table, upstream))
    }

    fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let found = self
            .apt("apt-cache")
            .args(["search", "--names-only", pattern])
            .output()?;
        let names = found
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }

    /// Downloads and unpacks packages, each `name` or `name=version`.
    fn unpack(&self, packages: &[String], dir: &Path) -> Result<PathBuf> {
        let debs = dir.join("debs");
        let unpacked = dir.join("unpacked");
        fs::create_dir_all(&debs).with_context(|| format!("creating {}", debs.display()))?;
        let names = packages.join(" ").replace('=', " ");
        self.apt("apt-get")
            .arg("download")
            .args(packages)
            .current_dir(&debs)
            .timeout(LIMIT)
            .run_quietly(&format!("downloading {names}"), &dir.join("download.log"))?;
        unpack_all(&debs, packages.len(), &unpacked, &dir.join("unpack.log"))?;
        Ok(unpacked)
    }

    /// The same with everything that they depend on.
    fn unpack_whole(&self, packages: &[&str], dir: &Path) -> Result<PathBuf> {
        let debs = self.config.with_file_name("cache").join("archives");
        let unpacked = dir.join("unpacked");
        self.apt("apt-get")
            .args(["install", "--yes", "--no-install-recommends"])
            .arg("--download-only")
            .args(packages)
            .timeout(LIMIT)
            .run_quietly(
                &format!("downloading {} and what they need", packages.join(" ")),
                &dir.join("download.log"),
            )?;
        unpack_all(&debs, packages.len(), &unpacked, &dir.join("unpack.log"))?;
        Ok(unpacked)
    }

    fn apt(&self, program: &str) -> Cmd {
        Cmd::new(program)
            .env("APT_CONFIG", &self.config)
            .env("LC_ALL", "C")
    }
}

/// Unpacks the packages in `debs`, of which there are at least so many.
fn unpack_all(debs: &Path, least: usize, unpacked: &Path, log: &Path) -> Result<()> {
    let mut count = 0;
    for entry in fs::read_dir(debs)? {
        let deb = entry?.path();
        if deb.extension().is_none_or(|ext| ext != "deb") {
            continue;
        }
        count += 1;
        Cmd::new("dpkg-deb")
            .arg("-x")
            .args([deb.as_path(), unpacked])
            .run_quietly(&format!("unpacking {}", deb.display()), log)?;
    }
    if count < least {
        bail!("apt-get left no package in {}", debs.display());
    }
    Ok(())
}

/// The transport settings (proxies, certificates, retries) out of `apt-config dump`.
fn acquire_settings(dump: &str) -> String {
    let mut kept = String::new();
    for line in dump.lines().filter(|line| line.starts_with("Acquire::")) {
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

/// The first version in `apt-cache madison`'s table whose upstream part is `upstream`.
fn matching_version(table: &str, upstream: &str) -> Option<String> {
    table
        .lines()
        .filter_map(|line| Some(line.split('|').nth(1)?.trim()))
        .find(|version| upstream_of(version) == upstream)
        .map(str::to_owned)
}

/// `1.95.0` of `1:1.95.0+dfsg1-2~bpo13+1`.
fn upstream_of(version: &str) -> &str {
    let without_epoch = version.split_once(':').map_or(version, |(_, rest)| rest);
    let end = without_epoch
        .find(['+', '-', '~'])
        .unwrap_or(without_epoch.len());
    &without_epoch[..end]
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_matches_by_its_upstream_part_only() {
        let table = "  rust-src | 1.95.1+dfsg1-1 | http://mirror.test/debian sid/main\n\
                     rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://mirror.test/debian x/main amd64 Packages\n";
        assert_eq!(
            matching_version(table, "1.95.0").as_deref(),
            Some("1.95.0+dfsg1-2~bpo13+1")
        );
        assert_eq!(matching_version(table, "1.95"), None);
        assert_eq!(matching_version("", "1.95.0"), None);
    }

    #[test]
    fn upstream_versions() {
        assert_eq!(upstream_of("1.95.0+dfsg1-2~bpo13+1"), "1.95.0");
        assert_eq!(upstream_of("2:1.95.0-1"), "1.95.0");
        assert_eq!(upstream_of("1.95.0~beta.3+dfsg1-1"), "1.95.0");
        assert_eq!(upstream_of("1.95.0"), "1.95.0");
    }

    #[test]
    fn only_the_main_archive_counts_as_a_mirror() {
        let targets = "Debian|Debian|main|http://mirror.test/debian/\n\
                       Debian|Debian|main|http://mirror.test/debian/\n\
                       Debian|Debian-Security|main|http://mirror.test/debian-security/\n\
                       Other|Other|main|http://other.test/\n";
        assert_eq!(
            main_archive_mirrors(targets),
            ["http://mirror.test/debian/"]
        );
    }

    #[test]
    fn only_transport_settings_are_taken_over() {
        let dump = "Acquire::http::Proxy \"http://p.test\";\nAPT::Update::Post-Invoke:: \"x\";\n";
        assert_eq!(
            acquire_settings(dump),
            "Acquire::http::Proxy \"http://p.test\";\n"
        );
    }
}
