//! (being written)

pub mod pinned;
