//! Asking the policy server. Whatever goes wrong, the gateway refuses.

use std::collections::HashMap;

use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::ext_authz::v3 as network;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::Any;

use super::pb::{any, core, millis};
use super::{POLICY_CLUSTER, cluster};
use crate::gateway::access::{Connection, Request, find_passthrough, find_route};
use crate::gateway::policy::GatewayPolicy;
use core::grpc_service::{EnvoyGrpc, TargetSpecifier};

pub(super) const FILTER: &str = "envoy.filters.http.ext_authz";
pub(super) const NETWORK_FILTER: &str = "envoy.filters.network.ext_authz";

/// Names the cluster to which a request or connection would be passed on, in each question: the
/// policy server's state may be newer than the gateway's routes, and who may reach the new place may
/// not be who may reach the old one.
pub const UPSTREAM: &str = "sallyport-upstream";

/// A decision takes microseconds; what is not there by then is refused.
const TIMEOUT_MS: i32 = 500;
/// Also when the policy server can't be reached.
const FORBIDDEN: i32 = 403;

pub(super) fn of_request() -> Any {
    any(http::ExtAuthz {
        services: Some(http::ext_authz::Services::GrpcService(policy_server())),
        transport_api_version: core::ApiVersion::V3.into(),
        failure_mode_allow: false,
        status_on_error: Some(HttpStatus { code: FORBIDDEN }),
        include_tls_session: true,
        // Each line of a header for itself, as the client sent it.
        encode_raw_headers: true,
        // What the policy server answers may not change what is sent on.
        validate_mutations: true,
        ..http::ExtAuthz::default()
    })
}

/// A route's own part of each question.
pub(super) fn per_route(upstream: &str) -> Any {
    let settings = http::CheckSettings {
        context_extensions: HashMap::from([(UPSTREAM.to_owned(), upstream.to_owned())]),
        ..http::CheckSettings::default()
    };
    any(http::ExtAuthzPerRoute {
        r#override: Some(http::ext_authz_per_route::Override::CheckSettings(settings)),
    })
}

/// The cluster of a request's route, as [`UPSTREAM`] names it; none where there is no route.
pub fn way_of_request(policy: &GatewayPolicy, request: &Request<'_>) -> Option<String> {
    let route = find_route(policy, request).ok()?;
    Some(cluster::name(&route.upstream))
}

/// The same of a connection that is passed on.
pub fn way_of_connection(policy: &GatewayPolicy, connection: &Connection<'_>) -> Option<String> {
    let route = find_passthrough(policy, connection).ok()?;
    Some(cluster::passthrough_name(route))
}

pub(super) fn of_connection(stat_prefix: &str, upstream: &str) -> Any {
    any(network::ExtAuthz {
        stat_prefix: stat_prefix.to_owned(),
        grpc_service: Some(core::GrpcService {
            initial_metadata: vec![core::HeaderValue {
                key: UPSTREAM.to_owned(),
                value: upstream.to_owned(),
                raw_value: Vec::new(),
            }],
            ..policy_server()
        }),
        failure_mode_allow: false,
        transport_api_version: core::ApiVersion::V3.into(),
        include_tls_session: true,
        ..network::ExtAuthz::default()
    })
}

fn policy_server() -> core::GrpcService {
    core::GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: POLICY_CLUSTER.to_owned(),
            // Nobody reads what they say.
            skip_envoy_headers: true,
            ..EnvoyGrpc::default()
        })),
        timeout: millis(TIMEOUT_MS),
        ..core::GrpcService::default()
    }
}

/// What the policy server answered, for the access log.
pub(super) fn log_fields(filter: &str) -> [(&'static str, String); 7] {
    [
        "verdict",
        "reason",
        "service",
        "object",
        "dry_run",
        "dry_run_object",
        "revision",
    ]
    .map(|key| (key, format!("%DYNAMIC_METADATA({filter}:{key})%")))
}
