//! Gateway policy as configuration of a stock Envoy (1.40 or later), served over xDS.
//!
//! Everything that an access policy changes is in the route configurations, as far as requests go:
//! Envoy takes a new one for the next request of connections that stand already. A changed listener
//! would leave those to the old policy until they have drained.

mod access_log;
mod authz;
mod binding;
mod bootstrap;
mod canonical;
mod cluster;
mod forward;
mod listener;
mod lookup;
mod pb;
mod rbac;
mod resources;
mod routes;
mod state;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::identity::Binding;
use super::policy::{Gateway, GatewayPolicy, ObjectName};

pub use authz::{UPSTREAM, way_of_connection, way_of_request};
pub use binding::Owners;
pub use bootstrap::{Bootstrap, FILES, files};
pub use resources::{CLUSTERS, EXTENSIONS, LISTENERS, ROUTES, Resource, Resources, SECRETS, TYPES};

/// Name of the bootstrap's cluster that leads to the policy server.
pub const POLICY_CLUSTER: &str = "sallyport";

/// What decides at the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authorization {
    /// Envoy's own RBAC: no call for a request.
    #[default]
    Rbac,
    /// The policy server, asked about each request.
    ExtAuthz,
}

/// Where Envoy finds its files, by the paths that Envoy sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Holds the gateway's `tls.crt` and `tls.key`, and `ca.crt` to check clients by.
    pub cert_dir: PathBuf,
    /// Authorities that outside servers are checked by (PEM).
    pub upstream_ca: PathBuf,
    pub authorization: Authorization,
    /// The policy server binds clients itself; this is for Envoys with rules of their own.
    pub binding: Binding,
}

impl Settings {
    /// Whether Envoy itself looks where certificates are used from.
    fn binds(&self) -> bool {
        self.authorization == Authorization::Rbac && self.binding != Binding::Off
    }
}

/// Renders every gateway.
pub fn render(
    policy: &GatewayPolicy,
    settings: &Settings,
    owners: &Owners,
) -> BTreeMap<ObjectName, Arc<Resources>> {
    policy
        .gateways
        .iter()
        .map(|(id, gateway)| {
            let resources = of_gateway(&policy.trust_domain, gateway, settings, owners);
            (id.clone(), Arc::new(resources))
        })
        .collect()
}

fn of_gateway(
    trust_domain: &str,
    gateway: &Gateway,
    settings: &Settings,
    owners: &Owners,
) -> Resources {
    let mut resources = Resources::default();
    let Settings {
        cert_dir,
        upstream_ca,
        authorization,
        binding,
    } = settings;
    if settings.binds() {
        for one in binding::resources(owners, *binding) {
            resources.add(one);
        }
    }
    resources.add(tls::certificate(cert_dir));
    resources.add(tls::trust(cert_dir, trust_domain));
    for cluster in cluster::clusters(gateway, upstream_ca).into_values() {
        resources.add(cluster);
    }
    for route in cluster::passthroughs(gateway).filter(|route| route.host.is_none()) {
        resources.add(lookup::way(route.port));
        resources.add(lookup::listener(route));
    }
    let wildcards = cluster::has_wildcards(gateway);
    for (&port, served) in &gateway.listeners {
        resources.add(routes::configuration(
            trust_domain,
            port,
            served,
            *authorization,
        ));
        for one in listener::listeners(trust_domain, port, served, wildcards, settings) {
            resources.add(one);
        }
    }
    resources
}

/// Name of the route configuration of a port.
fn routes_name(port: u16) -> String {
    format!("egress-{port}")
}
