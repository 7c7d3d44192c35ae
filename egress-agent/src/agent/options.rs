//! What the agent can be told on its command line or in its environment.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use egress_common::maps::{MODE_ENFORCE, MODE_OFF};
use ipnet::IpNet;

use crate::compile::NODE_LOCAL_DNS;
use crate::datapath::DeviceHooks;
use crate::gateway::OutboundPolicy;
use crate::gateway::envoy::Authorization;
use crate::nri::{self, OnTimeout};
use crate::policy_server::authz::Binding;
use crate::tls::MinVersion;

/// Sallyport's node agent: holds this node's pods to what the declared state allows.
#[derive(Clone, Debug, Parser)]
#[command(name = "egress-agent", version)]
pub struct Options {
    /// Name of this node; pods of other nodes are not held here.
    #[arg(long, env = "SALLYPORT_NODE_NAME")]
    pub node_name: String,

    /// Where the declared state comes from.
    #[arg(long, env = "SALLYPORT_SOURCE", value_enum, default_value_t = Source::Directory)]
    pub source: Source,

    /// Directory of Kubernetes objects (*.yaml, *.yml, *.json), for --source directory.
    #[arg(
        long,
        env = "SALLYPORT_STATE_DIR",
        value_name = "DIR",
        required_unless_present = "source"
    )]
    pub state_dir: Option<PathBuf>,

    /// For --source kubernetes [default: $KUBECONFIG, or in a pod its service account].
    #[arg(long, env = "SALLYPORT_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Whether Gloo Mesh's kinds are read beside Sallyport's own; for --source kubernetes.
    #[arg(long, env = "SALLYPORT_GLOO", value_enum, default_value_t = Gloo::Auto)]
    pub gloo: Gloo,

    /// BPF file system; pins are below DIR/sallyport.
    #[arg(
        long,
        env = "SALLYPORT_BPFFS",
        value_name = "DIR",
        default_value = "/sys/fs/bpf"
    )]
    pub bpffs: PathBuf,

    /// Where to look for kubepods [default: the cgroup2 mount].
    #[arg(long, env = "SALLYPORT_CGROUP_ROOT", value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,

    /// The kubepods cgroup, relative to the cgroup root [default: looked for].
    #[arg(long, env = "SALLYPORT_KUBEPODS", value_name = "PATH")]
    pub kubepods: Option<PathBuf>,

    /// Directory for the agent's lock, socket and status.
    #[arg(
        long,
        env = "SALLYPORT_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/sallyport"
    )]
    pub run_dir: PathBuf,

    /// What happens to packets of pods that no object tells of (yet), and to what comes from a veth that no
    /// agent has looked at.
    #[arg(long, env = "SALLYPORT_UNKNOWN_PODS", value_enum, default_value_t = UnknownPods::Deny)]
    pub unknown_pods: UnknownPods,

    /// How programs are attached to devices: by tcx where the kernel has it (Linux 6.6), else by
    /// filters of a clsact qdisc.
    #[arg(long, env = "SALLYPORT_DEVICE_HOOKS", value_enum, default_value_t = HooksChoice::Auto)]
    pub device_hooks: HooksChoice,

    /// Socket of the container runtime's NRI, by which sandboxes are held until their hooks stand:
    /// auto (used where it is there), off, or a path.
    #[arg(
        long,
        env = "SALLYPORT_NRI_SOCKET",
        value_name = "auto|off|PATH",
        default_value = "auto"
    )]
    pub nri_socket: NriSocket,

    /// How long a sandbox is held at most, in milliseconds; never longer than three quarters of the
    /// time that the runtime gives its plugins.
    #[arg(
        long,
        env = "SALLYPORT_NRI_TIMEOUT",
        value_name = "MS",
        default_value_t = 1500,
        value_parser = clap::value_parser!(u64).range(1..=60_000)
    )]
    pub nri_timeout: u64,

    /// What becomes of a sandbox whose hooks don't stand in time.
    #[arg(
        long,
        env = "SALLYPORT_NRI_ON_TIMEOUT",
        value_enum,
        default_value_t = OnTimeout::Deny
    )]
    pub nri_on_timeout: OnTimeout,

    /// Taint that is taken off this node once the kernel is as declared, such as
    /// sallyport.dev/agent-not-ready; for --source kubernetes.
    #[arg(long, env = "SALLYPORT_STARTUP_TAINT_KEY", value_name = "KEY")]
    pub startup_taint_key: Option<String>,

    /// Range of pods' addresses, beside those of Node objects. May be given several times.
    #[arg(
        long = "pod-cidr",
        env = "SALLYPORT_POD_CIDR",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub pod_cidrs: Vec<IpNet>,

    /// Where node-local-dns listens on nodes that run it, for pods that may ask the cluster's DNS. May be
    /// given several times.
    #[arg(
        long = "node-local-dns",
        env = "SALLYPORT_NODE_LOCAL_DNS",
        value_name = "ADDR",
        value_delimiter = ',',
        default_values_t = [NODE_LOCAL_DNS]
    )]
    pub node_local_dns: Vec<IpAddr>,

    /// Name of this cluster in selectors that give one [default: every name is this cluster].
    #[arg(long, env = "SALLYPORT_CLUSTER_NAME", value_name = "NAME")]
    pub cluster_name: Option<String>,

    /// Directory of tls.crt, tls.key and ca.crt, by the path that Envoy sees.
    /// With it gateways' Envoys get their whole configuration from the policy server (xDS).
    #[arg(
        long,
        env = "SALLYPORT_GATEWAY_CERT_DIR",
        value_name = "DIR",
        requires = "gateway_upstream_ca"
    )]
    pub gateway_cert_dir: Option<PathBuf>,

    /// Authorities that outside servers are checked by (PEM), by the path that Envoy sees.
    #[arg(
        long,
        env = "SALLYPORT_GATEWAY_UPSTREAM_CA",
        value_name = "FILE",
        requires = "gateway_cert_dir"
    )]
    pub gateway_upstream_ca: Option<PathBuf>,

    /// What decides at gateways that get their configuration from the policy server.
    #[arg(
        long,
        env = "SALLYPORT_GATEWAY_AUTHZ",
        value_enum,
        default_value_t = GatewayAuthz::Rbac
    )]
    pub gateway_authz: GatewayAuthz,

    /// Serves gateway policy there to the egress gateways (Envoy's `ext_authz` and xDS), over mutual
    /// TLS only.
    #[arg(long, env = "SALLYPORT_POLICY_ADDRESS", value_name = "ADDR")]
    pub policy_address: Option<SocketAddr>,

    /// Directory of the policy server's tls.crt, tls.key and ca.crt; followed as they change.
    #[arg(long, env = "SALLYPORT_POLICY_CERT_DIR", value_name = "DIR")]
    pub policy_cert_dir: Option<PathBuf>,

    /// SPIFFE Workload API that gives the policy server's certificate, such as
    /// `unix:///run/spire/agent.sock`.
    #[arg(
        long,
        env = "SPIFFE_ENDPOINT_SOCKET",
        value_name = "ADDR",
        conflicts_with = "policy_cert_dir"
    )]
    pub spiffe_endpoint_socket: Option<String>,

    /// Oldest TLS that the policy server speaks.
    #[arg(
        long,
        env = "SALLYPORT_POLICY_TLS_MIN",
        value_enum,
        default_value_t = TlsMin::V1_3
    )]
    pub policy_tls_min: TlsMin,

    /// Whether a client's certificate must be that of the pod whose address it comes from.
    #[arg(
        long,
        env = "SALLYPORT_CLIENT_BINDING",
        value_enum,
        default_value_t = ClientBinding::Require
    )]
    pub client_binding: ClientBinding,

    /// SPIFFE trust domain of the pods' identities.
    #[arg(long, env = "SALLYPORT_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,

    /// What the gateways do with a host that no ExternalService names.
    #[arg(
        long,
        env = "SALLYPORT_OUTBOUND_POLICY",
        value_enum,
        default_value_t = Outbound::RegistryOnly
    )]
    pub outbound_policy: Outbound,

    /// Serves metrics and the kubelet's probes there, in the clear: a loopback address.
    #[arg(
        long,
        env = "SALLYPORT_METRICS_ADDRESS",
        value_name = "ADDR",
        value_parser = loopback
    )]
    pub metrics_address: Option<SocketAddr>,

    /// Serves metrics there over mutual TLS, with the policy server's certificate, to whoever has one
    /// of the same authorities.
    #[arg(long, env = "SALLYPORT_METRICS_TLS_ADDRESS", value_name = "ADDR")]
    pub metrics_tls_address: Option<SocketAddr>,

    /// Form of the log on stderr.
    #[arg(long, env = "SALLYPORT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// The files of --state-dir.
    Directory,
    /// The API server.
    Kubernetes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Gloo {
    /// Where they are defined.
    Auto,
    /// Never; they are not asked for.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HooksChoice {
    Auto,
    Tcx,
    Clsact,
}

