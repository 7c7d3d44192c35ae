//! Listeners: mutual TLS with mesh identities, a hardened HTTP connection manager, connections
//! that are passed on, access log.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener as EnvoyListener, ListenerFilter, filter,
    listener_filter,
};
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::StdoutAccessLog;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::stdout_access_log::AccessLogFormat;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni_proxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::UpstreamConnectMode;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, Struct, Value};

use super::pb::{address, ads, any, core, number, seconds, yes};
use super::{Authorization, authz, cluster, forward, rbac, routes_name, tls};
use crate::gateway::host::HostPattern;
use crate::gateway::policy::{Listener, Passthrough, PassthroughRoute, Rules};

/// Bytes of a client that wait until the outside is reached.
const EARLY_DATA: u32 = 64 << 10;

/// The listeners of one port: one for each family, so that a node without IPv6 keeps the other.
pub(super) fn listeners(
    trust_domain: &str,
    port: u16,
    listener: &Listener,
    wildcards: bool,
    authorization: Authorization,
) -> [EnvoyListener; 2] {
    let chains = chains(trust_domain, port, listener, wildcards, authorization);
    let by_name = chains
        .iter()
        .any(|chain| chain.filter_chain_match.is_some());
    [("v4", "0.0.0.0"), ("v6", "::")].map(|(family, host)| EnvoyListener {
        name: format!("egress-{port}-{family}"),
        address: address(host, port),
        per_connection_buffer_limit_bytes: number(1 << 20),
        filter_chains: chains.clone(),
        listener_filters: if by_name {
            vec![tls_inspector()]
        } else {
            Vec::new()
        },
        listener_filters_timeout: seconds(10),
        ..EnvoyListener::default()
    })
}

/// Requests by default, and a chain for each server name that is passed on. Of names that overlap
/// Envoy takes the most specific one; so hosts of requests below a wildcard that is passed on need
/// a chain of their own.
fn chains(
    trust_domain: &str,
    port: u16,
    listener: &Listener,
    wildcards: bool,
    authorization: Authorization,
) -> Vec<FilterChain> {
    let manager = || {
        let config = connection_manager(port, wildcards, authorization);
        vec![network(
            "envoy.filters.network.http_connection_manager",
            any(config),
        )]
    };
    let alpn: &[&str] = &["h2", "http/1.1"];
    let mut chains = Vec::new();
    let all = listener.passthrough.contains_key(&HostPattern::Any);
    let below = |host: &&HostPattern| listener.passthrough.keys().any(|it| it.covers(host));
    let requests: Vec<&HostPattern> = listener.hosts.keys().filter(below).collect();
    if !requests.is_empty() {
        chains.push(chain("requests", &requests, alpn, manager()));
    }
    for (pattern, passthrough) in &listener.passthrough {
        let filters = match &passthrough.served {
            Some(route) => pass_on(trust_domain, pattern, route, authorization),
            None => refuse(pattern, passthrough),
        };
        chains.push(chain(&pattern.to_string(), &[pattern], &[], filters));
    }
    if !all && (!listener.hosts.is_empty() || listener.passthrough.is_empty()) {
        chains.push(chain("others", &[], alpn, manager()));
    }
    chains
}

fn chain(name: &str, names: &[&HostPattern], alpn: &[&str], filters: Vec<Filter>) -> FilterChain {
    let named = names
        .iter()
        .filter(|pattern| **pattern != &HostPattern::Any)
        .map(ToString::to_string);
    let named: Vec<String> = named.collect();
    FilterChain {
        name: name.to_owned(),
        // `*` is every name, and none.
        filter_chain_match: (!named.is_empty()).then(|| FilterChainMatch {
            server_names: named,
            ..FilterChainMatch::default()
        }),
        filters,
        transport_socket: tls::downstream(alpn),
        transport_socket_connect_timeout: seconds(10),
        ..FilterChain::default()
    }
}

