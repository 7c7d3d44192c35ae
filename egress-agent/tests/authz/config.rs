//! The gateway's Envoy, configured once and from files, in the form that Istio generates for an
//! `envoyExtAuthzGrpc` extension provider and an `AuthorizationPolicy` with action CUSTOM.

use std::path::Path;

use serde_json::{Value, json};

use crate::objects::{GATEWAY, Ports};
use crate::policy_server::SERVER_ID;

const CLUSTER: &str = "outbound|9443||sallyport-agent.sallyport-system.svc.cluster.local";
const POLICY: &str = "istio-ext-authz-ns[istio-egress]-policy[sallyport]-rule[0]";

fn kind(name: &str) -> String {
    format!("type.googleapis.com/envoy.{name}")
}

/// How a listener differs.
#[derive(Clone, Copy)]
struct Http {
    normalize: bool,
    raw_headers: bool,
    client_certificates: bool,
}

/// `policy` is the policy server's port, `upstream` where everything goes that is let through.
pub fn bootstrap(ports: &Ports, policy: u16, upstream: u16, certs: &Path) -> Value {
    let istio = Http {
        normalize: true,
        raw_headers: false,
        client_certificates: true,
    };
    let raw = Http {
        normalize: false,
        raw_headers: true,
        client_certificates: true,
    };
    let simple = Http {
        client_certificates: false,
        ..istio
    };
    json!({
        "node": { "id": "gateway", "cluster": "gateway" },
        "static_resources": {
            "listeners": [
                http_listener("http", ports.http, istio, certs),
                http_listener("raw", ports.raw, raw, certs),
                http_listener("simple", ports.simple, simple, certs),
                tcp_listener("tls", ports.tls, true, certs),
                tcp_listener("blind", ports.blind, false, certs),
            ],
            "clusters": [
                policy_server(policy, certs),
                { "name": "upstream", "type": "STATIC", "connect_timeout": "2s",
                  "load_assignment": endpoint("upstream", upstream) },
            ],
        },
    })
}

