//! Serves gateway policy to the egress gateways, over mutual TLS only.
//!
//! Everything that is answered comes from one [`Served`] value, which is replaced whole: no request
//! is decided by a mix of an old and a new policy.
#![forbid(unsafe_code)]

pub mod accept;
pub mod authz;
mod connection;
mod from_index;
pub mod metrics;
mod named;
mod places;
pub mod query;
mod served;
pub mod server;
pub mod thread;
pub mod xds;

pub use from_index::{clients, gateway_pods, owners};
pub use served::{Caller, GatewayPod, PodAccount, Served};
