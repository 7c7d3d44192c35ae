//! What a gateway's Envoy is started with; everything else comes over xDS.
//!
//! Certificate and authorities for the policy server itself stand in files of their own (SDS):
//! Envoy reads certificates that stand in its bootstrap only once, even with a watched directory.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::POLICY_CLUSTER;
use crate::gateway::identity::SpiffeId;
use crate::gateway::policy::ObjectName;

/// What the bootstrap names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    pub gateway: ObjectName,
    /// Host name or address of the policy server, and its port.
    pub server: (String, u16),
    /// Who the policy server must prove to be.
    pub server_id: SpiffeId,
    /// Holds the gateway's `tls.crt`, `tls.key` and `ca.crt`, by the path that Envoy sees.
    pub cert_dir: PathBuf,
    /// Where the [`files`] are, by the path that Envoy sees.
    pub config_dir: PathBuf,
    /// Port of the readiness and metrics interface, on loopback only; none without it.
    pub admin_port: Option<u16>,
}

/// Names of the [`files`].
pub const FILES: [&str; 3] = [BOOTSTRAP, CERTIFICATE, TRUST];
const BOOTSTRAP: &str = "bootstrap.json";
const CERTIFICATE: &str = "certificate.json";
const TRUST: &str = "trust.json";

/// The bootstrap and the secrets that it names, by [`FILES`]. They never change while the gateway
/// is the same.
pub fn files(settings: &Bootstrap) -> [(&'static str, String); 3] {
    [
        (BOOTSTRAP, bootstrap(settings)),
        (CERTIFICATE, certificate(settings)),
        (TRUST, trust(settings)),
    ]
}

/// The bootstrap as JSON. Envoy's `--service-node` sets the node's name (the pod's, say);
/// `node.cluster` names the `VirtualGateway`.
fn bootstrap(settings: &Bootstrap) -> String {
    let (host, port) = &settings.server;
    let mut bootstrap = json!({
        "node": { "id": settings.gateway.to_string(), "cluster": settings.gateway.to_string() },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": POLICY_CLUSTER } }],
                "set_node_on_first_message_only": true,
            },
            "cds_config": { "ads": {}, "resource_api_version": "V3" },
            "lds_config": { "ads": {}, "resource_api_version": "V3" },
        },
        "static_resources": { "clusters": [policy_server(settings, host, *port)] },
        // Names below a wildcard that are passed on are looked up behind one.
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3\
                          .InternalListener",
            },
        }],
        "overload_manager": { "resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.resource_monitors\
                          .downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": 50_000,
            },
        }] },
    });
    if let Some(port) = settings.admin_port {
        bootstrap["admin"] = json!({ "address": socket("127.0.0.1", port) });
    }
    format!("{bootstrap:#}\n")
}

fn policy_server(settings: &Bootstrap, host: &str, port: u16) -> Value {
    let secret = |name: &str, file: &str| {
        json!({ "name": name, "sds_config": {
            "resource_api_version": "V3",
            "path_config_source": { "path": settings.config_dir.join(file) },
        } })
    };
    json!({
        "name": POLICY_CLUSTER,
        "type": "STRICT_DNS",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": POLICY_CLUSTER,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(host, port) } }] }],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/\
                          envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {
                    // A policy server that is gone without a word is noticed.
                    "connection_keepalive": { "interval": "10s", "timeout": "5s" },
                } },
            },
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/\
                          envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": {
                    "tls_params": { "tls_minimum_protocol_version": "TLSv1_3",
                                    "tls_maximum_protocol_version": "TLSv1_3" },
                    "alpn_protocols": ["h2"],
                    "tls_certificate_sds_secret_configs": [secret("certificate", CERTIFICATE)],
                    "validation_context_sds_secret_config": secret("trust", TRUST),
                },
            },
        },
    })
}

/// What the gateway proves itself with.
fn certificate(settings: &Bootstrap) -> String {
    let secret = json!({ "tls_certificate": {
        "certificate_chain": file(settings, "tls.crt"),
        "private_key": file(settings, "tls.key"),
        "watched_directory": { "path": settings.cert_dir },
    } });
    discovery_response("certificate", secret)
}

/// Whom it takes for the policy server.
fn trust(settings: &Bootstrap) -> String {
    let secret = json!({ "validation_context": {
        "trusted_ca": file(settings, "ca.crt"),
        "watched_directory": { "path": settings.cert_dir },
        "match_typed_subject_alt_names": [{
            "san_type": "URI",
            "matcher": { "exact": settings.server_id.to_string() },
        }],
    } });
    discovery_response("trust", secret)
}

fn file(settings: &Bootstrap, name: &str) -> Value {
    json!({ "filename": settings.cert_dir.join(name) })
}

fn discovery_response(name: &str, mut secret: Value) -> String {
    secret["@type"] = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret".into();
    secret["name"] = name.into();
    format!("{:#}\n", json!({ "resources": [secret] }))
}

fn socket(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}
