//! One real Envoy with two listeners for each world, as Istio configures an egress gateway with
//! `ISTIO_MUTUAL`: one decides by native policy, the other asks the policy server.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use egress_agent::gateway::host::HostPattern;
use egress_agent::gateway::policy::Listener;
use serde_json::{Value, json};

use crate::istiod::Filter;
use crate::policy_server::SERVER_ID;

const METADATA_NATIVE: &str = "envoy.filters.http.rbac:istio_dry_run_allow_shadow_engine_result";
const METADATA_CHECK: &str = "envoy.filters.http.ext_authz:dry_run";

/// How a listener decides.
pub enum Decides {
    Natively { http: Filter, tcp: Filter },
    ByCheck,
}

/// One port of the gateway.
pub struct Port<'a> {
    pub number: u16,
    pub listener: &'a Listener,
    pub decides: Decides,
    /// Where requests that get through are sent to; none if the gateway answers them itself.
    pub upstream: Option<Upstream>,
}

/// A server outside, by TLS.
#[derive(Clone, Copy)]
pub struct Upstream {
    /// On loopback.
    pub port: u16,
    /// Its certificate must bear it, and outside.crt have signed that.
    pub name: &'static str,
}

/// Ends with this value.
pub struct Envoy {
    child: Child,
    log: PathBuf,
}

impl Envoy {
    /// Starts it in a directory with gateway.{crt,key} and ca.crt, and outside.crt if anything is
    /// sent on.
    pub fn start(directory: &Path, ports: &[Port<'_>], server: u16, outside: u16) -> Self {
        let mut clusters = vec![policy_server(directory, server), outside_cluster(outside)];
        let sent_on = ports
            .iter()
            .filter_map(|port| Some((port.number, port.upstream?)));
        clusters.extend(sent_on.map(|(number, to)| upstream_cluster(directory, number, to)));
        let listeners: Vec<_> = ports.iter().map(|port| listener(directory, port)).collect();
        let config = json!({
            "static_resources": { "listeners": listeners, "clusters": clusters },
        });
        let path = directory.join("envoy.json");
        fs::write(&path, config.to_string()).expect("a file");
        let log = directory.join("envoy.log");
        let binary = std::env::var_os("SALLYPORT_ENVOY").expect(
            "this test runs a real Envoy: run `cargo xtask tools` to get one, and set SALLYPORT_ENVOY \
             to its path (`cargo xtask test` does both)",
        );
        let child = Command::new(binary)
            .args([
                "--concurrency",
                "1",
                "--log-level",
                "warning",
                "--use-dynamic-base-id",
            ])
            .arg("--config-path")
            .arg(path)
            .stderr(fs::File::create(&log).expect("a log file"))
            .spawn()
            .expect("Envoy starts");
        let envoy = Self { child, log };
        let deadline = Instant::now() + Duration::from_secs(30);
        for port in ports {
            while TcpStream::connect(("127.0.0.1", port.number)).is_err() {
                assert!(
                    Instant::now() < deadline,
                    "Envoy does not listen:\n{}",
                    envoy.log()
                );
                sleep(Duration::from_millis(50));
            }
        }
        envoy
    }

    /// Its process id.
    #[allow(dead_code, reason = "for the benchmark")]
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports that nobody has.
pub fn free_ports(count: usize) -> Vec<u16> {
    let taken: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)).expect("a port of loopback"))
        .collect();
    let port = |it: &TcpListener| it.local_addr().expect("an address").port();
    taken.iter().map(port).collect()
}

fn file(directory: &Path, name: &str) -> Value {
    json!({ "filename": directory.join(name) })
}

fn typed(name: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/{kind}"));
    json!({ "name": name, "typed_config": config })
}

fn listener(directory: &Path, port: &Port<'_>) -> Value {
    let names = |patterns: Vec<&HostPattern>| -> Vec<String> {
        patterns.into_iter().map(ToString::to_string).collect()
    };
    let passed_on = &port.listener.passthrough;
    // Servers of the Gateway: TLS for what is passed on, HTTPS for the rest.
    let below = |host: &&HostPattern| passed_on.keys().any(|it| it.covers(host));
    let requests = names(port.listener.hosts.keys().filter(below).collect());
    let connections = names(passed_on.keys().collect());
    let mut chains = Vec::new();
    if !requests.is_empty() {
        chains.push(json!({
            "filter_chain_match": { "server_names": requests },
            "filters": [connection_manager(port)],
        }));
    }
    if !connections.is_empty() {
        chains.push(json!({
            "filter_chain_match": { "server_names": connections },
            "filters": pass_on(&port.decides),
        }));
    }
    chains.push(json!({ "filters": [connection_manager(port)] }));
    for chain in &mut chains {
        chain["transport_socket"] = downstream(directory);
    }
    json!({
        "name": format!("port-{}", port.number),
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": port.number } },
        "listener_filters": [typed(
            "envoy.filters.listener.tls_inspector",
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
            json!({}),
        )],
        "filter_chains": chains,
    })
}

