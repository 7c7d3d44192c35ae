//! Objects in, tables out; no API server and no kernel.
// `json!` makes its value for the one call that takes it.
#![allow(clippy::needless_pass_by_value)]
#![cfg_attr(
    not(test),
    allow(dead_code, reason = "the fuzzer starts only the property")
)]

mod by_clients;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod exceptions;
#[cfg(test)]
mod gateways;
#[cfg(test)]
mod kept;
#[cfg(test)]
mod lockdowns;
mod make;
mod model;
#[cfg(test)]
mod nodes;
pub(crate) mod property;
pub(crate) mod random;
#[cfg(test)]
mod reach;
pub(crate) mod scenario;
