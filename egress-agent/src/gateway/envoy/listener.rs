//! Listeners: mutual TLS with mesh identities, a hardened HTTP connection manager, access log.

use std::path::Path;

use serde_json::{Value, json};

use super::{CERTIFICATE_FILE, TRUST_FILE, cluster, rbac, routes_file, routes_name, type_url};
use crate::gateway::identity::id_prefix;

const CERTIFICATE: &str = "certificate";
const TRUST: &str = "trust";

/// The listeners of one port: one for each family, so that a node without IPv6 keeps the other.
pub(super) fn listeners(port: u16, own: &Path, wildcards: bool) -> Vec<Value> {
    [("v4", "0.0.0.0"), ("v6", "::")]
        .map(|(family, address)| {
            json!({
                "@type": type_url("envoy.config.listener.v3.Listener"),
                "name": format!("egress-{port}-{family}"),
                "address": { "socket_address": { "address": address, "port_value": port } },
                "per_connection_buffer_limit_bytes": 1 << 20,
                "filter_chains": [{
                    "transport_socket_connect_timeout": "10s",
                    "transport_socket": downstream_tls(own),
                    "filters": [{
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": connection_manager(port, own, wildcards),
                    }],
                }],
            })
        })
        .to_vec()
}

/// A file that Envoy follows.
pub(super) fn watched(path: &Path) -> Value {
    json!({
        "resource_api_version": "V3",
        "path_config_source": { "path": path.to_string_lossy() },
    })
}

fn downstream_tls(own: &Path) -> Value {
    let secret =
        |name: &str, file: &str| json!({ "name": name, "sds_config": watched(&own.join(file)) });
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": type_url("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": true,
            // A session that is resumed would skip the check of a certificate that has since
            // been revoked by a new authority.
            "disable_stateless_session_resumption": true,
            "disable_stateful_session_resumption": true,
            "common_tls_context": {
                "tls_params": { "tls_minimum_protocol_version": "TLSv1_2" },
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificate_sds_secret_configs": [secret(CERTIFICATE, CERTIFICATE_FILE)],
                "validation_context_sds_secret_config": secret(TRUST, TRUST_FILE),
            },
        },
    })
}

/// The gateway's own certificate. As a secret with a watched directory it is read again when the
/// directory changes, so that it can be rotated.
pub(super) fn certificate(cert_dir: &Path) -> Value {
    json!({
        "@type": type_url("envoy.extensions.transport_sockets.tls.v3.Secret"),
        "name": CERTIFICATE,
        "tls_certificate": {
            "certificate_chain": { "filename": cert_dir.join("tls.crt").to_string_lossy() },
            "private_key": { "filename": cert_dir.join("tls.key").to_string_lossy() },
            "watched_directory": { "path": cert_dir.to_string_lossy() },
        },
    })
}

/// Which clients there are at all: those of the trust domain.
pub(super) fn trust(cert_dir: &Path, trust_domain: &str) -> Value {
    json!({
        "@type": type_url("envoy.extensions.transport_sockets.tls.v3.Secret"),
        "name": TRUST,
        "validation_context": {
            "trusted_ca": { "filename": cert_dir.join("ca.crt").to_string_lossy() },
            "watched_directory": { "path": cert_dir.to_string_lossy() },
            "match_typed_subject_alt_names": [{
                "san_type": "URI",
                "matcher": { "prefix": id_prefix(trust_domain) },
            }],
        },
    })
}

fn connection_manager(port: u16, own: &Path, wildcards: bool) -> Value {
    let mut filters = vec![
        cluster::authority_filter(),
        json!({ "name": rbac::FILTER, "typed_config": rbac::deny_all() }),
    ];
    if wildcards {
        filters.extend(cluster::forward_proxy_filters());
    }
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": type_url("envoy.extensions.filters.http.router.v3.Router"),
            // The outside learns nothing of how it was reached.
            "suppress_envoy_headers": true,
        },
    }));
    json!({
        "@type": type_url(
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        ),
        "stat_prefix": format!("egress_{port}"),
        "codec_type": "AUTO",
        "rds": {
            "route_config_name": routes_name(port),
            "config_source": watched(&own.join(routes_file(port))),
        },
        // The peer is the client: no header of a client says otherwise.
        "use_remote_address": true,
        "xff_num_trusted_hops": 0,
        // Addresses of pods are no business of the outside.
        "skip_xff_append": true,
        // Whatever a client claims here is removed. Nothing behind the gateway may see identities
        // of the mesh, so none is set either; the access log has it from TLS.
        "forward_client_cert_details": "SANITIZE",
        "normalize_path": true,
        "merge_slashes": true,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "strip_trailing_host_dot": true,
        "request_headers_timeout": "10s",
        "stream_idle_timeout": "300s",
        "max_request_headers_kb": 60,
        "common_http_protocol_options": { "idle_timeout": "300s", "max_headers_count": 200 },
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 64 << 10,
            "initial_connection_window_size": 1 << 20,
        },
        "access_log": [access_log()],
        "http_filters": filters,
    })
}

fn access_log() -> Value {
    json!({
        "name": "envoy.access_loggers.stdout",
        "typed_config": {
            "@type": type_url("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"),
            "log_format": { "json_format": {
                "start_time": "%START_TIME%",
                "authority": format!("%FILTER_STATE({}:PLAIN)%", cluster::AUTHORITY_STATE),
                "method": "%REQ(:METHOD)%",
                "path": "%REQ(:PATH)%",
                "protocol": "%PROTOCOL%",
                "response_code": "%RESPONSE_CODE%",
                "response_code_details": "%RESPONSE_CODE_DETAILS%",
                "response_flags": "%RESPONSE_FLAGS%",
                "client": "%DOWNSTREAM_PEER_URI_SAN%",
                "downstream_remote_address": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
                "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
                "route_name": "%ROUTE_NAME%",
                "dry_run": format!("%DYNAMIC_METADATA({}:shadow_engine_result)%", rbac::FILTER),
                "dry_run_policy":
                    format!("%DYNAMIC_METADATA({}:shadow_effective_policy_id)%", rbac::FILTER),
                "upstream_cluster": "%UPSTREAM_CLUSTER%",
                "upstream_host": "%UPSTREAM_HOST%",
                "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
                "bytes_received": "%BYTES_RECEIVED%",
                "bytes_sent": "%BYTES_SENT%",
                "duration": "%DURATION%",
                "request_id": "%REQ(X-REQUEST-ID)%",
                "user_agent": "%REQ(USER-AGENT)%",
            } },
        },
    })
}