/// Bytes to the outside, once the client is admitted.
fn pass_on(
    trust_domain: &str,
    pattern: &HostPattern,
    route: &PassthroughRoute,
    authorization: Authorization,
) -> Vec<Filter> {
    let stat_prefix = format!("passthrough_{}", route.service);
    let mut filters = vec![match authorization {
        Authorization::Rbac => network(
            rbac::NETWORK_FILTER,
            rbac::of_connection(trust_domain, &route.rules, &stat_prefix),
        ),
        Authorization::ExtAuthz => {
            network(authz::NETWORK_FILTER, authz::of_connection(&stat_prefix))
        }
    }];
    if route.host.is_none() {
        let proxy = sni_proxy::FilterConfig {
            dns_cache_config: Some(cluster::dns_cache()),
            port_specifier: Some(sni_proxy::filter_config::PortSpecifier::PortValue(
                route.port.into(),
            )),
            ..sni_proxy::FilterConfig::default()
        };
        filters.push(network(
            "envoy.filters.network.sni_dynamic_forward_proxy",
            any(proxy),
        ));
    }
    let name = format!("ExternalService/{}:{}", route.service, route.port);
    filters.push(tcp_proxy(
        &stat_prefix,
        cluster::passthrough_name(route),
        &name,
        pattern,
    ));
    filters
}

/// A name that is known and not served: it must not fall to a wildcard.
fn refuse(pattern: &HostPattern, _: &Passthrough) -> Vec<Filter> {
    let nobody = Rules::nobody();
    vec![
        network(
            rbac::NETWORK_FILTER,
            rbac::of_connection("", &nobody, "refused"),
        ),
        tcp_proxy("refused", "refused".to_owned(), "", pattern),
    ]
}

fn tcp_proxy(stat_prefix: &str, cluster: String, route: &str, pattern: &HostPattern) -> Filter {
    let log = access_log(&connection_log(route, pattern));
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        idle_timeout: seconds(3600),
        // The client is admitted at its first byte, not when it connects. By default the outside
        // would be called before that, even for a client without a certificate, and what a server
        // says first would reach who is refused.
        upstream_connect_mode: UpstreamConnectMode::OnDownstreamData.into(),
        max_early_data_bytes: number(EARLY_DATA),
        access_log: vec![log],
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        ..TcpProxy::default()
    };
    network("envoy.filters.network.tcp_proxy", any(proxy))
}

fn network(name: &str, config: Any) -> Filter {
    Filter {
        name: name.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(config)),
    }
}

fn tls_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(any(
            TlsInspector::default(),
        ))),
        ..ListenerFilter::default()
    }
}

fn connection_manager(
    port: u16,
    wildcards: bool,
    authorization: Authorization,
) -> HttpConnectionManager {
    let router = Router {
        // The outside learns nothing of how it was reached.
        suppress_envoy_headers: true,
        ..Router::default()
    };
    let mut filters = vec![
        forward::authority_filter(),
        (rbac::FILTER, rbac::deny_all()),
    ];
    if authorization == Authorization::ExtAuthz {
        filters.push((authz::FILTER, authz::of_request()));
    }
    if wildcards {
        filters.extend(forward::filters());
    }
    filters.push(("envoy.filters.http.router", any(router)));
    let filters = filters.into_iter().map(|(name, config)| HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    });
    HttpConnectionManager {
        stat_prefix: format!("egress_{port}"),
        codec_type: CodecType::Auto.into(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: routes_name(port),
        })),
        // The peer is the client: no header of a client says otherwise.
        use_remote_address: yes(),
        xff_num_trusted_hops: 0,
        // Addresses of pods are no business of the outside.
        skip_xff_append: true,
        // Whatever a client claims here is removed. Nothing behind the gateway may see identities
        // of the mesh, so none is set either; the access log has it from TLS.
        forward_client_cert_details: ForwardClientCertDetails::Sanitize.into(),
        normalize_path: yes(),
        merge_slashes: true,
        path_with_escaped_slashes_action: PathWithEscapedSlashesAction::RejectRequest.into(),
        strip_trailing_host_dot: true,
        request_headers_timeout: seconds(10),
        stream_idle_timeout: seconds(300),
        max_request_headers_kb: number(60),
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: seconds(300),
            max_headers_count: number(200),
            ..core::HttpProtocolOptions::default()
        }),
        http2_protocol_options: Some(core::Http2ProtocolOptions {
            max_concurrent_streams: number(100),
            initial_stream_window_size: number(64 << 10),
            initial_connection_window_size: number(1 << 20),
            ..core::Http2ProtocolOptions::default()
        }),
        access_log: vec![access_log(&request_log(authorization))],
        http_filters: filters.collect(),
        ..HttpConnectionManager::default()
    }
}

