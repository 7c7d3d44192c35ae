//! Building the kernel object that the agent embeds.
//!
//! It has a target directory of its own, so that its flags neither invalidate nor block host builds.
//! Code, maps and BTF are bit-for-bit the same wherever it is built from the same sources and
//! compiler. Only the names of local symbols tell where the library source was: cargo hashes that
//! path into them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    cmd::{Cmd, find_program, is_executable, say},
    remap,
    tools::{self, BpfToolchain, rust_src::Source},
    workspace::Workspace,
};

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "egress-ebpf";
/// The feature of all three crates.
pub const OTHER_LAYOUT: &str = "other-layout";
/// The feature of the object for kernels below 6.6.
const IN_PARTS: &str = "in-parts";

/// Gets what is missing, compiles, and leaves the object at [`Workspace::ebpf_object`]; beside it the
/// same in parts.
pub fn build(workspace: &Workspace) -> Result<PathBuf> {
    build_both(workspace, &[], workspace.ebpf_object())
}

/// The same with maps of another layout, for the tests of upgrades.
pub fn build_other_layout(workspace: &Workspace) -> Result<PathBuf> {
    let object = workspace.other_layout().join("egress-ebpf.o");
    fs::create_dir_all(workspace.other_layout())?;
    build_both(workspace, &[OTHER_LAYOUT], object)
}

/// The object in parts that belongs to one.
fn in_parts(object: &Path) -> PathBuf {
    object.with_file_name("egress-ebpf-in-parts.o")
}

fn build_both(workspace: &Workspace, features: &[&str], object: PathBuf) -> Result<PathBuf> {
    let toolchain = tools::bpf_toolchain(workspace)?;
    say("kernel", format_args!("compiling {PACKAGE} for {TARGET}"));
    build_with(workspace, &toolchain, features, &object)?;
    let features = [features, &[IN_PARTS]].concat();
    build_with(workspace, &toolchain, &features, &in_parts(&object))?;
    Ok(object)
}

fn build_with(
    workspace: &Workspace,
    toolchain: &BpfToolchain,
    features: &[&str],
    object: &Path,
) -> Result<()> {
    cargo(workspace, toolchain, "build")
        .args(["--features", &features.join(",")])
        .run()?;
    let linked = target_dir(workspace)
        .join(TARGET)
        .join("release")
        .join(PACKAGE);
    let stripped = linked.with_extension("o");
    fs::copy(&linked, &stripped).with_context(|| format!("copying {}", linked.display()))?;
    strip(toolchain, &stripped)?;
    let size = fs::metadata(&stripped)?.len();
    let text = if replace_if_changed(&stripped, object)? {
        "new"
    } else {
        "unchanged"
    };
    say(
        "kernel",
        format_args!("{} ({size} bytes, {text})", workspace.display(object)),
    );
    Ok(())
}

/// Clippy over the kernel programs, as they are compiled for the kernel.
pub fn clippy(workspace: &Workspace) -> Result<()> {
    let toolchain = tools::bpf_toolchain(workspace)?;
    for features in ["", IN_PARTS] {
        cargo(workspace, &toolchain, "clippy")
            .args(["--features", features, "--", "-D", "warnings"])
            .run()?;
    }
    Ok(())
}

fn target_dir(workspace: &Workspace) -> PathBuf {
    workspace.target.join("ebpf-build")
}

fn cargo(workspace: &Workspace, toolchain: &BpfToolchain, verb: &str) -> Cmd {
    let mut command = toolchain
        .rustc
        .command("cargo")
        .args([verb, "--release", "--package", PACKAGE, "--target", TARGET])
        .args(["-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(target_dir(workspace))
        .current_dir(&workspace.root)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
        .env_remove("RUSTFLAGS")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            flags(workspace, toolchain).join("\x1f"),
        );
    if !toolchain.rustc.accepts_unstable() {
        command = command.env("RUSTC_BOOTSTRAP", "1");
    }
    if let Source::Folder(library) = &toolchain.source {
        // Cargo's own switch for a library source outside the toolchain, which stays untouched.
        command = command.env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
    }
    command
}

fn flags(workspace: &Workspace, toolchain: &BpfToolchain) -> Vec<String> {
    let library = match &toolchain.source {
        Source::Sysroot => toolchain.rustc.sysroot.join("lib/rustlib/src/rust/library"),
        Source::Folder(library) => library.clone(),
    };
    let mut flags = vec![
        // Registers of the host's architecture are named in traced programs' contexts.
        format!("--cfg=bpf_target_arch=\"{}\"", toolchain.rustc.arch()),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // By default the linker turns every copy and every zeroing of a struct into a loop over its
        // bytes; nothing here needs a copy to keep the order of its bytes.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ];
    flags.extend(remap::flags(workspace, (library, "/rustc/library")));
    flags
}

/// Drops DWARF, which the kernel does not read; BTF stays. Without a stripper the object is only
/// larger.
fn strip(toolchain: &BpfToolchain, object: &Path) -> Result<()> {
    let sysroot = &toolchain.rustc.sysroot;
    let own = sysroot
        .join("lib/rustlib")
        .join(&toolchain.rustc.host)
        .join("bin/rust-objcopy");
    let strip = if is_executable(&own) {
        // It does not find its LLVM in the toolchain by itself.
        Cmd::new(own).env("LD_LIBRARY_PATH", sysroot.join("lib"))
    } else if let Some(objcopy) = find_program("llvm-objcopy") {
        Cmd::new(objcopy)
    } else {
        say(
            "kernel",
            "no rust-objcopy or llvm-objcopy: the object keeps its debug information",
        );
        return Ok(());
    };
    strip.arg("--strip-debug").arg(object).run()
}

/// Leaves `to` alone when it has the same content, so that nothing that depends on it is rebuilt.
fn replace_if_changed(from: &Path, to: &Path) -> Result<bool> {
    let new = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    match fs::read(to) {
        Ok(old) if old == new => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("reading {}", to.display())),
    }
    let dir = to.parent().context("the object has no directory")?;
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    // Both are below the target directory, so this is a rename and readers see all or nothing.
    fs::rename(from, to).with_context(|| format!("writing {}", to.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_object_is_not_touched() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("ebpf/to"));
        fs::write(&from, "one").expect("writable");
        assert!(replace_if_changed(&from, &to).expect("writable"));
        let written = fs::metadata(&to)
            .and_then(|meta| meta.modified())
            .expect("there");
        fs::write(&from, "one").expect("writable");
        assert!(!replace_if_changed(&from, &to).expect("readable"));
        let still = fs::metadata(&to)
            .and_then(|meta| meta.modified())
            .expect("there");
        assert_eq!(written, still);
        fs::write(&from, "two").expect("writable");
        assert!(replace_if_changed(&from, &to).expect("writable"));
        assert_eq!(fs::read_to_string(&to).expect("there"), "two");
        assert_eq!(
            fs::read_dir(dir.path().join("ebpf"))
                .expect("there")
                .count(),
            1
        );
    }
}
