//! A Kubernetes node in miniature, made of what a real one is made of: network namespaces with
//! veth and host route, cgroups under a `kubepods` tree, Service addresses with DNAT, an outside
//! host. The demo and the integration tests stand on it.
//!
//! Nothing of it is in the machine's own network namespace: the "host" of the node is a namespace
//! too, and the agent runs in there. Several nodes can stand at once.
//!
//! ```no_run
//! use xtask::node::{Node, NodeOptions, PodSpec};
//!
//! # fn main() -> anyhow::Result<()> {
//! let node = Node::new(&NodeOptions::with_helper("target/debug/xtask"))?;
//! let pod = node.pod(&PodSpec::new("bookinfo", "reviews-v1", 11))?;
//! let answer = pod.probe(&["udp", "--to", "203.0.113.10:9999", "--payload", "hello"])?;
//! assert_eq!(answer.outcome, "answered");
//! # Ok(())
//! # }
//! ```
//!
//! The node is taken down when it is dropped; if this process dies before, in whatever way, a
//! helper process that waits for that does it.

mod build;
mod cgroup;
pub mod confine;
pub mod dns;
pub mod envoy;
mod flood;
pub(crate) mod http;
pub mod inner;
pub(crate) mod mesh;
mod netns;
pub mod objects;
pub mod pki;
mod place;
pub mod plan;
pub(crate) mod pod;
pub mod probe;
mod process;
pub(crate) mod raw;
mod reaper;
pub(crate) mod serve;
mod service;
mod teardown;
mod tool;
pub mod wire;

use std::time::Duration;

pub use build::{Node, NodeOptions};
pub use netns::Netns;
pub use place::Placement;
pub use pod::{ANY_CONTAINER, Pod, PodSpec, Qos};
pub use probe::Answer;
pub use process::{PodCommand, Process};
pub use service::{Backend, Service, ServicePort};
pub use teardown::{ROOT as RUN_ROOT, cleanup, teardown};

/// How long an agent may take to be in step, where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long an agent may take to be in step: emulated machines are slow, and name another bound
/// (`$SALLYPORT_PATIENCE`, seconds).
pub fn patience() -> Duration {
    let named = std::env::var("SALLYPORT_PATIENCE").ok();
    let seconds = named.and_then(|text| text.parse().ok());
    seconds.map_or(PATIENCE, Duration::from_secs)
}
