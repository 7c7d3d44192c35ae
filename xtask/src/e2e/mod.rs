//! The `e2e` verb: the whole of Sallyport in a real cluster, case by case.
//!
//! It needs a kubeconfig of an administrator, the agent's image and the suite's own on the nodes (or
//! where they can be pulled from), and nothing of the internet: the outside host is a network
//! namespace that a privileged helper pod hangs on each node. Everything it makes carries a label
//! and goes at the end, also after a failure or Ctrl-C.
//!
//! Without the feature `cluster` there is only what runs in pods.

pub mod image;
pub mod inside;

#[cfg(feature = "cluster")]
mod attempts;
#[cfg(feature = "cluster")]
mod cases;
#[cfg(feature = "cluster")]
mod certs;
#[cfg(feature = "cluster")]
mod cleanup;
#[cfg(feature = "cluster")]
mod cluster;
#[cfg(feature = "cluster")]
mod kind;
#[cfg(feature = "cluster")]
mod objects;
#[cfg(feature = "cluster")]
mod release;
#[cfg(feature = "cluster")]
mod report;
#[cfg(feature = "cluster")]
mod run;
#[cfg(feature = "cluster")]
mod story;
#[cfg(feature = "cluster")]
mod world;

#[cfg(feature = "cluster")]
pub use run::{Args, run};
