//! Bootstraps of real Envoys: a sidecar as Istio's, and a [`gateway`].

pub mod gateway;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::pki::spiffe_id;
use super::plan::{Both, OUTSIDE_NAME};
use super::{Pod, Process};

/// User of every sidecar in an Istio mesh; the pod's redirect leaves it alone.
pub const SIDECAR_UID: u32 = 1337;
const CAPTURE_PORT: u16 = 15001;
/// Where each Envoy's admin interface listens, on the pod's own loopback.
pub const ADMIN_PORT: u16 = 15000;

/// The gateway that a sidecar sends `httpbin.org` to.
#[derive(Clone, Debug)]
pub struct GatewayAddress {
    /// `ClusterIP`s of its Service.
    pub ips: Both,
    pub port: u16,
    pub namespace: String,
    pub service_account: String,
}

/// Starts a sidecar in the pod, and captures the pod's outbound TCP into it as Istio's init
/// container does. The pod's directory must hold its certificate in `certs`.
pub fn start_sidecar(pod: &Pod, envoy: &Path, gateway: &GatewayAddress) -> Result<Process> {
    let bootstrap = sidecar_bootstrap(pod, gateway);
    let process = start(pod, envoy, "istio-proxy", &format!("{bootstrap:#}\n"))?;
    capture(pod)?;
    Ok(process)
}

/// Sets the redirect of the pod's outbound TCP; what a flush of its nat table removes.
pub fn capture(pod: &Pod) -> Result<()> {
    pod.netns().nft(&format!(
        "table inet istio\n\
         delete table inet istio\n\
         table inet istio {{\n\
         \x20 chain output {{\n\
         \x20   type nat hook output priority -100\n\
         \x20   meta skuid {SIDECAR_UID} return\n\
         \x20   oifname \"lo\" return\n\
         \x20   tcp dport 53 return\n\
         \x20   meta l4proto tcp redirect to :{CAPTURE_PORT}\n\
         \x20 }}\n\
         }}\n"
    ))?;
    Ok(())
}

/// Starts an Envoy in the pod with this bootstrap; its access log is in what the process prints.
pub fn start(pod: &Pod, envoy: &Path, container: &str, bootstrap: &str) -> Result<Process> {
    let path = pod.directory().join("envoy.json");
    fs::write(&path, bootstrap).with_context(|| format!("cannot write {}", path.display()))?;
    let path = path.to_str().context("a path in UTF-8")?;
    pod.command(container, envoy)?
        .args(&[
            "--config-path",
            path,
            "--concurrency",
            "1",
            "--disable-hot-restart",
        ])
        .args(&["--log-level", "warning", "--file-flush-interval-msec", "50"])
        .uid(SIDECAR_UID)
        .spawn(container)
}

fn common(pod: &Pod) -> Value {
    json!({
        "node": { "id": pod.id(), "cluster": pod.spec().service_account },
        "admin": { "address": address("127.0.0.1", ADMIN_PORT) },
    })
}

fn address(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}

fn sidecar_bootstrap(pod: &Pod, gateway: &GatewayAddress) -> Value {
    let mut bootstrap = common(pod);
    let listeners: Vec<Value> = [("v4", "0.0.0.0"), ("v6", "::")]
        .map(|(family, host)| listener(pod, family, host))
        .into();
    bootstrap["static_resources"] = json!({
        "listeners": listeners,
        "clusters": [passthrough(), to_gateway(pod, gateway)],
    });
    bootstrap
}

/// What the redirect leads to: HTTP on port 80 is looked at, the rest goes where it wanted to.
fn listener(pod: &Pod, family: &str, host: &str) -> Value {
    json!({
        "name": format!("outbound-{family}"),
        "address": address(host, CAPTURE_PORT),
        "listener_filters": [typed(
            "envoy.filters.listener.original_dst",
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
            &json!({}),
        )],
        "filter_chains": [{
            "filter_chain_match": { "destination_port": 80 },
            "filters": [connection_manager(pod)],
        }],
        "default_filter_chain": { "filters": [typed(
            "envoy.filters.network.tcp_proxy",
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            &json!({ "stat_prefix": "passthrough", "cluster": "passthrough" }),
        )] },
    })
}

fn connection_manager(pod: &Pod) -> Value {
    let route = |name: &str, domains: &[&str], cluster: &str| {
        json!({
            "name": name,
            "domains": domains,
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }],
        })
    };
    let with_port = format!("{OUTSIDE_NAME}:80");
    typed(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &json!({
            "stat_prefix": "outbound",
            "route_config": { "virtual_hosts": [
                route("external", &[OUTSIDE_NAME, &with_port], "egress-gateway"),
                route("other", &["*"], "passthrough"),
            ] },
            "http_filters": [typed(
                "envoy.filters.http.router",
                "envoy.extensions.filters.http.router.v3.Router",
                &json!({}),
            )],
            "access_log": [typed(
                "envoy.access_loggers.stdout",
                "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
                &json!({ "log_format": { "json_format": {
                    "pod": pod.id(),
                    "authority": "%REQ(:AUTHORITY)%",
                    "path": "%REQ(:PATH)%",
                    "response_code": "%RESPONSE_CODE%",
                    "response_flags": "%RESPONSE_FLAGS%",
                    "upstream_cluster": "%UPSTREAM_CLUSTER%",
                    "upstream_host": "%UPSTREAM_HOST%",
                    "original_destination": "%DOWNSTREAM_LOCAL_ADDRESS%",
                } } }),
            )],
        }),
    )
}

fn passthrough() -> Value {
    json!({
        "name": "passthrough",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "2s",
    })
}

/// Mutual TLS with the pod's own certificate, to a gateway that must prove who it is.
fn to_gateway(pod: &Pod, gateway: &GatewayAddress) -> Value {
    let certs = pod.directory().join("certs");
    let endpoints: Vec<Value> = gateway
        .ips
        .all()
        .iter()
        .map(|ip| json!({ "endpoint": { "address": address(&ip.to_string(), gateway.port) } }))
        .collect();
    json!({
        "name": "egress-gateway",
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": "egress-gateway",
            "endpoints": [{ "lb_endpoints": endpoints }],
        },
        "transport_socket": typed(
            "envoy.transport_sockets.tls",
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            &json!({
                "sni": OUTSIDE_NAME,
                "common_tls_context": {
                    "tls_certificates": [{
                        "certificate_chain": { "filename": certs.join("tls.crt") },
                        "private_key": { "filename": certs.join("tls.key") },
                    }],
                    "validation_context": {
                        "trusted_ca": { "filename": certs.join("ca.crt") },
                        "match_typed_subject_alt_names": [{
                            "san_type": "URI",
                            "matcher": {
                                "exact": spiffe_id(&gateway.namespace, &gateway.service_account),
                            },
                        }],
                    },
                },
            }),
        ),
    })
}

fn typed(name: &str, message: &str, config: &Value) -> Value {
    let mut config = config.clone();
    config["@type"] = json!(format!("type.googleapis.com/{message}"));
    json!({ "name": name, "typed_config": config })
}
