//! Clusters: how the gateway reaches the outside, and how servers there prove themselves.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::type_url;
use crate::gateway::policy::{Gateway, Route, Upstream, UpstreamHttp, UpstreamTls};

/// Sets a wildcard's upstream, ahead of the dynamic forward proxy.
pub(super) const UPSTREAM_FILTER: &str = "sallyport.upstream";

fn upstreams(gateway: &Gateway) -> impl Iterator<Item = &Upstream> {
    gateway
        .listeners
        .values()
        .flat_map(|listener| listener.hosts.values())
        .flat_map(BTreeMap::values)
        .map(|route: &Route| &route.upstream)
}

/// Whether a host is only known when it is asked for.
pub(super) fn has_wildcards(gateway: &Gateway) -> bool {
    upstreams(gateway).any(|upstream| upstream.host.is_none())
}

/// Name of the cluster: equal upstreams share one.
pub(super) fn name(upstream: &Upstream) -> String {
    let host = upstream.host.as_ref().map_or("*", |host| host.as_str());
    let http = match upstream.http {
        UpstreamHttp::Http1 => "http1",
        UpstreamHttp::Http2 => "http2",
        UpstreamHttp::Negotiated => "alpn",
    };
    let tls = match &upstream.tls {
        None => "plain".to_owned(),
        Some(UpstreamTls {
            sni,
            subject_alt_names,
        }) => {
            let sni = sni.as_ref().map_or("", |sni| sni.as_str());
            format!("tls|{sni}|{}", subject_alt_names.join(","))
        }
    };
    format!("outbound|{}||{host}|{http}|{tls}", upstream.port)
}

/// The clusters of a gateway, sorted by name.
pub(super) fn clusters(gateway: &Gateway, ca: &Path) -> Vec<Value> {
    let clusters: BTreeMap<String, Value> = upstreams(gateway)
        .map(|upstream| (name(upstream), cluster(upstream, ca)))
        .collect();
    clusters.into_values().collect()
}

fn cluster(upstream: &Upstream, ca: &Path) -> Value {
    let name = name(upstream);
    let mut cluster = json!({
        "@type": type_url("envoy.config.cluster.v3.Cluster"),
        "name": name,
        "connect_timeout": "5s",
        "per_connection_buffer_limit_bytes": 1 << 20,
        "circuit_breakers": { "thresholds": [{
            "max_connections": 4096,
            "max_pending_requests": 1024,
            "max_requests": 4096,
        }] },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http_options(upstream),
        },
    });
    if let Some(host) = &upstream.host {
        cluster["cluster_type"] = json!({
            "name": "envoy.cluster.dns",
            "typed_config": {
                "@type": type_url("envoy.extensions.clusters.dns.v3.DnsCluster"),
                // One logical host, so that a changed answer closes no connection.
                "all_addresses_in_single_endpoint": true,
                "dns_lookup_family": "ALL",
                "respect_dns_ttl": true,
                "typed_dns_resolver_config": resolver(),
            },
        });
        cluster["load_assignment"] = json!({
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": { "socket_address": {
                "address": host.as_str(), "port_value": upstream.port,
            } } } }] }],
        });
    } else {
        cluster["lb_policy"] = json!("CLUSTER_PROVIDED");
        cluster["cluster_type"] = json!({
            "name": "envoy.clusters.dynamic_forward_proxy",
            "typed_config": {
                "@type": type_url(
                    "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig"
                ),
                "dns_cache_config": dns_cache(),
            },
        });
    }
    if let Some(tls) = &upstream.tls {
        cluster["transport_socket"] = upstream_tls(upstream, tls, ca);
    }
    cluster
}

/// Names are whole: a search domain would turn `httpbin.org` into a Service `httpbin` of a
/// namespace `org`.
fn resolver() -> Value {
    json!({
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": type_url("envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"),
            "dns_resolver_options": { "no_default_search_domain": true },
        },
    })
}

fn dns_cache() -> Value {
    json!({
        "name": "egress",
        "dns_lookup_family": "ALL",
        "max_hosts": 1024,
        "typed_dns_resolver_config": resolver(),
    })
}

