//! What a source could not take.

use std::fmt;
use std::path::PathBuf;

/// A file, or a part of one, that could not be taken; what stood in it before still stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub struct SourceError {
    /// Empty for text that is not from a file.
    pub file: PathBuf,
    /// From 1; none where it is about the whole file.
    pub line: Option<u32>,
    /// From 1.
    pub column: Option<u32>,
    /// `Kind/namespace/name` as far as known, else empty.
    pub object: String,
    /// Path of the field, such as `spec.allow.cidrs[0].cidr`; empty where it is about no field.
    pub field: String,
    /// Says what is wrong and what to do.
    pub reason: String,
}

impl fmt::Display for SourceError {
    /// `file:line:column: object: field: reason`, without what is not known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        if !self.file.as_os_str().is_empty() || self.line.is_some() {
            f.write_str(": ")?;
        }
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.reason)
    }
}
