//! Listeners: mutual TLS with mesh identities, a hardened HTTP connection manager, connections
//! that are passed on.

use envoy_types::pb::envoy::config::accesslog::v3::AccessLog;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener as EnvoyListener, ListenerFilter, filter,
    listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::UpstreamConnectMode;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::google::protobuf::Any;

use super::pb::{address, ads, any, core, number, seconds, yes};
use super::{
    Authorization, Settings, access_log, authz, binding, cluster, forward, lookup, rbac,
    routes_name, tls,
};
use crate::gateway::access::AccessReason;
use crate::gateway::host::HostPattern;
use crate::gateway::policy::{Listener, PassthroughRoute, Rules};

/// Bytes of a client that wait until the outside is reached.
const EARLY_DATA: u32 = 64 << 10;
/// A connection that is passed on ends after so many seconds without a byte.
pub(super) const IDLE: i64 = 3600;

/// The listeners of one port: one for each family, so that a node without IPv6 keeps the other.
pub(super) fn listeners(
    trust_domain: &str,
    port: u16,
    listener: &Listener,
    wildcards: bool,
    settings: &Settings,
) -> [EnvoyListener; 2] {
    let chains = chains(trust_domain, port, listener, wildcards, settings);
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
    settings: &Settings,
) -> Vec<FilterChain> {
    let manager = || {
        let config = connection_manager(port, wildcards, settings);
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
            Some(route) => pass_on(trust_domain, pattern, route, settings),
            None => refuse(pattern),
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
    settings: &Settings,
) -> Vec<Filter> {
    let stat_prefix = format!("passthrough_{}", route.service);
    let name = format!("ExternalService/{}:{}", route.service, route.port);
    let (mut filters, log) = match settings.authorization {
        Authorization::Rbac => {
            let rules =
                rbac::of_connection(trust_domain, &route.rules, &route.service, &stat_prefix);
            let filters = rules.map(|config| network(rbac::NETWORK_FILTER, config));
            let reason = rbac::admitted(&route.rules, Some(&route.service));
            let reasons = [reason, AccessReason::NotAdmitted];
            let log = access_log::of_ruled_connection(&name, pattern, &route.rules, reasons);
            (Vec::from(filters), log)
        }
        Authorization::ExtAuthz => {
            let upstream = cluster::passthrough_name(route);
            let config = authz::of_connection(&stat_prefix, &upstream);
            let filter = network(authz::NETWORK_FILTER, config);
            (
                vec![filter],
                access_log::of_asked_connection(&name, pattern),
            )
        }
    };
    if settings.binds() {
        filters.insert(0, binding::network_filter());
    }
    let cluster = if route.host.is_none() {
        filters.push(lookup::remember());
        lookup::name(route.port)
    } else {
        cluster::passthrough_name(route)
    };
    filters.push(tcp_proxy(&stat_prefix, cluster, log));
    filters
}

/// A name that is known and not served: it must not fall to a wildcard.
fn refuse(pattern: &HostPattern) -> Vec<Filter> {
    let rules = rbac::of_nobody("refused");
    let mut filters = Vec::from(rules.map(|config| network(rbac::NETWORK_FILTER, config)));
    let reason = AccessReason::UnknownHost;
    let log = access_log::of_ruled_connection("", pattern, &Rules::nobody(), [reason; 2]);
    filters.push(tcp_proxy("refused", "refused".to_owned(), log));
    filters
}

fn tcp_proxy(stat_prefix: &str, cluster: String, log: Vec<AccessLog>) -> Filter {
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        idle_timeout: seconds(IDLE),
        // The client is admitted at its first byte, not when it connects. By default the outside
        // would be called before that, even for a client without a certificate, and what a server
        // says first would reach who is refused.
        upstream_connect_mode: UpstreamConnectMode::OnDownstreamData.into(),
        max_early_data_bytes: number(EARLY_DATA),
        access_log: log,
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        ..TcpProxy::default()
    };
    network("envoy.filters.network.tcp_proxy", any(proxy))
}

pub(super) fn network(name: &str, config: Any) -> Filter {
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

fn connection_manager(port: u16, wildcards: bool, settings: &Settings) -> HttpConnectionManager {
    let router = Router {
        // The outside learns nothing of how it was reached.
        suppress_envoy_headers: true,
        ..Router::default()
    };
    let mut filters = vec![access_log::before_rules(), (rbac::FILTER, rbac::deny_all())];
    filters.push(match settings.authorization {
        Authorization::Rbac => access_log::behind_rules(),
        Authorization::ExtAuthz => (authz::FILTER, authz::of_request()),
    });
    if wildcards {
        filters.extend(forward::filters());
    }
    filters.push(("envoy.filters.http.router", any(router)));
    let filters = filters.into_iter().map(|(name, config)| HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    });
    let mut filters: Vec<HttpFilter> = filters.collect();
    if settings.binds() {
        // Behind what the log keeps, before the rules.
        filters.insert(1, binding::http_filter());
    }
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
        access_log: access_log::of_requests(settings.authorization, settings.binds()),
        http_filters: filters,
        ..HttpConnectionManager::default()
    }
}
