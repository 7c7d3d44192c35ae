//! Paths of this machine, which a compiler must not leave in what it writes.

use std::env;
use std::path::{Path, PathBuf};

use crate::workspace::Workspace;

/// Flags that have the compiler write the same wherever the checkout, cargo's home and the library's
/// source are; of the last with what it is written as.
pub fn flags(workspace: &Workspace, library: (PathBuf, &str)) -> Vec<String> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    mapped(workspace, cargo_home, library)
}

fn mapped(
    workspace: &Workspace,
    cargo_home: Option<PathBuf>,
    library: (PathBuf, &str),
) -> Vec<String> {
    let mut prefixes = vec![(workspace.root.clone(), "/sallyport"), library];
    prefixes.extend(cargo_home.map(|home| (home, "/cargo")));
    // The last one that matches wins, and each may be below another.
    prefixes.sort_by_key(|(from, _)| from.components().count());
    let mut flags = Vec::new();
    for (from, to) in prefixes {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        // Cargo names files below the checkout relative to it.
        if let Ok(relative) = from.strip_prefix(&workspace.root)
            && relative != Path::new("")
        {
            flags.push(format!("--remap-path-prefix={}={to}", relative.display()));
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_the_checkout_is_mapped_by_both_its_names() {
        let workspace = Workspace {
            root: "/w".into(),
            target: "/w/target".into(),
            tools: "/w/target/tools".into(),
        };
        let library = ("/w/target/library".into(), "/library");
        let flags = mapped(&workspace, Some("/w/cargo".into()), library);
        let position = |wanted: &str| {
            let wanted = format!("--remap-path-prefix={wanted}");
            let at = flags.iter().position(|flag| *flag == wanted);
            at.unwrap_or_else(|| panic!("{wanted} in {flags:?}"))
        };
        let root = position("/w=/sallyport");
        for below in [
            "/w/cargo=/cargo",
            "cargo=/cargo",
            "/w/target/library=/library",
            "target/library=/library",
        ] {
            assert!(root < position(below), "the last match wins: {flags:?}");
        }
    }
}
