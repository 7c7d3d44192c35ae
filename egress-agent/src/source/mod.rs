//! Where objects come from. Every source gives the same [`Object`](crate::index::Object)s.

mod decode;
mod error;
mod files;
mod kinds;
mod yaml_dir;

pub use decode::{Located, decode};
pub use error::SourceError;
pub use files::{Files, Snapshot};
pub use yaml_dir::YamlDir;

#[cfg(test)]
mod tests;
