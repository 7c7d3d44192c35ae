//! The `crds` verb: the definitions of Sallyport's kinds, from the Rust types to `deploy/crds`.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::{
    cmd::{Cmd, say},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write nothing; say what differs, and fail if something does
    #[arg(long)]
    pub check: bool,
}

/// Returns whether what is checked in is what the types say; without `--check` it is made so.
pub fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    let folder = workspace.root.join("deploy/crds");
    let made = made(workspace)?;
    let mut same = true;
    for (name, text) in &made {
        let path = folder.join(name);
        if fs::read_to_string(&path).is_ok_and(|there| there == *text) {
            continue;
        }
        same = false;
        if args.check {
            say(
                "crds",
                format_args!("differs: {}", workspace.display(&path)),
            );
            continue;
        }
        let parent = path.parent().context("a file below deploy/crds")?;
        fs::create_dir_all(parent)?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        say("crds", format_args!("{}", workspace.display(&path)));
    }
    for path in superfluous(&folder, &made)? {
        same = false;
        if args.check {
            say(
                "crds",
                format_args!("no kind has it: {}", workspace.display(&path)),
            );
        } else {
            fs::remove_file(&path)?;
            say("crds", format_args!("removed {}", workspace.display(&path)));
        }
    }
    if args.check && !same {
        say("crds", "run `cargo xtask crds` and check in what it writes");
    }
    Ok(same || !args.check)
}

/// Path below `deploy/crds` to text.
fn made(workspace: &Workspace) -> Result<BTreeMap<String, String>> {
    // By an example of the agent's crate: this one does without the agent's dependencies, and
    // the kernel object's variable is the one that `build` sets, so that nothing is built twice.
    let printed = Cmd::new("cargo")
        .args([
            "run",
            "--quiet",
            "--package",
            "egress-agent",
            "--example",
            "crds",
        ])
        .current_dir(&workspace.root)
        .env("SALLYPORT_EBPF_OBJECT", workspace.ebpf_object())
        .output()?;
    serde_json::from_str(&printed).context("the example `crds` printed no JSON")
}

/// Definitions of kinds that are no more.
fn superfluous(folder: &std::path::Path, made: &BTreeMap<String, String>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in [folder.to_owned(), folder.join("before-1.31")] {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let ours = made.keys().any(|name| path.ends_with(name));
            if path.extension().is_some_and(|end| end == "yaml") && !ours {
                found.push(path);
            }
        }
    }
    Ok(found)
}