fn downstream(directory: &Path) -> Value {
    typed(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        json!({
            "require_client_certificate": true,
            "common_tls_context": {
                "tls_certificates": [{
                    "certificate_chain": file(directory, "gateway.crt"),
                    "private_key": file(directory, "gateway.key"),
                }],
                "validation_context": { "trusted_ca": file(directory, "ca.crt") },
            },
        }),
    )
}

fn grpc_service() -> Value {
    // Longer than the recipe's half second: a busy machine is no matter of policy.
    json!({ "envoy_grpc": { "cluster_name": "policy" }, "timeout": "10s" })
}

/// With `pathNormalization: DECODE_AND_MERGE_SLASHES`.
fn connection_manager(port: &Port<'_>) -> Value {
    let (filter, metadata) = match &port.decides {
        Decides::Natively { http, .. } => {
            let kind = "envoy.extensions.filters.http.rbac.v3.RBAC";
            let mut config = json!({
                "rules": http.rules, "shadow_rules_stat_prefix": "istio_dry_run_allow_",
            });
            if let Some(shadow) = &http.shadow {
                config["shadow_rules"] = shadow.clone();
            }
            (
                typed("envoy.filters.http.rbac", kind, config),
                METADATA_NATIVE,
            )
        }
        Decides::ByCheck => {
            let kind = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
            let config = json!({
                "grpc_service": grpc_service(), "transport_api_version": "V3",
                "failure_mode_allow": false, "status_on_error": { "code": "ServiceUnavailable" },
            });
            (
                typed("envoy.filters.http.ext_authz", kind, config),
                METADATA_CHECK,
            )
        }
    };
    let router = typed(
        "envoy.filters.http.router",
        "envoy.extensions.filters.http.router.v3.Router",
        json!({}),
    );
    let dry_run = json!({ "header": {
        "key": "x-dry-run", "value": format!("%DYNAMIC_METADATA({metadata})%"),
    } });
    let mut route = json!({ "match": { "prefix": "" }, "response_headers_to_add": [dry_run] });
    if port.upstream.is_some() {
        route["route"] = json!({ "cluster": upstream_name(port.number) });
    } else {
        route["direct_response"] = json!({ "status": 200 });
    }
    typed(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "gateway",
            "use_remote_address": true,
            "normalize_path": true,
            "merge_slashes": true,
            "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
            "http_filters": [filter, router],
            "route_config": { "virtual_hosts": [{
                "name": "all", "domains": ["*"], "routes": [route],
            }] },
        }),
    )
}

fn pass_on(decides: &Decides) -> [Value; 2] {
    let filter = match decides {
        Decides::Natively { tcp, .. } => typed(
            "envoy.filters.network.rbac",
            "envoy.extensions.filters.network.rbac.v3.RBAC",
            json!({ "rules": tcp.rules, "stat_prefix": "tcp." }),
        ),
        Decides::ByCheck => typed(
            "envoy.filters.network.ext_authz",
            "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
            // Istio leaves the server name out; with it the question can be answered.
            json!({
                "grpc_service": grpc_service(), "transport_api_version": "V3",
                "stat_prefix": "tcp.", "include_tls_session": true,
            }),
        ),
    };
    let proxy = typed(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        json!({ "stat_prefix": "outside", "cluster": "outside" }),
    );
    [filter, proxy]
}

fn endpoint(name: &str, port: u16) -> Value {
    let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    json!({
        "cluster_name": name,
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
    })
}

fn outside_cluster(port: u16) -> Value {
    json!({ "name": "outside", "type": "STATIC", "load_assignment": endpoint("outside", port) })
}

fn upstream_name(port: u16) -> String {
    format!("upstream-{port}")
}

fn upstream_cluster(directory: &Path, port: u16, to: Upstream) -> Value {
    let tls = json!({
        "sni": to.name,
        "common_tls_context": { "validation_context": {
            "trusted_ca": file(directory, "outside.crt"),
            "match_typed_subject_alt_names": [
                { "san_type": "DNS", "matcher": { "exact": to.name } },
            ],
        } },
    });
    let kind = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let name = upstream_name(port);
    json!({
        "name": name, "type": "STATIC", "load_assignment": endpoint(&name, to.port),
        "transport_socket": typed("envoy.transport_sockets.tls", kind, tls),
    })
}

fn policy_server(directory: &Path, port: u16) -> Value {
    let tls = json!({
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_params": { "tls_maximum_protocol_version": "TLSv1_3" },
            "tls_certificates": [{
                "certificate_chain": file(directory, "gateway.crt"),
                "private_key": file(directory, "gateway.key"),
            }],
            "validation_context": {
                "trusted_ca": file(directory, "ca.crt"),
                "match_typed_subject_alt_names": [
                    { "san_type": "URI", "matcher": { "exact": SERVER_ID } },
                ],
            },
        },
    });
    let http = json!({ "explicit_http_config": { "http2_protocol_options": {} } });
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let kind = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    json!({
        "name": "policy",
        "type": "STATIC",
        "load_assignment": endpoint("policy", port),
        "transport_socket": typed("envoy.transport_sockets.tls", kind, tls),
        "typed_extension_protocol_options": { options: typed("", options, http)["typed_config"] },
    })
}
