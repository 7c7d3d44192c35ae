//! Objects in, tables out; no API server and no kernel.
// `json!` makes its value for the one call that takes it.
#![allow(clippy::needless_pass_by_value)]

mod by_clients;
mod clients;
mod exceptions;
mod gateways;
mod kept;
mod lockdowns;
mod make;
mod model;
mod property;
mod random;
mod reach;
mod scenario;