/// Where the runtime's NRI is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NriSocket {
    /// At its usual place, if it is there.
    Auto,
    /// The agent is no plugin.
    Off,
    Path(PathBuf),
}

impl FromStr for NriSocket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            path if path.starts_with('/') => Ok(Self::Path(path.into())),
            _ => Err("give auto, off, or an absolute path".to_owned()),
        }
    }
}

/// An address that nobody outside this node's own network reaches.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|error| format!("{error}"))?;
    if address.ip().to_canonical().is_loopback() {
        Ok(address)
    } else {
        Err("metrics are served in the clear on loopback only (such as 127.0.0.1:9967): give others \
             --metrics-tls-address"
            .to_owned())
    }
}

impl Options {
    pub fn device_hooks(&self) -> DeviceHooks {
        match self.device_hooks {
            HooksChoice::Auto => DeviceHooks::best(),
            HooksChoice::Tcx => DeviceHooks::Tcx,
            HooksChoice::Clsact => DeviceHooks::Clsact,
        }
    }

    /// How the agent is an NRI plugin; none if it is not to be one.
    pub fn nri(&self) -> Option<nri::Settings> {
        let (socket, expected) = match &self.nri_socket {
            NriSocket::Off => return None,
            NriSocket::Auto => (nri::DEFAULT_SOCKET.into(), false),
            NriSocket::Path(path) => (path.clone(), true),
        };
        Some(nri::Settings {
            socket,
            expected,
            timeout: Duration::from_millis(self.nri_timeout),
            on_timeout: self.nri_on_timeout,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnknownPods {
    Deny,
    Allow,
}

impl UnknownPods {
    /// As `Config::unknown_mode`.
    pub fn mode(self) -> u8 {
        match self {
            Self::Deny => MODE_ENFORCE,
            Self::Allow => MODE_OFF,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Outbound {
    /// It is refused.
    #[value(name = "REGISTRY_ONLY")]
    RegistryOnly,
    /// It is open to authenticated clients.
    #[value(name = "ALLOW_ANY")]
    AllowAny,
}

impl From<Outbound> for OutboundPolicy {
    fn from(outbound: Outbound) -> Self {
        match outbound {
            Outbound::RegistryOnly => Self::RegistryOnly,
            Outbound::AllowAny => Self::AllowAny,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GatewayAuthz {
    /// Envoy's own RBAC, as configured: no call for a request.
    Rbac,
    /// The policy server, asked about each request.
    ExtAuthz,
}

impl From<GatewayAuthz> for Authorization {
    fn from(authz: GatewayAuthz) -> Self {
        match authz {
            GatewayAuthz::Rbac => Self::Rbac,
            GatewayAuthz::ExtAuthz => Self::ExtAuthz,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsMin {
    #[value(name = "1.2")]
    V1_2,
    #[value(name = "1.3")]
    V1_3,
}

impl From<TlsMin> for MinVersion {
    fn from(oldest: TlsMin) -> Self {
        match oldest {
            TlsMin::V1_2 => Self::Tls12,
            TlsMin::V1_3 => Self::Tls13,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ClientBinding {
    /// It must: a stolen certificate is of no use from another pod.
    Require,
    /// Addresses of no known pod are let through; those of another account's pod are not.
    Prefer,
    /// The certificate alone counts.
    Off,
}

impl From<ClientBinding> for Binding {
    fn from(binding: ClientBinding) -> Self {
        match binding {
            ClientBinding::Require => Self::Require,
            ClientBinding::Prefer => Self::Prefer,
            ClientBinding::Off => Self::Off,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_in_the_clear_stay_on_loopback() {
        let parse = |address: &str| {
            let begin = ["egress-agent", "--node-name", "a", "--state-dir", "/state"];
            let options = begin.into_iter().chain(["--metrics-address", address]);
            Options::try_parse_from(options).map(|options| options.metrics_address)
        };
        for address in ["127.0.0.1:9967", "[::1]:9967", "[::ffff:127.0.0.1]:9967"] {
            assert!(parse(address).is_ok(), "{address}");
        }
        for address in ["0.0.0.0:9967", "[::]:9967", "192.0.2.1:9967"] {
            let error = parse(address).unwrap_err().to_string();
            assert!(error.contains("--metrics-tls-address"), "{error}");
        }
    }

    #[test]
    fn a_source_has_to_be_named_or_a_directory_given() {
        let parse = |more: &[&str]| {
            let args = ["egress-agent", "--node-name", "a"].iter().chain(more);
            Options::try_parse_from(args)
        };
        assert!(parse(&[]).unwrap_err().to_string().contains("--state-dir"));
        let directory = parse(&["--state-dir", "/state"]).unwrap();
        assert_eq!(directory.source, Source::Directory);
        let kubernetes = parse(&["--source", "kubernetes"]).unwrap();
        assert_eq!(kubernetes.source, Source::Kubernetes);
    }
}
