//! What the agent can be told on its command line or in its environment.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use egress_common::maps::{MODE_ENFORCE, MODE_OFF};
use ipnet::IpNet;

use crate::gateway::OutboundPolicy;

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

    /// BPF file system; pins are below DIR/sallyport/v1.
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

    /// What happens to packets of pods that no object tells of (yet).
    #[arg(long, env = "SALLYPORT_UNKNOWN_PODS", value_enum, default_value_t = UnknownPods::Deny)]
    pub unknown_pods: UnknownPods,

    /// Range of pods' addresses, beside those of Node objects. May be given several times.
    #[arg(
        long = "pod-cidr",
        env = "SALLYPORT_POD_CIDR",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub pod_cidrs: Vec<IpNet>,

    /// Name of this cluster in selectors that give one [default: every name is this cluster].
    #[arg(long, env = "SALLYPORT_CLUSTER_NAME", value_name = "NAME")]
    pub cluster_name: Option<String>,

    /// Directory that the gateways' Envoy configuration is written to.
    #[arg(
        long,
        env = "SALLYPORT_GATEWAY_CONFIG_DIR",
        value_name = "DIR",
        requires = "gateway_cert_dir",
        requires = "gateway_upstream_ca"
    )]
    pub gateway_config_dir: Option<PathBuf>,

    /// Directory of tls.crt, tls.key and ca.crt, by the path that Envoy sees.
    #[arg(long, env = "SALLYPORT_GATEWAY_CERT_DIR", value_name = "DIR")]
    pub gateway_cert_dir: Option<PathBuf>,

    /// Authorities that outside servers are checked by (PEM), by the path that Envoy sees.
    #[arg(long, env = "SALLYPORT_GATEWAY_UPSTREAM_CA", value_name = "FILE")]
    pub gateway_upstream_ca: Option<PathBuf>,

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

    /// Serves metrics there.
    #[arg(long, env = "SALLYPORT_METRICS_ADDRESS", value_name = "ADDR")]
    pub metrics_address: Option<SocketAddr>,

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
pub enum LogFormat {
    Text,
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

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
