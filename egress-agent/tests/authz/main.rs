//! A gateway that others configure, as Istio does, asking the policy server about each request: a
//! real Envoy over real mutual TLS, on loopback. Addresses in 127.0.0.0/8 stand for pods.

mod callers;
mod certificates;
#[allow(dead_code, reason = "each test crate uses its own part")]
#[path = "../envoy/client.rs"]
mod client;
mod config;
mod connections;
#[path = "../support/http2.rs"]
mod http2;
mod identity;
mod load;
#[allow(dead_code, reason = "each test crate uses its own part")]
#[path = "../envoy/mesh.rs"]
mod mesh;
mod objects;
#[allow(dead_code, reason = "each test crate uses its own part")]
#[path = "../support/policy_server.rs"]
mod policy_server;
#[path = "../support/ports.rs"]
mod ports;
mod requests;
#[allow(dead_code, reason = "each test crate uses its own part")]
#[path = "../envoy/upstream.rs"]
mod upstream;
mod world;
