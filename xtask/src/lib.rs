//! Sallyport's set-up, build and test verbs, run as `cargo xtask <verb>`.
//!
//! One file per verb; `main.rs` only parses the command line and calls it.

pub mod apiserver;
pub mod battery;
pub mod bench;
pub mod binaries;
pub mod checks;
pub mod cmd;
pub mod crds;
pub mod demo;
pub mod deploy;
pub mod e2e;
pub mod ebpf;
pub mod fuzz;
pub mod image;
pub mod node;
pub mod nri;
mod remap;
pub mod soak;
pub mod test;
pub mod tools;
pub mod vm;
pub mod workspace;
