//! Clusters: how the gateway reaches the outside, and how servers there prove themselves.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CustomClusterType, LbPolicy,
};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily;
use envoy_types::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::ClusterConfig;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::cluster_config::ClusterImplementationSpecifier;
use envoy_types::pb::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use envoy_types::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SubjectAltNameMatcher, UpstreamTlsContext,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions,
};

use super::pb::{address, any, core, exact, extension, file, number, seconds, tls_socket};
use super::tls::at_least_tls12;
use crate::gateway::host::HostName;
use crate::gateway::policy::{
    Gateway, PassthroughRoute, Route, Upstream, UpstreamHttp, UpstreamTls,
};

fn upstreams(gateway: &Gateway) -> impl Iterator<Item = &Upstream> {
    gateway
        .listeners
        .values()
        .flat_map(|listener| listener.hosts.values())
        .flat_map(BTreeMap::values)
        .map(|route: &Route| &route.upstream)
}

pub(super) fn passthroughs(gateway: &Gateway) -> impl Iterator<Item = &PassthroughRoute> {
    gateway
        .listeners
        .values()
        .flat_map(|listener| listener.passthrough.values())
        .filter_map(|passthrough| passthrough.served.as_ref())
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
            let names = subject_alt_names.iter().map(|name| escaped(name));
            format!("tls|{sni}|{}", names.collect::<Vec<_>>().join(","))
        }
    };
    format!("outbound|{}||{host}|{http}|{tls}", upstream.port)
}

/// A name that an operator wrote, without what parts names here.
fn escaped(name: &str) -> String {
    let parts = ["%", ",", "|"];
    parts.into_iter().fold(name.to_owned(), |name, part| {
        name.replace(part, &format!("%{:02X}", part.as_bytes()[0]))
    })
}

/// Name of the cluster of a connection that is passed on.
pub(super) fn passthrough_name(route: &PassthroughRoute) -> String {
    let host = route.host.as_ref().map_or("*", |host| host.as_str());
    format!("outbound|{}||{host}|passthrough", route.port)
}

/// The clusters of a gateway, by name.
pub(super) fn clusters(gateway: &Gateway, ca: &Path) -> BTreeMap<String, Cluster> {
    let requests = upstreams(gateway).map(|upstream| (name(upstream), cluster(upstream, ca)));
    let connections =
        passthroughs(gateway).map(|route| (passthrough_name(route), passed_on(route)));
    requests.chain(connections).collect()
}

fn cluster(upstream: &Upstream, ca: &Path) -> Cluster {
    let options = any(http_options(upstream));
    Cluster {
        transport_socket: upstream
            .tls
            .as_ref()
            .and_then(|tls| tls_socket(any(upstream_tls(upstream, tls, ca)))),
        typed_extension_protocol_options: HashMap::from([(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            options,
        )]),
        ..base(name(upstream), upstream.host.as_ref(), upstream.port)
    }
}

/// Bytes as they are.
fn passed_on(route: &PassthroughRoute) -> Cluster {
    base(passthrough_name(route), route.host.as_ref(), route.port)
}

fn base(name: String, host: Option<&HostName>, port: u16) -> Cluster {
    let discovery = |name: &str, config| {
        Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
            name: name.to_owned(),
            typed_config: Some(config),
        }))
    };
    let mut cluster = plain(name.clone());
    if let Some(host) = host {
        let dns = DnsCluster {
            // One logical host, so that a changed answer closes no connection.
            all_addresses_in_single_endpoint: true,
            dns_lookup_family: DnsLookupFamily::All.into(),
            respect_dns_ttl: true,
            typed_dns_resolver_config: Some(resolver()),
            ..DnsCluster::default()
        };
        cluster.cluster_discovery_type = discovery("envoy.cluster.dns", any(dns));
        cluster.load_assignment = Some(assignment(name, host, port));
    } else {
        let proxy = ClusterConfig {
            cluster_implementation_specifier: Some(ClusterImplementationSpecifier::DnsCacheConfig(
                dns_cache(),
            )),
            ..ClusterConfig::default()
        };
        cluster.lb_policy = LbPolicy::ClusterProvided.into();
        cluster.cluster_discovery_type =
            discovery("envoy.clusters.dynamic_forward_proxy", any(proxy));
    }
    cluster
}

