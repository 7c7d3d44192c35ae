//! What the fuzzers of `fuzz/` start, a function a target: each takes bytes from anywhere and panics
//! where something does not hold. Only in builds with `--cfg fuzzing` (`cargo xtask fuzz`) and in unit
//! tests, which replay `fuzz/seeds`.
#![forbid(unsafe_code)]

mod check;
mod frames;
mod objects;
mod peers;
#[cfg(test)]
mod seeds;
mod tables;
mod watch;

/// A target.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its file in `fuzz/fuzz_targets`.
pub const TARGETS: [(&str, Target); 6] = [
    ("check", check::run),
    ("frames", frames::run),
    ("objects", objects::run),
    ("peers", peers::run),
    ("tables", tables::run),
    ("watch", watch::run),
];

/// Runs the target of this name.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.unwrap_or_else(|| panic!("there is no fuzz target `{name}`"));
    target(data);
}
