//! The node agent: declared state in, kernel state out.
//!
//! Data goes one way: `source` → `index` → `compile` → `reconcile` → `datapath`; `node` tells
//! where the pods of this node are, `nri` which ones the container runtime is about to start,
//! `gateway` renders the egress gateways' configuration from the same index, `policy_server` answers
//! gateways by it, `telemetry` and `cli` read what the kernel reports, `risk` says what weakens the
//! promise. `index`, `compile`, `risk` and the planning half of `reconcile` are pure: no I/O, no
//! clock, no lock.

pub mod agent;
pub mod api;
pub mod cli;
pub mod compile;
pub mod datapath;
pub mod explain;
pub mod fence;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod gateway;
pub mod index;
pub mod netlink;
pub mod node;
pub mod nri;
pub mod policy_server;
pub mod reconcile;
pub mod risk;
pub mod source;
pub mod telemetry;
pub mod tls;
