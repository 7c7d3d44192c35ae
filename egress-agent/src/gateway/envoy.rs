//! Gateway policy as configuration of a stock Envoy (1.40), in the files of its file-based xDS.
//!
//! Everything that an access policy changes is in the route configurations: Envoy takes a new one
//! for the next request of connections that stand already. A changed listener would leave those to
//! the old policy until they have drained.

mod cluster;
mod listener;
mod rbac;
mod resources;
mod routes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::policy::{Gateway, GatewayPolicy, ObjectName};

pub use resources::{Resource, Resources};

/// Where Envoy finds its files, by the paths that Envoy sees.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Holds the gateway's `tls.crt` and `tls.key`, and `ca.crt` to check clients by.
    pub cert_dir: PathBuf,
    /// Authorities that outside servers are checked by (PEM).
    pub upstream_ca: PathBuf,
    /// Holds a directory for each gateway, as [`directory`] names it.
    pub config_dir: PathBuf,
}

/// Files by gateway directory; of each gateway in the order in which they must be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    pub gateways: BTreeMap<String, Vec<File>>,
}

/// A file of one gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub name: String,
    pub content: String,
}

/// Renders every gateway.
pub fn render(policy: &GatewayPolicy, settings: &Settings) -> Rendered {
    let gateways = policy.gateways.iter().map(|(id, gateway)| {
        let directory = directory(id);
        let own = settings.config_dir.join(&directory);
        (
            directory,
            gateway_files(&policy.trust_domain, gateway, settings, &own),
        )
    });
    Rendered {
        gateways: gateways.collect(),
    }
}

/// A gateway's directory: `<namespace>.<name>`. A namespace has no dot, so no two share one.
pub fn directory(gateway: &ObjectName) -> String {
    format!("{}.{}", gateway.namespace, gateway.name)
}

fn gateway_files(
    trust_domain: &str,
    gateway: &Gateway,
    settings: &Settings,
    own: &Path,
) -> Vec<File> {
    let mut files = vec![
        file(
            CERTIFICATE_FILE,
            &[listener::certificate(&settings.cert_dir)],
        ),
        file(
            TRUST_FILE,
            &[listener::trust(&settings.cert_dir, trust_domain)],
        ),
        file(
            CLUSTERS_FILE,
            &cluster::clusters(gateway, &settings.upstream_ca),
        ),
    ];
    for (&port, policy) in &gateway.listeners {
        files.push(file(
            &routes_file(port),
            &[routes::configuration(trust_domain, port, policy)],
        ));
    }
    let wildcards = cluster::has_wildcards(gateway);
    let listeners: Vec<Value> = gateway
        .listeners
        .keys()
        .flat_map(|&port| listener::listeners(port, own, wildcards))
        .collect();
    files.push(file(LISTENERS_FILE, &listeners));
    files
}

/// The bootstrap that a gateway's Envoy starts with: it follows the gateway's directory below
/// `config_dir`, as Envoy sees that. It never changes, and has no admin interface.
pub fn bootstrap(gateway: &ObjectName, config_dir: &Path) -> String {
    let own = config_dir.join(directory(gateway));
    let bootstrap = json!({
        "node": { "id": gateway.to_string(), "cluster": gateway.to_string() },
        "dynamic_resources": {
            "cds_config": listener::watched(&own.join(CLUSTERS_FILE)),
            "lds_config": listener::watched(&own.join(LISTENERS_FILE)),
        },
        "overload_manager": { "resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": type_url(
                    "envoy.extensions.resource_monitors.downstream_connections.v3\
                     .DownstreamConnectionsConfig"
                ),
                "max_active_downstream_connections": 50_000,
            },
        }] },
    });
    format!("{bootstrap:#}\n")
}

/// Configuration of a gateway that is gone: it listens nowhere.
pub fn empty() -> Vec<File> {
    vec![file(LISTENERS_FILE, &[]), file(CLUSTERS_FILE, &[])]
}

pub(super) const CERTIFICATE_FILE: &str = "sds-certificate.json";
pub(super) const TRUST_FILE: &str = "sds-trust.json";
pub(super) const CLUSTERS_FILE: &str = "cds.json";
pub(super) const LISTENERS_FILE: &str = "lds.json";

/// Name of the route configuration of a port, and of its file without `.json`.
fn routes_name(port: u16) -> String {
    format!("rds-{port}")
}

/// One file each: Envoy takes a single resource from a route file.
fn routes_file(port: u16) -> String {
    format!("{}.json", routes_name(port))
}

/// A `DiscoveryResponse`; its version is the hash of what is in it.
fn file(name: &str, resources: &[Value]) -> File {
    let digest = Sha256::digest(Value::from(resources).to_string());
    let head = digest.first_chunk().expect("SHA-256 has 32 bytes");
    let version = format!("{:016x}", u64::from_be_bytes(*head));
    let response = json!({ "version_info": version, "resources": resources });
    File {
        name: name.to_owned(),
        content: format!("{response:#}\n"),
    }
}

fn type_url(name: &str) -> String {
    format!("type.googleapis.com/{name}")
}
