//! Asking the policy server. Whatever goes wrong, the gateway refuses.

use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::ext_authz::v3 as network;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::Any;

use super::POLICY_CLUSTER;
use super::pb::{any, core, millis};
use core::grpc_service::{EnvoyGrpc, TargetSpecifier};

pub(super) const FILTER: &str = "envoy.filters.http.ext_authz";
pub(super) const NETWORK_FILTER: &str = "envoy.filters.network.ext_authz";

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

pub(super) fn of_connection(stat_prefix: &str) -> Any {
    any(network::ExtAuthz {
        stat_prefix: stat_prefix.to_owned(),
        grpc_service: Some(policy_server()),
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
pub(super) fn log_fields(filter: &str) -> [(&'static str, String); 6] {
    [
        "verdict", "reason", "service", "object", "dry_run", "revision",
    ]
    .map(|key| (key, format!("%DYNAMIC_METADATA({filter}:{key})%")))
}
