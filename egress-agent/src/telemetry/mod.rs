//! What the kernel reports, made readable: events with names, a socket to follow them, metrics.

pub mod clock;
pub mod decode;
pub mod events;
pub mod flow;
pub mod http;
pub mod hub;
mod kernel_metrics;
pub mod lock;
pub mod metrics;
pub mod socket;

pub use events::Consumer;
pub use flow::FlowEvent;
pub use hub::Hub;
pub use metrics::Metrics;
