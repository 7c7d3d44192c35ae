//! The Kubernetes source against a double of the API server.

mod converge;
mod faults;
mod objects;
mod source;
mod world;
