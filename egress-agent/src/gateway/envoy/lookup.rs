//! Names below a wildcard that are passed on.
//!
//! Envoy's filter that looks them up does so when a connection begins: before TLS has told who the
//! client is, so that any pod could have names of its choice asked for outside. So it stands in a
//! listener of its own inside Envoy, which is reached only by connections that the rules admit. It
//! takes the name from the connection in front of it.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::config::listener::v3::listener::{
    InternalListenerConfig, ListenerSpecifier,
};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, Listener as EnvoyListener,
};
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::FilterStateValue;
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::filter_state_value::SharedWithUpstream;
use envoy_types::pb::envoy::extensions::filters::network::set_filter_state::v3 as set_filter_state;
use envoy_types::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni_proxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;

use super::listener::{IDLE, network};
use super::pb::{any, core, number, seconds};
use super::{cluster, state};
use crate::gateway::policy::PassthroughRoute;

/// Name of the listener, and of the cluster that leads to it.
pub(super) fn name(port: u16) -> String {
    format!("lookup-{port}")
}

/// Keeps the server name for the listener behind.
pub(super) fn remember() -> Filter {
    let host = FilterStateValue {
        shared_with_upstream: SharedWithUpstream::Once.into(),
        ..state::value("envoy.upstream.dynamic_host", "", "%REQUESTED_SERVER_NAME%")
    };
    let config = set_filter_state::Config {
        on_new_connection: vec![host],
        ..set_filter_state::Config::default()
    };
    network("envoy.filters.network.set_filter_state", any(config))
}

/// The way to the listener.
pub(super) fn way(port: u16) -> Cluster {
    let address = core::Address {
        address: Some(core::address::Address::EnvoyInternalAddress(
            core::EnvoyInternalAddress {
                address_name_specifier: Some(AddressNameSpecifier::ServerListenerName(name(port))),
                ..core::EnvoyInternalAddress::default()
            },
        )),
    };
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(address),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    let socket = |name: &str, config| core::TransportSocket {
        name: name.to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    };
    let raw = socket("envoy.transport_sockets.raw_buffer", any(RawBuffer {}));
    let transport = InternalUpstreamTransport {
        transport_socket: Some(raw),
        ..InternalUpstreamTransport::default()
    };
    Cluster {
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name(port),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        transport_socket: Some(socket(
            "envoy.transport_sockets.internal_upstream",
            any(transport),
        )),
        ..cluster::plain(name(port))
    }
}

/// The listener: it looks the name up, and passes bytes on to its port.
pub(super) fn listener(route: &PassthroughRoute) -> EnvoyListener {
    let lookup = sni_proxy::FilterConfig {
        dns_cache_config: Some(cluster::dns_cache()),
        port_specifier: Some(sni_proxy::filter_config::PortSpecifier::PortValue(
            route.port.into(),
        )),
        ..sni_proxy::FilterConfig::default()
    };
    let proxy = TcpProxy {
        stat_prefix: name(route.port),
        idle_timeout: seconds(IDLE),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster::passthrough_name(route))),
        ..TcpProxy::default()
    };
    EnvoyListener {
        name: name(route.port),
        per_connection_buffer_limit_bytes: number(1 << 20),
        listener_specifier: Some(ListenerSpecifier::InternalListener(
            InternalListenerConfig {},
        )),
        filter_chains: vec![FilterChain {
            filters: vec![
                network(
                    "envoy.filters.network.sni_dynamic_forward_proxy",
                    any(lookup),
                ),
                network("envoy.filters.network.tcp_proxy", any(proxy)),
            ],
            ..FilterChain::default()
        }],
        ..EnvoyListener::default()
    }
}
