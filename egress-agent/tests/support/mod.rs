//! What the tests and benchmarks of the kernel programs share: the programs loaded over maps of
//! their own, and a policy to look things up in.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod kernel;
pub mod place;
pub mod policy;
