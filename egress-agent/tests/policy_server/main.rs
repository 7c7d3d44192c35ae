//! The policy server's connections, on loopback: who gets in, how certificates change, and what
//! becomes of those who mean it harm.

mod ads;
mod bytes;
mod child;
mod ends;
mod flood;
#[path = "../support/grpc.rs"]
mod grpc;
mod handshake;
#[path = "../support/pki.rs"]
mod pki;
#[allow(dead_code, reason = "each test binary uses its own part")]
#[path = "../support/policy_server.rs"]
mod policy_server;
mod rotation;
mod workload;
mod world;
