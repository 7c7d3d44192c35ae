//! Routes: from host and client port to a cluster, each with its rules.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, Route as EnvoyRoute, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use envoy_types::pb::google::protobuf::Any;

use super::pb::{regex, seconds};
use super::{Authorization, access_log, authz, cluster, forward, rbac, routes_name};
use crate::gateway::host::HostName;
use crate::gateway::policy::{Listener, Route, Upstream};

/// What tells the outside about the mesh.
const REMOVED: [&str; 11] = [
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-envoy-internal",
    "x-envoy-external-address",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-attempt-count",
    "x-envoy-original-path",
    "x-envoy-original-host",
    "x-envoy-peer-metadata",
    "x-envoy-peer-metadata-id",
    "x-envoy-decorator-operation",
];

/// The route configuration of one port.
pub(super) fn configuration(
    trust_domain: &str,
    port: u16,
    listener: &Listener,
    authorization: Authorization,
) -> RouteConfiguration {
    let hosts = listener.hosts.iter().map(|(pattern, routes)| {
        let routes = routes
            .iter()
            .map(|(&client_port, served)| route(trust_domain, client_port, served, authorization));
        // Hosts that are named but not served have a virtual host too: a wildcard is no way
        // around them.
        VirtualHost {
            name: pattern.to_string(),
            domains: vec![pattern.to_string()],
            routes: routes.collect(),
            ..VirtualHost::default()
        }
    });
    // For what is passed on there are no requests, also not below a wildcard that has some.
    let passed_on = listener.passthrough.keys().map(|pattern| VirtualHost {
        name: pattern.to_string(),
        domains: vec![pattern.to_string()],
        ..VirtualHost::default()
    });
    RouteConfiguration {
        name: routes_name(port),
        virtual_hosts: hosts.chain(passed_on).collect(),
        // The port is matched with the whole authority, below.
        ignore_port_in_host_matching: true,
        request_headers_to_remove: REMOVED.map(str::to_owned).to_vec(),
        ..RouteConfiguration::default()
    }
}

fn route(
    trust_domain: &str,
    client_port: u16,
    route: &Route,
    authorization: Authorization,
) -> EnvoyRoute {
    let name = match &route.service {
        Some(service) => format!("ExternalService/{service}:{}", route.upstream.port),
        None => "ALLOW_ANY".to_owned(),
    };
    let host = route.upstream.host.as_ref();
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster::name(&route.upstream))),
        // Downloads and streams are as long as they are; the idle timeout ends the dead ones.
        timeout: seconds(0),
        idle_timeout: seconds(300),
        host_rewrite_specifier: host
            .map(|host| HostRewriteSpecifier::HostRewriteLiteral(authority(host, &route.upstream))),
        ..RouteAction::default()
    };
    let mut filters = HashMap::new();
    let mut configure = |filter: &str, config: Any| {
        filters.insert(filter.to_owned(), config);
    };
    match authorization {
        Authorization::Rbac => {
            let service = route.service.as_ref();
            let rules = rbac::per_route(trust_domain, &route.rules, service);
            configure(rbac::FILTER, rules);
            for (filter, kept) in access_log::of_ruled_route(&route.rules, service) {
                configure(filter, kept);
            }
        }
        Authorization::ExtAuthz => {
            configure(rbac::FILTER, rbac::per_route_open());
            let upstream = cluster::name(&route.upstream);
            configure(authz::FILTER, authz::per_route(&upstream));
            let (filter, kept) = access_log::of_asked_route();
            configure(filter, kept);
        }
    }
    if host.is_none() {
        let upstream = forward::dynamic_upstream(route.upstream.port);
        configure(forward::UPSTREAM_FILTER, upstream);
    }
    let authority = HeaderMatcher {
        name: ":authority".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(regex(&authority_regex(
            client_port,
        )))),
        ..HeaderMatcher::default()
    };
    EnvoyRoute {
        name,
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            headers: vec![authority],
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(action)),
        typed_per_filter_config: filters,
        ..EnvoyRoute::default()
    }
}

/// What the server is asked for: with its port where that is not the scheme's own.
fn authority(host: &HostName, upstream: &Upstream) -> String {
    let own = if upstream.tls.is_some() { 443 } else { 80 };
    if upstream.port == own {
        host.to_string()
    } else {
        format!("{host}:{}", upstream.port)
    }
}

/// Host names with the client's port; 80 may be left out. Which host it is Envoy has matched by
/// domain already; addresses under `*` and odd characters match no route. It is short and the same
/// for every host, since Envoy refuses expressions whose RE2 program is larger than 100.
fn authority_regex(client_port: u16) -> String {
    let host = r"([a-z0-9_](-*[a-z0-9_])*\.)*[a-z_](-*[a-z0-9_])*";
    let port = if client_port == 80 {
        "(:80)?".to_owned()
    } else {
        format!(":{client_port}")
    };
    format!("(?i){host}{port}")
}