fn http_options(upstream: &Upstream) -> Value {
    let http2 = json!({ "max_concurrent_streams": 100 });
    let mut options = json!({
        "@type": type_url("envoy.extensions.upstreams.http.v3.HttpProtocolOptions"),
        "common_http_protocol_options": { "idle_timeout": "300s" },
    });
    match upstream.http {
        UpstreamHttp::Http1 => {
            options["explicit_http_config"] = json!({ "http_protocol_options": {} });
        }
        UpstreamHttp::Http2 => {
            options["explicit_http_config"] = json!({ "http2_protocol_options": http2 });
        }
        UpstreamHttp::Negotiated => {
            options["auto_config"] =
                json!({ "http_protocol_options": {}, "http2_protocol_options": http2 });
        }
    }
    if upstream.host.is_none() && upstream.tls.is_some() {
        options["upstream_http_protocol_options"] =
            json!({ "auto_sni": true, "auto_san_validation": true });
    }
    options
}

fn upstream_tls(upstream: &Upstream, tls: &UpstreamTls, ca: &Path) -> Value {
    let mut validation = json!({ "trusted_ca": { "filename": ca.to_string_lossy() } });
    let mut context = json!({
        "@type": type_url("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
    });
    if let Some(host) = &upstream.host {
        context["sni"] = json!(tls.sni.as_ref().unwrap_or(host).as_str());
        let own = [host.to_string()];
        let names = if tls.subject_alt_names.is_empty() {
            &own[..]
        } else {
            &tls.subject_alt_names
        };
        let matchers: Vec<Value> = names
            .iter()
            .map(|name| {
                let kind = if name.contains("://") { "URI" } else { "DNS" };
                json!({ "san_type": kind, "matcher": { "exact": name } })
            })
            .collect();
        validation["match_typed_subject_alt_names"] = json!(matchers);
    }
    context["common_tls_context"] = json!({
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_2" },
        "validation_context": validation,
    });
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
}

/// The HTTP filters that find a wildcard's host, in their order; they leave other routes alone.
pub(super) fn forward_proxy_filters() -> [Value; 3] {
    [
        // The forward proxy would go to the port that the client named, so the host is taken alone.
        json!({
            "name": "sallyport.host",
            "typed_config": {
                "@type": type_url("envoy.extensions.filters.http.header_to_metadata.v3.Config"),
                "request_rules": [{
                    "header": ":authority",
                    "on_header_present": {
                        "metadata_namespace": "sallyport",
                        "key": "host",
                        "regex_value_rewrite": {
                            "pattern": { "regex": "^([^:]+)(:[0-9]+)?$" },
                            "substitution": r"\1",
                        },
                    },
                }],
            },
        }),
        json!({ "name": UPSTREAM_FILTER, "typed_config": filter_state(&[]) }),
        json!({
            "name": "envoy.filters.http.dynamic_forward_proxy",
            "typed_config": {
                "@type":
                    type_url("envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig"),
                "dns_cache_config": dns_cache(),
                "allow_dynamic_host_from_filter_state": true,
            },
        }),
    ]
}

/// The upstream of a route to a wildcard, for [`UPSTREAM_FILTER`].
pub(super) fn dynamic_upstream(port: u16) -> Value {
    filter_state(&[
        json!({
            "object_key": "envoy.upstream.dynamic_host",
            "format_string": text_format("%DYNAMIC_METADATA(sallyport:host)%"),
        }),
        json!({
            "object_key": "envoy.upstream.dynamic_port",
            "format_string": text_format(&port.to_string()),
        }),
    ])
}

/// Keeps the authority as the client sent it for the access log.
pub(super) fn authority_filter() -> Value {
    json!({
        "name": "sallyport.authority",
        "typed_config": filter_state(&[json!({
            "object_key": AUTHORITY_STATE,
            "factory_key": "envoy.string",
            "format_string": text_format("%REQ(:AUTHORITY)%"),
        })]),
    })
}

/// Key of what [`authority_filter`] keeps.
pub(super) const AUTHORITY_STATE: &str = "sallyport.authority";

fn filter_state(values: &[Value]) -> Value {
    json!({
        "@type": type_url("envoy.extensions.filters.http.set_filter_state.v3.Config"),
        "on_request_headers": values,
    })
}

fn text_format(text: &str) -> Value {
    json!({ "text_format_source": { "inline_string": text } })
}