/// What all clusters have.
pub(super) fn plain(name: String) -> Cluster {
    let thresholds = Thresholds {
        max_connections: number(4096),
        max_pending_requests: number(1024),
        max_requests: number(4096),
        ..Thresholds::default()
    };
    Cluster {
        name,
        connect_timeout: seconds(5),
        per_connection_buffer_limit_bytes: number(1 << 20),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![thresholds],
            per_host_thresholds: Vec::new(),
        }),
        ..Cluster::default()
    }
}

fn assignment(cluster_name: String, host: &HostName, port: u16) -> ClusterLoadAssignment {
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: address(host.as_str(), port),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    ClusterLoadAssignment {
        cluster_name,
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![endpoint],
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    }
}

/// Names are whole: a search domain would turn `httpbin.org` into a Service `httpbin` of a
/// namespace `org`.
fn resolver() -> core::TypedExtensionConfig {
    let options = core::DnsResolverOptions {
        no_default_search_domain: true,
        ..core::DnsResolverOptions::default()
    };
    let cares = CaresDnsResolverConfig {
        dns_resolver_options: Some(options),
        ..CaresDnsResolverConfig::default()
    };
    extension("envoy.network.dns_resolver.cares", any(cares))
}

/// What wildcards' hosts are looked up by; equal wherever it stands, as Envoy wants.
pub(super) fn dns_cache() -> DnsCacheConfig {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::DnsLookupFamily;
    DnsCacheConfig {
        name: "egress".to_owned(),
        dns_lookup_family: DnsLookupFamily::All.into(),
        max_hosts: number(1024),
        typed_dns_resolver_config: Some(resolver()),
        ..DnsCacheConfig::default()
    }
}

fn http_options(upstream: &Upstream) -> HttpProtocolOptions {
    let http2 = core::Http2ProtocolOptions {
        max_concurrent_streams: number(100),
        ..core::Http2ProtocolOptions::default()
    };
    let http1 = core::Http1ProtocolOptions::default();
    let explicit = |config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(config),
        })
    };
    let protocol = match upstream.http {
        UpstreamHttp::Http1 => explicit(ProtocolConfig::HttpProtocolOptions(http1)),
        UpstreamHttp::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
        UpstreamHttp::Negotiated => UpstreamProtocolOptions::AutoConfig(AutoHttpConfig {
            http_protocol_options: Some(http1),
            http2_protocol_options: Some(http2),
            ..AutoHttpConfig::default()
        }),
    };
    let wildcard = upstream.host.is_none() && upstream.tls.is_some();
    HttpProtocolOptions {
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: seconds(300),
            ..core::HttpProtocolOptions::default()
        }),
        upstream_http_protocol_options: wildcard.then(|| core::UpstreamHttpProtocolOptions {
            auto_sni: true,
            auto_san_validation: true,
            ..core::UpstreamHttpProtocolOptions::default()
        }),
        upstream_protocol_options: Some(protocol),
        ..HttpProtocolOptions::default()
    }
}

fn upstream_tls(upstream: &Upstream, tls: &UpstreamTls, ca: &Path) -> UpstreamTlsContext {
    let mut validation = CertificateValidationContext {
        trusted_ca: file(ca),
        ..CertificateValidationContext::default()
    };
    let mut context = UpstreamTlsContext::default();
    if let Some(host) = &upstream.host {
        context.sni = tls.sni.as_ref().unwrap_or(host).to_string();
        let own = [host.to_string()];
        let names = if tls.subject_alt_names.is_empty() {
            &own[..]
        } else {
            &tls.subject_alt_names
        };
        validation.match_typed_subject_alt_names = names
            .iter()
            .map(|name| {
                let kind = if name.contains("://") {
                    SanType::Uri
                } else {
                    SanType::Dns
                };
                SubjectAltNameMatcher {
                    san_type: kind.into(),
                    matcher: Some(exact(name)),
                    oid: String::new(),
                }
            })
            .collect();
    }
    context.common_tls_context = Some(CommonTlsContext {
        tls_params: at_least_tls12(),
        validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
        ..CommonTlsContext::default()
    });
    context
}
