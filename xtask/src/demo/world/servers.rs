//! What runs in the pods and outside: servers, sidecars, the gateway's Envoy; and their
//! certificates.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, bail};

use super::{Pods, WORKLOAD_PORT};
use crate::demo::manifests;
use crate::demo::programs::Programs;
use crate::node::dns::Zone;
use crate::node::envoy;
use crate::node::pki::Authority;
use crate::node::plan::{self, Both};
use crate::node::{Node, Pod, Process, Service};

/// Everything that serves.
#[derive(Debug)]
pub struct Servers {
    inside: Vec<(String, Process)>,
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
    let public = Authority::new("public web")?;
    public.issue_server(plan::OUTSIDE_NAME, &node.directory().join("certs/outside"))?;
    fs::write(node.directory().join("upstream/ca.crt"), public.pem())
        .context("cannot write the outside host's authority")
}

impl Servers {
    pub(super) fn start(
        node: &Node,
        pods: &Pods,
        services: &[Service],
        programs: &Programs,
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
        let config = node
            .directory()
            .join("gateway")
            .join(manifests::GATEWAY_DIRECTORY);
        let process = envoy::start_gateway(gateway, &programs.envoy, &config)?;
        inside.push((format!("Envoy of {}", gateway.id()), process));
        Ok(Self { inside, outside })
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
