//! Gateway policy as configuration of a stock Envoy (1.40 or later), served over xDS.
//!
//! Everything that an access policy changes is in the route configurations, as far as requests go:
//! Envoy takes a new one for the next request of connections that stand already. A changed listener
//! would leave those to the old policy until they have drained.

mod access_log;
mod authz;
mod bootstrap;
mod cluster;
mod forward;
mod listener;
mod pb;
mod rbac;
mod resources;
mod routes;
mod state;
mod tls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::policy::{Gateway, GatewayPolicy, ObjectName};

pub use bootstrap::{Bootstrap, FILES, files};
pub use resources::{CLUSTERS, LISTENERS, ROUTES, Resource, Resources, SECRETS, TYPES};

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
}

/// Renders every gateway.
pub fn render(policy: &GatewayPolicy, settings: &Settings) -> BTreeMap<ObjectName, Arc<Resources>> {
    policy
        .gateways
        .iter()
        .map(|(id, gateway)| {
            let resources = of_gateway(&policy.trust_domain, gateway, settings);
            (id.clone(), Arc::new(resources))
        })
        .collect()
}

fn of_gateway(trust_domain: &str, gateway: &Gateway, settings: &Settings) -> Resources {
    let mut resources = Resources::default();
    let Settings {
        cert_dir,
        upstream_ca,
        authorization,
    } = settings;
    resources.add(tls::certificate(cert_dir), cert_dir);
    resources.add(
        tls::trust(cert_dir, trust_domain),
        &(cert_dir, trust_domain),
    );
    for (name, cluster) in cluster::clusters(gateway, upstream_ca) {
        // The name says everything but the authorities.
        resources.add(cluster, &(name, upstream_ca));
    }
    let wildcards = cluster::has_wildcards(gateway);
    for (&port, served) in &gateway.listeners {
        let routes = routes::configuration(trust_domain, port, served, *authorization);
        // Of what is passed on only the names are in the routes.
        let passed_on: Vec<_> = served.passthrough.keys().collect();
        let source = (trust_domain, &served.hosts, passed_on, authorization);
        resources.add(routes, &source);
        // Of the hosts only the names are in a listener, so that a new rule leaves it as it is.
        let hosts: Vec<_> = served.hosts.keys().collect();
        let source = (
            trust_domain,
            hosts,
            &served.passthrough,
            wildcards,
            authorization,
        );
        for one in listener::listeners(trust_domain, port, served, wildcards, *authorization) {
            resources.add(one, &source);
        }
    }
    resources
}

/// Name of the route configuration of a port.
fn routes_name(port: u16) -> String {
    format!("egress-{port}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::host::HostPattern;
    use crate::gateway::policy::{Listener, Passthrough};

    fn versions(gateway: &Gateway) -> BTreeMap<&'static str, Vec<String>> {
        let settings = Settings {
            cert_dir: "/certs".into(),
            upstream_ca: "/ca.crt".into(),
            authorization: Authorization::Rbac,
        };
        let resources = of_gateway("cluster.local", gateway, &settings);
        let versions = |type_url| {
            let all = resources.of(type_url);
            all.map(|(_, resource)| resource.version.clone()).collect()
        };
        TYPES.map(|type_url| (type_url, versions(type_url))).into()
    }

    #[test]
    fn a_name_that_is_passed_on_changes_routes_and_listeners() {
        let mut gateway = Gateway::default();
        let listener = gateway.listeners.entry(8443).or_insert(Listener::default());
        let wildcard = HostPattern::parse("*.some.example").unwrap();
        listener.hosts.insert(wildcard, BTreeMap::new());
        let before = versions(&gateway);
        assert_eq!(before, versions(&gateway.clone()), "the same for the same");
        let listener = gateway.listeners.get_mut(&8443).unwrap();
        let name = HostPattern::parse("one.some.example").unwrap();
        listener
            .passthrough
            .insert(name, Passthrough { served: None });
        let after = versions(&gateway);
        // Without it the wildcard would go on admitting requests for that name.
        assert_ne!(before[ROUTES], after[ROUTES]);
        assert_ne!(before[LISTENERS], after[LISTENERS]);
        assert_eq!(before[SECRETS], after[SECRETS]);
    }
}
