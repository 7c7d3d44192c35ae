//! Hands the kernel objects to the agent, which embeds `$OUT_DIR/egress-ebpf.o` and
//! `$OUT_DIR/egress-ebpf-in-parts.o`.
//!
//! The first is `$SALLYPORT_EBPF_OBJECT`, else what `cargo xtask build` left in the target
//! directory; the second is beside it. Without them the embedded files are empty and the agent
//! refuses to start, so that checking and editing need no BPF tools.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

const VARIABLE: &str = "SALLYPORT_EBPF_OBJECT";
const IN_PARTS: &str = "egress-ebpf-in-parts.o";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets no OUT_DIR")?);
    let object = if let Some(given) = env::var_os(VARIABLE) {
        PathBuf::from(given)
    } else {
        let dir = target_dir(&out_dir)?.join("ebpf");
        // Cargo reruns a script each time for a path that does not exist; a directory that
        // exists is watched for the object to come.
        fs::create_dir_all(&dir)?;
        println!("cargo::rerun-if-changed={}", dir.display());
        dir.join("egress-ebpf.o")
    };
    let in_parts = object.with_file_name(IN_PARTS);
    embed(&object, &out_dir.join("egress-ebpf.o"))?;
    embed(&in_parts, &out_dir.join(IN_PARTS))
}

fn embed(object: &Path, embedded: &Path) -> Result<(), Box<dyn Error>> {
    if object.is_file() {
        println!("cargo::rerun-if-changed={}", object.display());
        fs::copy(object, embedded)
            .map_err(|error| format!("copying {}: {error}", object.display()))?;
        return Ok(());
    }
    fs::write(embedded, [])?;
    println!(
        "cargo::warning=no kernel object at {}: this agent will refuse to start. Run `cargo xtask build`.",
        object.display()
    );
    Ok(())
}

/// Cargo tells build scripts only `OUT_DIR`, somewhere below the target directory.
fn target_dir(out_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    if let Some(dir) = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from)
        && dir.is_absolute()
    {
        return Ok(dir);
    }
    // Cargo marks the directory it made; one made by hand is found by the usual layout,
    // <target>/[<triple>/]<profile>/build/<package>/out.
    if let Some(marked) = out_dir
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
    {
        return Ok(marked.to_path_buf());
    }
    let above_profile = out_dir
        .ancestors()
        .nth(4)
        .ok_or("OUT_DIR is not in a target directory")?;
    let triple = env::var_os("TARGET").ok_or("cargo sets no TARGET")?;
    let target = match above_profile.parent() {
        Some(parent) if above_profile.file_name() == Some(&triple) => parent,
        _ => above_profile,
    };
    Ok(target.to_path_buf())
}
