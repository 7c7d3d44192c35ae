//! The Kubernetes source against a double of the API server.

mod converge;
mod faults;
mod gateway_status;
mod history;
mod objects;
mod source;
mod startup_taint;
mod status;
mod world;
