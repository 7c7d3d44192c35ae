//! The container runtime's side of a pod's start, by NRI (node resource interface): containerd from
//! 1.7 and CRI-O tell a plugin of each sandbox and wait for its answer before they make containers.
//!
//! The agent is such a plugin. It learns of a pod before its object says where it is, and answers
//! only when the pod's hooks stand, so that a pod's first instruction meets them. Nothing rests on
//! it: without NRI, or when the agent has no answer in time, the closed gate of the pods' cgroup
//! holds as ever.
//!
//! The protocol is ttrpc in both directions over one Unix socket (`frame`). Of its messages only the
//! fields that matter here are declared (`message`).
#![forbid(unsafe_code)]

mod board;
mod frame;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod message;
mod metrics;
mod plugin;
mod session;

#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::run as fuzz;

pub use board::{Board, Sandbox, Sandboxes, Standing};
pub use metrics::NriMetrics;
pub use plugin::{DEFAULT_SOCKET, Settings, follow};
pub use session::OnTimeout;
