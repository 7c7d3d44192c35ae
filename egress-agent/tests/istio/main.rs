//! Native Istio policy against the policy server: a real Envoy decides each request twice.

// Shared with other test crates, which use more of them.
#[allow(dead_code)]
#[path = "../envoy/client.rs"]
mod client;
mod differential;
mod envoy;
mod generate;
mod istiod;
#[allow(dead_code)]
#[path = "../envoy/mesh.rs"]
mod mesh;
#[allow(dead_code)]
#[path = "../support/policy_server.rs"]
mod policy_server;
