//! What is in the suite's own image: its program for pods, and an Envoy for the gateway. With these
//! on the nodes it needs nothing from the internet.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cmd::{Cmd, say};
use crate::image::Entry;
use crate::tools;
use crate::workspace::Workspace;

/// Builds and gathers all of it.
pub fn contents(workspace: &Workspace) -> Result<Vec<Entry>> {
    let envoy = tools::runtime(workspace)?.envoy;
    let mut entries = vec![
        entry("usr/local/bin/e2e-probe", &probe(workspace)?),
        entry("usr/local/bin/envoy", &envoy),
    ];
    // Envoy is linked against this machine's C library; ours is static.
    let needed = Cmd::new("ldd").arg(&envoy).output()?;
    for library in libraries(&needed) {
        entries.push(entry(library.trim_start_matches('/'), Path::new(library)));
    }
    Ok(entries)
}

fn entry(path: &str, from: &Path) -> Entry {
    Entry {
        path: path.to_owned(),
        from: from.to_owned(),
        mode: 0o755,
    }
}

/// The program for pods, linked statically: there is nothing else in its image.
fn probe(workspace: &Workspace) -> Result<PathBuf> {
    say(
        "e2e-probe",
        "compiling the program for pods, linked statically",
    );
    let target = target()?;
    Cmd::new("cargo")
        .args([
            "build",
            "--package",
            "xtask",
            "--bin",
            "e2e-probe",
            "--no-default-features",
            "--target",
            &target,
        ])
        // A target of its own keeps build scripts and macros out of these flags.
        .args(["--config", "profile.dev.strip=true"])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(&workspace.root)
        .run()?;
    Ok(workspace.target.join(target).join("debug/e2e-probe"))
}

/// The machine's own target.
fn target() -> Result<String> {
    let about = Cmd::new("rustc").arg("-vV").output()?;
    about
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc names no host")
}

/// Paths of the libraries in what `ldd` prints.
fn libraries(ldd: &str) -> Vec<&str> {
    ldd.lines()
        .filter_map(|line| {
            let line = line.trim();
            let found = line.split_once("=> ").map_or(line, |(_, found)| found);
            found.split(' ').next().filter(|path| path.starts_with('/'))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let ldd = "\tlinux-vdso.so.1 (0x00007f41b338f000)\n\
                   \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f41b329e000)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f41b3391000)\n";
        assert_eq!(
            libraries(ldd),
            [
                "/lib/x86_64-linux-gnu/libm.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
        assert!(libraries("\tstatically linked\n").is_empty());
    }
}
