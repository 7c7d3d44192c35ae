//! What one Envoy is configured by, ready to be served.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use sha2::{Digest, Sha256};

use super::canonical;

/// Type URLs of what is served.
pub const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
pub const SECRETS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
pub const EXTENSIONS: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";

/// All of them, in the order in which an addition takes effect without a gap.
pub const TYPES: [&str; 5] = [SECRETS, CLUSTERS, LISTENERS, ROUTES, EXTENSIONS];

/// Configuration of one gateway's Envoy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// By type URL, then by name.
    pub by_type: BTreeMap<&'static str, BTreeMap<String, Resource>>,
}

/// One resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Names the content: 16 hexadecimal digits.
    pub version: String,
    /// Equal messages have equal bytes here.
    pub body: Any,
}

/// A message that is served by name.
pub trait Served: Message + Name {
    const TYPE: &'static str;
    fn name(&self) -> &str;
}

impl Served for Cluster {
    const TYPE: &'static str = CLUSTERS;
    fn name(&self) -> &str {
        &self.name
    }
}

impl Served for Listener {
    const TYPE: &'static str = LISTENERS;
    fn name(&self) -> &str {
        &self.name
    }
}

impl Served for RouteConfiguration {
    const TYPE: &'static str = ROUTES;
    fn name(&self) -> &str {
        &self.name
    }
}

impl Served for Secret {
    const TYPE: &'static str = SECRETS;
    fn name(&self) -> &str {
        &self.name
    }
}

impl Served for TypedExtensionConfig {
    const TYPE: &'static str = EXTENSIONS;
    fn name(&self) -> &str {
        &self.name
    }
}

impl Resources {
    /// Adds a message.
    pub fn add<M: Served>(&mut self, message: M) {
        let name = message.name().to_owned();
        let mut body = envoy_types::util::pack_any(message);
        canonical::sort(&mut body);
        let digest = Sha256::digest(&body.value);
        let head = digest.first_chunk().expect("SHA-256 has 32 bytes");
        let resource = Resource {
            version: format!("{:016x}", u64::from_be_bytes(*head)),
            body,
        };
        self.by_type
            .entry(M::TYPE)
            .or_default()
            .insert(name, resource);
    }

    /// The resources of a type, by name.
    pub fn of(&self, type_url: &str) -> impl Iterator<Item = (&String, &Resource)> {
        self.by_type.get(type_url).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_urls_are_those_of_the_messages() {
        assert_eq!(CLUSTERS, Cluster::type_url());
        assert_eq!(LISTENERS, Listener::type_url());
        assert_eq!(ROUTES, RouteConfiguration::type_url());
        assert_eq!(SECRETS, Secret::type_url());
        assert_eq!(EXTENSIONS, TypedExtensionConfig::type_url());
    }
}
