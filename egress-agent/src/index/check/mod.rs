//! What makes an object bad, and which of its fields are ignored. One function a kind.

mod gloo;
mod lockdown;

pub(super) use gloo::{access_policy, external_service, virtual_gateway};
pub(super) use lockdown::{lockdown, without_exceptions};
