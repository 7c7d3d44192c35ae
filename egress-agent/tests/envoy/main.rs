//! The rendered configuration in a real Envoy, on loopback.

mod client;
mod conditions;
mod gateway;
mod live;
mod mesh;
mod story;
mod upstream;
mod validate;
mod world;
