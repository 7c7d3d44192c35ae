//! Routes: from host and client port to a cluster, each with its rules.

use serde_json::{Value, json};

use super::{cluster, rbac, routes_name, type_url};
use crate::gateway::host::HostName;
use crate::gateway::policy::{Listener, Route, Upstream};

/// The route configuration of one port.
pub(super) fn configuration(trust_domain: &str, port: u16, listener: &Listener) -> Value {
    let hosts = listener.hosts.iter().map(|(pattern, routes)| {
        let routes: Vec<Value> = routes
            .iter()
            .map(|(&client_port, served)| route(trust_domain, client_port, served))
            .collect();
        // Hosts that are named but not served have a virtual host too: a wildcard is no way
        // around them.
        json!({ "name": pattern.to_string(), "domains": [pattern.to_string()], "routes": routes })
    });
    json!({
        "@type": type_url("envoy.config.route.v3.RouteConfiguration"),
        "name": routes_name(port),
        "virtual_hosts": hosts.collect::<Vec<_>>(),
        // The port is matched with the whole authority, below.
        "ignore_port_in_host_matching": true,
        // What tells the outside about the mesh.
        "request_headers_to_remove": [
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
        ],
    })
}

fn route(trust_domain: &str, client_port: u16, route: &Route) -> Value {
    let name = match &route.service {
        Some(service) => format!("ExternalService/{service}:{}", route.upstream.port),
        None => "ALLOW_ANY".to_owned(),
    };
    let mut action = json!({
        "cluster": cluster::name(&route.upstream),
        // Downloads and streams are as long as they are; the idle timeout ends the dead ones.
        "timeout": "0s",
        "idle_timeout": "300s",
    });
    if let Some(host) = &route.upstream.host {
        action["host_rewrite_literal"] = json!(authority(host, &route.upstream));
    }
    let mut rendered = json!({
        "name": name,
        "match": {
            "prefix": "/",
            "headers": [{
                "name": ":authority",
                "string_match": { "safe_regex": { "regex": authority_regex(client_port) } },
            }],
        },
        "route": action,
        "typed_per_filter_config": { rbac::FILTER: rbac::per_route(trust_domain, &route.rules) },
    });
    if route.upstream.host.is_none() {
        rendered["typed_per_filter_config"][cluster::UPSTREAM_FILTER] =
            cluster::dynamic_upstream(route.upstream.port);
    }
    rendered
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
