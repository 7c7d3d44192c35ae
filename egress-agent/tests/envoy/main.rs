//! The rendered configuration in a real Envoy, served by the policy server, on loopback.

mod binding;
mod client;
mod conditions;
mod deployed;
mod families;
mod gateway;
#[path = "../support/http2.rs"]
#[allow(dead_code, reason = "each test crate uses its own part")]
mod http2;
mod live;
mod load;
mod logged;
mod manifest;
mod mesh;
mod outside;
#[allow(dead_code, reason = "each test crate uses its own part")]
mod passthrough;
#[path = "../support/policy_server.rs"]
#[allow(dead_code, reason = "each test crate uses its own part")]
mod policy_server;
#[path = "../support/ports.rs"]
mod ports;
mod rotation;
mod story;
mod tunnel;
mod upstream;
mod validate;
mod world;
