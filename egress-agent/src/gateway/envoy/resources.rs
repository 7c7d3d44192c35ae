//! What one Envoy is configured by, ready to be served.

use std::collections::BTreeMap;

use envoy_types::pb::google::protobuf::Any;

/// Configuration of one gateway's Envoy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// By type URL (`type.googleapis.com/envoy.config.cluster.v3.Cluster`), then by name.
    pub by_type: BTreeMap<&'static str, BTreeMap<String, Resource>>,
}

/// One resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Hash of `body`: 16 hexadecimal digits.
    pub version: String,
    pub body: Any,
}
