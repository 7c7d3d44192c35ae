//! The `e2e` verb.
pub mod inside;
