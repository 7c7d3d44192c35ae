//! Brings the kernel to what is desired: `plan` says what to do (pure), `apply` does it.
#![forbid(unsafe_code)]

mod apply;
mod near;
pub mod op;
pub mod plan;
pub mod status;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use apply::{Executor, Failure, Reconciler, Report};
pub use op::{Op, Plan, Step};
pub use plan::{Settings, plan};
pub use status::{Coverage, NodeStatus, PodStatus, status};
