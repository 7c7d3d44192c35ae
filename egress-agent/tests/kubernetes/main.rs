//! The Kubernetes source against a double of the API server.

mod converge;
mod faults;
mod history;
mod objects;
mod source;
mod world;
