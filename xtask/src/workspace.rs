//! Where the checkout, its build output and its tools are.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::cmd::Cmd;

/// The directories every verb works in; all absolute.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// The checkout.
    pub root: PathBuf,
    /// Cargo's target directory, wherever configuration puts it.
    pub target: PathBuf,
    /// What `tools` installed: `$SALLYPORT_TOOLS`, else `<target>/tools`.
    pub tools: PathBuf,
}

impl Workspace {
    /// Asks cargo, so that every way to configure the target directory is honoured.
    pub fn find() -> Result<Self> {
        // Cargo sets the variable at run time too; that one is right after the checkout was moved.
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest_dir
            .parent()
            .context("xtask's package directory has no parent")?
            .to_path_buf();
        let metadata = Cmd::new("cargo")
            .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
            .current_dir(&root)
            .output()?;
        let metadata: serde_json::Value =
            serde_json::from_str(&metadata).context("cargo metadata is not JSON")?;
        let target = metadata["target_directory"]
            .as_str()
            .map(PathBuf::from)
            .context("cargo metadata names no target directory")?;
        let tools = match env::var_os("SALLYPORT_TOOLS").filter(|dir| !dir.is_empty()) {
            Some(dir) => std::path::absolute(&dir)
                .with_context(|| format!("SALLYPORT_TOOLS={}", dir.display()))?,
            None => target.join("tools"),
        };
        Ok(Self {
            root,
            target,
            tools,
        })
    }

    /// The kernel object that the agent embeds.
    pub fn ebpf_object(&self) -> PathBuf {
        self.target.join("ebpf").join("egress-ebpf.o")
    }

    /// Where an agent whose maps have another layout is, with its `egressctl`.
    pub fn other_layout(&self) -> PathBuf {
        self.target.join("other-layout")
    }

    /// A built binary of this workspace.
    pub fn binary(&self, name: &str, release: bool) -> PathBuf {
        self.target
            .join(if release { "release" } else { "debug" })
            .join(name)
    }

    /// `path` as seen from the checkout, for what a user reads.
    pub fn display<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}
