//! The Kubernetes source against a double of the API server.

mod converge;
mod enforced;
mod faults;
mod gateway_status;
mod history;
mod kernel;
mod objects;
mod source;
mod startup_taint;
mod status;
mod wide;
mod world;
