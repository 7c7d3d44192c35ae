//! What Sallyport's kernel programs and its agent share: the types of the maps,
//! the parsing of packets and the decision about them.
//!
//! Everything here is `no_std` on the BPF target and plain Rust elsewhere, so the
//! kernel, the unit tests, the property tests and `egressctl explain` run the same code.
#![cfg_attr(target_arch = "bpf", no_std)]
#![allow(
    clippy::inline_always,
    reason = "a BPF call costs a stack frame of 512 bytes in all; what is inlined is chosen by hand"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of headers are cut to their field on purpose; `try_from` would be a branch"
)]

pub mod decide;
pub mod event;
pub mod flow;
#[cfg(feature = "testing")]
pub mod frames;
pub mod limits;
pub mod maps;
#[cfg(not(target_arch = "bpf"))]
pub mod memory;
pub mod offload;
pub mod packet;
pub mod reason;
pub mod tables;

pub use decide::{Outcome, Side};
pub use reason::{Reason, Verdict};
