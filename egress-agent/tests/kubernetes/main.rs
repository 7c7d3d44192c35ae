//! The Kubernetes source against a double of the API server.

mod agents;
mod converge;
mod enforced;
mod faults;
mod gateway_status;
mod history;
mod kernel;
mod objects;
mod reports;
mod rights;
mod source;
mod startup_taint;
mod status;
mod wide;
mod world;
