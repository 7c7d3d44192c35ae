//! An egress gateway as Istio configures one: mutual TLS on its listener, an external authorizer
//! (`AuthorizationPolicy` with action `CUSTOM`), and TLS origination to httpbin.org.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::{address, common, typed};
use crate::node::Pod;
use crate::node::plan::{OUTSIDE_HTTPS, OUTSIDE_NAME};

/// What differs from gateway to gateway.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    /// Its directory holds the certificate in `certs`.
    pub pod: &'a Pod,
    /// Port on which the pod listens.
    pub port: u16,
    /// Authorities that the outside host is checked by (PEM).
    pub upstream_ca: &'a Path,
    /// Where the agent serves policy.
    pub policy_server: SocketAddr,
    /// Who it must prove to be.
    pub policy_server_id: &'a str,
}

/// The whole configuration, as text.
pub fn bootstrap(settings: &Settings<'_>) -> String {
    let mut bootstrap = common(settings.pod);
    let listeners: Vec<Value> = [("v4", "0.0.0.0"), ("v6", "::")]
        .map(|(family, host)| listener(settings, family, host))
        .into();
    bootstrap["static_resources"] = json!({
        "listeners": listeners,
        "clusters": [outside(settings), authorizer(settings)],
    });
    format!("{bootstrap:#}\n")
}

fn listener(settings: &Settings<'_>, family: &str, host: &str) -> Value {
    let certs = settings.pod.directory().join("certs");
    json!({
        "name": format!("egress-{family}"),
        "address": address(host, settings.port),
        "filter_chains": [{
            "transport_socket": typed(
                "envoy.transport_sockets.tls",
                "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                &json!({
                    "require_client_certificate": true,
                    "common_tls_context": {
                        "alpn_protocols": ["h2", "http/1.1"],
                        "tls_certificates": [own_certificate(&certs)],
                        "validation_context": {
                            "trusted_ca": { "filename": certs.join("ca.crt") },
                        },
                    },
                }),
            ),
            "filters": [connection_manager()],
        }],
    })
}

fn own_certificate(certs: &Path) -> Value {
    json!({
        "certificate_chain": { "filename": certs.join("tls.crt") },
        "private_key": { "filename": certs.join("tls.key") },
    })
}

fn connection_manager() -> Value {
    typed(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &json!({
            "stat_prefix": "egress",
            "use_remote_address": true,
            "skip_xff_append": true,
            "normalize_path": true,
            "merge_slashes": true,
            "path_with_escaped_slashes_action": "REJECT_REQUEST",
            "route_config": { "virtual_hosts": [{
                "name": "httpbin",
                "domains": [OUTSIDE_NAME, format!("{OUTSIDE_NAME}:80")],
                "routes": [{
                    "name": "httpbin",
                    "match": { "prefix": "/" },
                    "route": { "cluster": "outside", "host_rewrite_literal": OUTSIDE_NAME },
                }],
            }] },
            "http_filters": [
                typed(
                    "envoy.filters.http.ext_authz",
                    "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
                    // What Istio makes of an `envoyExtAuthzGrpc` provider with a timeout.
                    &json!({
                        "transport_api_version": "V3",
                        "failure_mode_allow": false,
                        "status_on_error": { "code": "Forbidden" },
                        "grpc_service": {
                            "envoy_grpc": { "cluster_name": "authorizer" },
                            "timeout": "0.5s",
                        },
                    }),
                ),
                typed(
                    "envoy.filters.http.router",
                    "envoy.extensions.filters.http.router.v3.Router",
                    &json!({ "suppress_envoy_headers": true }),
                ),
            ],
            "access_log": [access_log()],
        }),
    )
}

fn access_log() -> Value {
    let said = |key: &str| format!("%DYNAMIC_METADATA(envoy.filters.http.ext_authz:{key})%");
    typed(
        "envoy.access_loggers.stdout",
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
        &json!({ "log_format": { "json_format": {
            "client": "%DOWNSTREAM_PEER_URI_SAN%",
            "authority": "%REQ(:AUTHORITY)%",
            "path": "%REQ(:PATH)%",
            "response_code": "%RESPONSE_CODE%",
            "response_code_details": "%RESPONSE_CODE_DETAILS%",
            "verdict": said("verdict"),
            "reason": said("reason"),
            "object": said("object"),
        } } }),
    )
}

fn outside(settings: &Settings<'_>) -> Value {
    json!({
        "name": "outside",
        "type": "LOGICAL_DNS",
        "dns_lookup_family": "ALL",
        "connect_timeout": "2s",
        "load_assignment": endpoint("outside", &address(OUTSIDE_NAME, OUTSIDE_HTTPS)),
        "transport_socket": typed(
            "envoy.transport_sockets.tls",
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            &json!({
                "sni": OUTSIDE_NAME,
                "common_tls_context": { "validation_context": {
                    "trusted_ca": { "filename": settings.upstream_ca },
                    "match_typed_subject_alt_names": [
                        { "san_type": "DNS", "matcher": { "exact": OUTSIDE_NAME } },
                    ],
                } },
            }),
        ),
    })
}

fn authorizer(settings: &Settings<'_>) -> Value {
    let certs = settings.pod.directory().join("certs");
    let server = settings.policy_server;
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({
        "name": "authorizer",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment":
            endpoint("authorizer", &address(&server.ip().to_string(), server.port())),
        "typed_extension_protocol_options": { options: {
            "@type": format!("type.googleapis.com/{options}"),
            "explicit_http_config": { "http2_protocol_options": {} },
        } },
        "transport_socket": typed(
            "envoy.transport_sockets.tls",
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            &json!({ "common_tls_context": {
                "tls_params": { "tls_maximum_protocol_version": "TLSv1_3" },
                "alpn_protocols": ["h2"],
                "tls_certificates": [own_certificate(&certs)],
                "validation_context": {
                    "trusted_ca": { "filename": certs.join("ca.crt") },
                    "match_typed_subject_alt_names": [
                        { "san_type": "URI", "matcher": { "exact": settings.policy_server_id } },
                    ],
                },
            } }),
        ),
    })
}

fn endpoint(cluster: &str, address: &Value) -> Value {
    json!({
        "cluster_name": cluster,
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
    })
}
