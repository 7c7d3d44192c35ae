//! Where objects come from. Every source gives the same [`Object`](crate::index::Object)s.
#![forbid(unsafe_code)]

mod declared;
mod decode;
mod error;
mod feed;
mod files;
mod kinds;
pub mod kubernetes;
mod yaml_dir;

pub use declared::{AllDeclared, Declared};
pub use decode::{Located, decode};
pub use error::SourceError;
pub use feed::{Ended, Feed, Health, Update, Updates, feed};
pub use files::{Files, Snapshot};
pub use yaml_dir::YamlDir;

#[cfg(test)]
mod tests;