fn http_listener(name: &str, port: u16, how: Http, certs: &Path) -> Value {
    let manager = json!({
        "@type": kind("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "codec_type": "AUTO",
        "use_remote_address": true,
        "normalize_path": how.normalize,
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": { "uri": true },
        "access_log": [access_log("envoy.filters.http.ext_authz", &[
            ("port", "%DOWNSTREAM_LOCAL_PORT%"), ("path", "%REQ(:PATH)%"),
            ("authority", "%REQ(:AUTHORITY)%"), ("code", "%RESPONSE_CODE%"),
            ("details", "%RESPONSE_CODE_DETAILS%"), ("flags", "%RESPONSE_FLAGS%"),
            ("from", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"),
        ])],
        "route_config": { "name": "all", "virtual_hosts": [{ "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "upstream" } }] }] },
        "http_filters": [
            shadow("http"),
            { "name": "envoy.filters.http.ext_authz", "typed_config": {
                "@type": kind("extensions.filters.http.ext_authz.v3.ExtAuthz"),
                "transport_api_version": "V3",
                "grpc_service": grpc_service(),
                "failure_mode_allow": false,
                "status_on_error": { "code": "Forbidden" },
                "filter_enabled_metadata": enabled_by("envoy.filters.http.rbac"),
                "encode_raw_headers": how.raw_headers,
            } },
            { "name": "envoy.filters.http.router", "typed_config": {
                "@type": kind("extensions.filters.http.router.v3.Router") } },
        ],
    });
    let filter = json!({ "name": "envoy.filters.network.http_connection_manager",
                         "typed_config": manager });
    listener(
        name,
        port,
        &[filter],
        &["h2", "http/1.1"],
        how.client_certificates,
        certs,
    )
}

fn tcp_listener(name: &str, port: u16, tell_server_name: bool, certs: &Path) -> Value {
    let filters = [
        shadow("network"),
        json!({ "name": "envoy.filters.network.ext_authz", "typed_config": {
            "@type": kind("extensions.filters.network.ext_authz.v3.ExtAuthz"),
            "stat_prefix": "tcp.",
            "transport_api_version": "V3",
            "grpc_service": grpc_service(),
            "failure_mode_allow": false,
            "filter_enabled_metadata": enabled_by("envoy.filters.network.rbac"),
        } }),
        json!({ "name": "envoy.filters.network.tcp_proxy", "typed_config": {
            "@type": kind("extensions.filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": name,
            "cluster": "upstream",
            "access_log": [access_log("envoy.filters.network.ext_authz", &[
                ("port", "%DOWNSTREAM_LOCAL_PORT%"), ("sni", "%REQUESTED_SERVER_NAME%"),
                ("details", "%CONNECTION_TERMINATION_DETAILS%"),
                ("from", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"),
            ])],
        } }),
    ];
    let filters = filters.map(|filter| {
        if tell_server_name {
            patched(filter)
        } else {
            filter
        }
    });
    listener(name, port, &filters, &[], true, certs)
}

/// As the `EnvoyFilter` of `deploy/istio` leaves it: Istio merges the patch into the configuration of
/// filters of that name.
fn patched(mut filter: Value) -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/istio/tcp-server-name.yaml"
    );
    let text = std::fs::read_to_string(path).expect("a file");
    let object: Value = serde_yaml_ng::from_str(&text).expect("YAML");
    assert_eq!(object["kind"], "EnvoyFilter");
    for patch in object["spec"]["configPatches"].as_array().expect("a list") {
        assert_eq!(patch["applyTo"], "NETWORK_FILTER");
        assert_eq!(patch["patch"]["operation"], "MERGE");
        let name = &patch["match"]["listener"]["filterChain"]["filter"]["name"];
        if filter["name"] != *name {
            continue;
        }
        let more = &patch["patch"]["value"]["typed_config"];
        let own = filter["typed_config"].as_object_mut().expect("fields");
        assert_eq!(own["@type"], more["@type"]);
        let more = more.as_object().expect("fields");
        own.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    filter
}

fn listener(
    name: &str,
    port: u16,
    filters: &[Value],
    alpn: &[&str],
    client_certificates: bool,
    certs: &Path,
) -> Value {
    let tls = json!({
        "@type": kind("extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": client_certificates,
        "common_tls_context": {
            "alpn_protocols": alpn,
            "tls_certificate_sds_secret_configs": [own_certificate(certs)],
            "validation_context": { "trusted_ca": { "filename": certs.join("ca.crt") } },
        },
    });
    json!({
        "name": name,
        "address": { "socket_address": { "address": GATEWAY, "port_value": port } },
        "filter_chains": [{
            "filters": filters,
            "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": tls },
        }],
    })
}

/// Istio lets an RBAC filter in shadow mode say whether the policy selects the request.
fn shadow(layer: &str) -> Value {
    let mut config = json!({
        "@type": kind(&format!("extensions.filters.{layer}.rbac.v3.RBAC")),
        "shadow_rules": { "action": "DENY", "policies": { POLICY: {
            "permissions": [{ "any": true }], "principals": [{ "any": true }] } } },
        "shadow_rules_stat_prefix": "istio_ext_authz_",
    });
    if layer == "network" {
        config["stat_prefix"] = "tcp.".into();
    }
    json!({ "name": format!("envoy.filters.{layer}.rbac"), "typed_config": config })
}

fn enabled_by(filter: &str) -> Value {
    json!({ "filter": filter, "path": [{ "key": "istio_ext_authz_shadow_effective_policy_id" }],
            "value": { "string_match": { "prefix": "istio-ext-authz" } } })
}

fn grpc_service() -> Value {
    json!({ "envoy_grpc": { "cluster_name": CLUSTER,
                            "authority": "sallyport-agent.sallyport-system.svc.cluster.local" },
            "timeout": "0.5s" })
}

/// As a `DestinationRule` with `ISTIO_MUTUAL` and `subjectAltNames` has it.
fn policy_server(port: u16, certs: &Path) -> Value {
    json!({
        "name": CLUSTER,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": endpoint(CLUSTER, port),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": kind("extensions.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
        "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": kind("extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
            "common_tls_context": {
                // Envoy's own limit for clients is 1.2.
                "tls_params": { "tls_maximum_protocol_version": "TLSv1_3" },
                "alpn_protocols": ["h2"],
                "tls_certificate_sds_secret_configs": [own_certificate(certs)],
                "validation_context": {
                    "trusted_ca": { "filename": certs.join("ca.crt") },
                    "match_typed_subject_alt_names": [
                        { "san_type": "URI", "matcher": { "exact": SERVER_ID } }],
                },
            },
        } },
    })
}

/// Istio's proxies get their own by SDS; so does this one, from a file. Certificates that stand in
/// the configuration itself are never read again, whatever directory is watched.
fn own_certificate(certs: &Path) -> Value {
    json!({ "name": "own", "sds_config": {
        "resource_api_version": "V3",
        "path_config_source": { "path": certs.join(SDS_FILE) },
    } })
}

const SDS_FILE: &str = "own.json";

/// What [`own_certificate`] names.
pub fn write_sds(certs: &Path) {
    let secret = json!({ "resources": [{
        "@type": kind("extensions.transport_sockets.tls.v3.Secret"),
        "name": "own",
        "tls_certificate": {
            "certificate_chain": { "filename": certs.join("tls.crt") },
            "private_key": { "filename": certs.join("tls.key") },
            "watched_directory": { "path": certs },
        },
    }] });
    std::fs::write(certs.join(SDS_FILE), secret.to_string()).expect("a file");
}

fn endpoint(cluster: &str, port: u16) -> Value {
    let socket = json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    json!({ "cluster_name": cluster,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket } }] }] })
}

fn access_log(filter: &str, fields: &[(&str, &str)]) -> Value {
    let mut format = json!({ "client": "%DOWNSTREAM_PEER_URI_SAN%" });
    for key in [
        "verdict",
        "reason",
        "service",
        "object",
        "dry_run",
        "dry_run_object",
        "revision",
    ] {
        format[key] = format!("%DYNAMIC_METADATA({filter}:{key})%").into();
    }
    for (key, value) in fields {
        format[*key] = (*value).into();
    }
    json!({ "name": "envoy.access_loggers.stdout", "typed_config": {
        "@type": kind("extensions.access_loggers.stream.v3.StdoutAccessLog"),
        "log_format": { "json_format": format },
    } })
}

/// Where the gateway listens, for clients.
pub fn address(port: u16) -> (&'static str, u16) {
    (GATEWAY, port)
}
