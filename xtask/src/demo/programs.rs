//! What the demo starts: installed or built when it is missing, unless the environment names it.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::workspace::Workspace;
use crate::{binaries, tools};

/// Paths of programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// This program.
    pub helper: PathBuf,
    pub envoy: PathBuf,
    /// None where only the hole is shown.
    pub sallyport: Option<Sallyport>,
}

/// The agent and its command line.
#[derive(Clone, Debug)]
pub struct Sallyport {
    pub agent: PathBuf,
    pub egressctl: PathBuf,
}

impl Programs {
    /// Finds, installs and builds. `$SALLYPORT_ENVOY`, `$SALLYPORT_AGENT` and
    /// `$SALLYPORT_EGRESSCTL` name programs that stand already.
    pub fn find(workspace: &Workspace, without_sallyport: bool) -> Result<Self> {
        let helper = env::current_exe().context("cannot find this program itself")?;
        let envoy = match named("SALLYPORT_ENVOY")? {
            Some(envoy) => envoy,
            None => tools::runtime(workspace)?.envoy,
        };
        let sallyport = if without_sallyport {
            None
        } else {
            Some(Sallyport::find(workspace)?)
        };
        Ok(Self {
            helper,
            envoy,
            sallyport,
        })
    }
}

impl Sallyport {
    /// As [`Programs::find`].
    pub fn find(workspace: &Workspace) -> Result<Self> {
        Self::named()?.map_or_else(|| Self::build(workspace), Ok)
    }

    /// Those that the environment names, if it does.
    pub fn named() -> Result<Option<Self>> {
        match (named("SALLYPORT_AGENT")?, named("SALLYPORT_EGRESSCTL")?) {
            (Some(agent), Some(egressctl)) => Ok(Some(Self { agent, egressctl })),
            (None, None) => Ok(None),
            _ => bail!("set both SALLYPORT_AGENT and SALLYPORT_EGRESSCTL, or neither"),
        }
    }

    /// Builds them, or what has changed.
    pub fn build(workspace: &Workspace) -> Result<Self> {
        let built = binaries::build(workspace, false)?;
        Ok(Self {
            agent: built.agent,
            egressctl: built.egressctl,
        })
    }
}

fn named(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let path = PathBuf::from(path);
    let path = path
        .canonicalize()
        .with_context(|| format!("{variable}={}", path.display()))?;
    Ok(Some(path))
}