/// What is said of a request. `dry_run` is what the dry-run entries would have done.
fn request_log(authorization: Authorization) -> Vec<(&'static str, String)> {
    let mut fields: Vec<(&str, String)> = [
        ("start_time", "%START_TIME%"),
        ("method", "%REQ(:METHOD)%"),
        ("path", "%REQ(:PATH)%"),
        ("protocol", "%PROTOCOL%"),
        ("response_code", "%RESPONSE_CODE%"),
        ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
        ("response_flags", "%RESPONSE_FLAGS%"),
        ("client", "%DOWNSTREAM_PEER_URI_SAN%"),
        (
            "downstream_remote_address",
            "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
        ),
        ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
        ("route_name", "%ROUTE_NAME%"),
        ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
        ("upstream_host", "%UPSTREAM_HOST%"),
        (
            "upstream_transport_failure_reason",
            "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        ),
        ("bytes_received", "%BYTES_RECEIVED%"),
        ("bytes_sent", "%BYTES_SENT%"),
        ("duration", "%DURATION%"),
        ("request_id", "%REQ(X-REQUEST-ID)%"),
        ("user_agent", "%REQ(USER-AGENT)%"),
    ]
    .map(|(name, format)| (name, format.to_owned()))
    .into();
    let authority = format!("%FILTER_STATE({}:PLAIN)%", forward::AUTHORITY_STATE);
    fields.push(("authority", authority));
    match authorization {
        Authorization::Rbac => {
            let shadow = |key| format!("%DYNAMIC_METADATA({}:{key})%", rbac::FILTER);
            fields.push(("dry_run", shadow("shadow_engine_result")));
            fields.push(("dry_run_policy", shadow("shadow_effective_policy_id")));
        }
        Authorization::ExtAuthz => fields.extend(authz::log_fields(authz::FILTER)),
    }
    fields
}

/// What is said of a connection that is passed on.
fn connection_log(route: &str, pattern: &HostPattern) -> Vec<(&'static str, String)> {
    let mut fields: Vec<(&str, String)> = [
        ("start_time", "%START_TIME%"),
        ("protocol", "TLS"),
        ("server_name", "%REQUESTED_SERVER_NAME%"),
        ("response_flags", "%RESPONSE_FLAGS%"),
        (
            "connection_termination_details",
            "%CONNECTION_TERMINATION_DETAILS%",
        ),
        ("client", "%DOWNSTREAM_PEER_URI_SAN%"),
        (
            "downstream_remote_address",
            "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
        ),
        ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
        ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
        ("upstream_host", "%UPSTREAM_HOST%"),
        ("bytes_received", "%BYTES_RECEIVED%"),
        ("bytes_sent", "%BYTES_SENT%"),
        ("duration", "%DURATION%"),
    ]
    .map(|(name, format)| (name, format.to_owned()))
    .into();
    fields.push(("route_name", route.to_owned()));
    fields.push(("host_pattern", pattern.to_string()));
    fields.extend(authz::log_fields(authz::NETWORK_FILTER));
    fields
}

/// JSON lines on stdout.
fn access_log(fields: &[(&str, String)]) -> AccessLog {
    let fields: HashMap<String, Value> = fields
        .iter()
        .map(|(name, format)| {
            let kind = Some(Kind::StringValue(format.clone()));
            ((*name).to_owned(), Value { kind })
        })
        .collect();
    let format = core::SubstitutionFormatString {
        format: Some(core::substitution_format_string::Format::JsonFormat(
            Struct { fields },
        )),
        ..core::SubstitutionFormatString::default()
    };
    let stdout = StdoutAccessLog {
        access_log_format: Some(AccessLogFormat::LogFormat(format)),
    };
    AccessLog {
        name: "envoy.access_loggers.stdout".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(any(stdout))),
        ..AccessLog::default()
    }
}
