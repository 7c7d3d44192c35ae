//! The battery: numbered attempts to get around the lockdown, with real packets and system calls.
//!
//! [`catalogue`] lists them; the numbers are public and never given again. An attempt runs in the
//! pod's network namespace and in a cgroup of the pod ([`inside`]); what became of it is seen from
//! the node, by a tap on all devices ([`tap`]) and by the kernel's counters, which whoever runs the
//! battery reads. [`row`] judges. `egressctl verify` runs it on a node, `cargo xtask battery` on a
//! node in miniature, with what needs a cluster's objects besides.

pub mod attempts;
pub mod case;
pub mod catalogue;
pub mod client;
pub mod craft;
pub mod ground;
pub mod inside;
pub mod row;
pub mod tap;
