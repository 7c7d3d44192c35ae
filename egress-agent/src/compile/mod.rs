//! From the index to what the kernel should hold. Pure: no I/O, no clock, no lock.

pub mod desired;

pub use desired::{DesiredPod, DesiredState, Digest, Hold, Policy};
