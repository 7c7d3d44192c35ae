//! What Sallyport's kernel programs and its agent share: the types of the maps,
//! the parsing of packets and the decision about them.
//!
//! Everything here is `no_std` on the BPF target and plain Rust elsewhere, so the
//! kernel, the unit tests, the property tests and `egressctl explain` run the same code.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod decide;
pub mod event;
pub mod flow;
pub mod limits;
pub mod maps;
pub mod packet;
pub mod reason;
pub mod tables;

pub use decide::{Outcome, Side};
pub use reason::{Reason, Verdict};
