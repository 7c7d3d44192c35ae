//! Who we are and whom we trust, for mutual TLS with SPIFFE identities.
//!
//! A [`Source`] follows certificate files or the SPIFFE Workload API and publishes [`Identity`]
//! values; [`server_config`] makes a TLS configuration of one. Connections that stand keep the one
//! they began with, each new handshake takes the latest. Errors name the file and what to do.
#![forbid(unsafe_code)]

mod config;
mod files;
mod identity;
mod peer;
mod source;
mod workload;

pub use config::{MinVersion, client_config, server_config};
pub use identity::{Identity, IdentityError};
pub use peer::{Peer, PeerError};
pub use source::{Identities, Source};
