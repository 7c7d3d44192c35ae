//! What runs in the pods and outside: servers, sidecars, the gateway's Envoy; and their
//! certificates.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{GATEWAY_PORTS, POLICY_PORT, Pods, WORKLOAD_PORT};
use crate::demo::Gateway;
use crate::demo::manifests;
use crate::demo::programs::Programs;
use crate::node::dns::Zone;
use crate::node::envoy::{self, gateway};
use crate::node::pki::{Authority, spiffe_id};
use crate::node::plan::{self, Both};
use crate::node::{Node, Pod, Process, Service};

/// Namespace and service account of the agent.
const AGENT: (&str, &str) = ("sallyport-system", "sallyport-agent");

/// Everything that serves.
#[derive(Debug)]
pub struct Servers {
    inside: Vec<(String, Process)>,
    /// What the gateway's Envoy prints: its access log, and its own words.
    gateway_log: PathBuf,
    outside: Child,
}

/// Makes every certificate: the mesh's, and httpbin.org's own.
pub(super) fn certify(node: &Node, pods: &Pods) -> Result<()> {
    let mesh = Authority::new("cluster.local mesh")?;
    for pod in [&pods.productpage, &pods.reviews, &pods.gateway] {
        let spec = pod.spec();
        let directory = pod.directory().join("certs");
        mesh.issue_workload(
            &spec.namespace,
            &spec.service_account,
            &directory,
            envoy::SIDECAR_UID,
        )?;
    }
    // The agent runs on the node, as root.
    let agent = node.directory().join("certs/agent");
    mesh.issue_workload(AGENT.0, AGENT.1, &agent, 0)?;
    let public = Authority::new("public web")?;
    let outside = node.directory().join("certs/outside");
    public.issue_server(plan::OUTSIDE_NAME, &outside, 0)?;
    fs::write(node.directory().join("upstream/ca.crt"), public.pem())
        .context("cannot write the outside host's authority")
}

impl Servers {
    pub(super) fn start(
        node: &Node,
        pods: &Pods,
        services: &[Service],
        programs: &Programs,
        kind: Gateway,
    ) -> Result<Self> {
        let outside = node
            .outside_command(&programs.helper)?
            .args(["node", "serve-outside"])
            .arg(node.directory().join("certs/outside"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(node.directory().join("log/outside.log"))?)
            .spawn()
            .context("cannot start the outside host")?;
        let mut inside = vec![("DNS".to_owned(), start_dns(&pods.dns, services)?)];
        let port = WORKLOAD_PORT.to_string();
        for pod in [&pods.productpage, &pods.reviews, &pods.ratings] {
            let name = &pod.spec().name;
            let process = pod
                .helper("app", &["serve-workload", name, &port])?
                .spawn("app")?;
            inside.push((pod.id(), process));
        }
        for pod in [&pods.productpage, &pods.reviews] {
            let process = envoy::start_sidecar(pod, &programs.envoy, &pods.gateway_address())?;
            inside.push((format!("sidecar of {}", pod.id()), process));
        }
        let gateway = &pods.gateway;
        let process = start_gateway(node, pods, programs, kind)?;
        let gateway_log = process.log().to_owned();
        inside.push((format!("Envoy of {}", gateway.id()), process));
        Ok(Self {
            inside,
            gateway_log,
            outside,
        })
    }

    /// JSON lines among what the gateway's Envoy printed.
    pub(super) fn access_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.gateway_log).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// An error if one has ended.
    pub fn check(&mut self) -> Result<()> {
        for (name, process) in &mut self.inside {
            if let Some(status) = process.try_wait()? {
                let log = fs::read_to_string(process.log()).unwrap_or_default();
                bail!("{name} ended ({status}): {log}");
            }
        }
        if let Some(status) = self.outside.try_wait()? {
            bail!("the outside host ended ({status})");
        }
        Ok(())
    }
}

/// The gateway, whose policy server is the agent on the node.
fn start_gateway(node: &Node, pods: &Pods, programs: &Programs, kind: Gateway) -> Result<Process> {
    let pod = &pods.gateway;
    let server = SocketAddr::new(plan::NODE.v4.into(), POLICY_PORT);
    let server_id = spiffe_id(AGENT.0, AGENT.1);
    let bootstrap = match (&programs.sallyport, kind) {
        (Some(sallyport), Gateway::Xds) => {
            let render = |file: &str| {
                let output = Command::new(&sallyport.egressctl)
                    .args(["render", "bootstrap", "--gateway", manifests::GATEWAY_NAME])
                    .args(["--server", &server.to_string(), "--server-id", &server_id])
                    .arg("--cert-dir")
                    .arg(pod.directory().join("certs"))
                    .arg("--config-dir")
                    .arg(pod.directory())
                    .args(["--admin-port", &envoy::ADMIN_PORT.to_string()])
                    .args(["--file", file])
                    .output()
                    .context("cannot run egressctl")?;
                if !output.status.success() {
                    bail!(
                        "egressctl render bootstrap: {}",
                        String::from_utf8_lossy(&output.stderr)
                    );
                }
                String::from_utf8(output.stdout).context("the bootstrap")
            };
            for file in ["certificate.json", "trust.json"] {
                fs::write(pod.directory().join(file), render(file)?)
                    .with_context(|| format!("cannot write {file}"))?;
            }
            render("bootstrap.json")?
        }
        _ => gateway::bootstrap(&gateway::Settings {
            pod,
            port: GATEWAY_PORTS.1,
            upstream_ca: &node.directory().join("upstream/ca.crt"),
            policy_server: server,
            policy_server_id: &server_id,
        }),
    };
    envoy::start(pod, &programs.envoy, "istio-proxy", &bootstrap)
}

fn start_dns(pod: &Pod, services: &[Service]) -> Result<Process> {
    let both = |ips: Both| ips.all().to_vec();
    let mut zone: Zone = services
        .iter()
        .map(|service| {
            let name = format!("{}.{}.svc.cluster.local", service.name, service.namespace);
            (name, both(service.cluster_ips))
        })
        .collect();
    let outside: Vec<IpAddr> = both(plan::OUTSIDE);
    zone.insert(plan::OUTSIDE_NAME.to_owned(), outside);
    let path = pod.directory().join("zone.json");
    fs::write(&path, serde_json::to_vec_pretty(&zone)?).context("cannot write the zone")?;
    pod.helper("coredns", &["serve-dns", path_text(&path)?])?
        .spawn("coredns")
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
