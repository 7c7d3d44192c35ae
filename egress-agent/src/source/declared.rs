//! What the API server says of policy objects beside their contents, for what is told of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::status::Envoy;
use crate::index::ObjectId;

/// An object of policy, whether it can be used or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Group and version that it was read in.
    pub api_version: String,
    pub uid: String,
    pub generation: i64,
    /// The `envoys` of a `VirtualGateway`'s status.
    pub envoys: Vec<Envoy>,
    /// Field and reason, if this version can't be read.
    pub unreadable: Option<(String, String)>,
    /// The group of another object of the same kind and name, which has no effect.
    pub shadows: Option<String>,
}

impl Declared {
    /// Whether it is of Sallyport's own group: the others' `status` is not ours to write.
    pub fn is_own(&self) -> bool {
        let group = self.api_version.split('/').next();
        group == Some(crate::api::GROUP)
    }
}

/// All of them.
pub type AllDeclared = Arc<BTreeMap<ObjectId, Declared>>;
