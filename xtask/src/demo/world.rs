//! The guide's cluster on the node in miniature: Bookinfo, the cluster's DNS, an egress gateway,
//! and httpbin.org outside.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::manifests;
use super::programs::Programs;
use crate::node::dns::Zone;
use crate::node::envoy::{self, GatewayAddress};
use crate::node::objects::{self, StateDirectory};
use crate::node::pki::Authority;
use crate::node::plan::{self, Both};
use crate::node::wire::Wire;
use crate::node::{Backend, Node, NodeOptions, Pod, PodSpec, Process, Service, ServicePort};

/// Port that the workloads listen on.
pub const WORKLOAD_PORT: u16 = 9080;
/// Port of the node that leads to reviews.
pub const NODE_PORT: u16 = 30080;
/// Ports of the gateway: its Service's and its pod's.
pub const GATEWAY_PORTS: (u16, u16) = (443, 8443);

const PRODUCTPAGE: u8 = 10;
const REVIEWS: u8 = 11;
const RATINGS: u8 = 12;
const GATEWAY: u8 = 20;
pub const RATINGS_SERVICE: u8 = 12;
const REVIEWS_SERVICE: u8 = 11;

/// Everything that stands.
#[derive(Debug)]
pub struct World {
    pub wire: Wire,
    pub productpage: Pod,
    pub reviews: Pod,
    pub ratings: Pod,
    pub dns: Pod,
    pub gateway: Pod,
    pub state: StateDirectory,
    servers: Vec<(String, Process)>,
    outside: Child,
    // Last, so that the node is taken down when nothing uses it any more.
    pub node: Node,
}

impl World {
    /// Builds it, telling each step to `say`.
    pub fn build(programs: &Programs, say: &dyn Fn(&str)) -> Result<Self> {
        say("node: namespaces, cgroups, routes");
        let node = Node::new(&NodeOptions::with_helper(&programs.helper))?;
        let wire = node.wire()?;
        say("certificates: the mesh's SPIFFE identities, httpbin.org's own");
        let mesh = Authority::new("cluster.local mesh")?;
        let public = Authority::new("public web")?;
        let certificates = node.directory().join("certs/outside");
        public.issue_server(plan::OUTSIDE_NAME, &certificates)?;
        fs::write(node.directory().join("upstream/ca.crt"), public.pem())?;

        say("outside: httpbin.org with HTTP, HTTPS and UDP");
        let outside = node
            .outside_command(&programs.helper)?
            .args(["node", "serve-outside"])
            .arg(&certificates)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(node.directory().join("log/outside.log"))?)
            .spawn()
            .context("cannot start the outside host")?;

        say("pods: coredns, istio-egressgateway, productpage, reviews, ratings");
        let start = |namespace: &str, name: &str, app: &str, account: &str, number: u8| {
            node.pod(
                &PodSpec::new(namespace, name, number)
                    .label("app", app)
                    .service_account(account),
            )
            .with_context(|| format!("pod {namespace}/{name}"))
        };
        let dns = start("kube-system", "coredns-0", "kube-dns", "coredns", 2)?;
        let gateway = start(
            "istio-egress",
            "istio-egressgateway-0",
            "istio-egressgateway",
            "istio-egressgateway",
            GATEWAY,
        )?;
        let productpage = start(
            "bookinfo",
            "productpage-v1",
            "productpage",
            "productpage",
            PRODUCTPAGE,
        )?;
        let reviews = start("bookinfo", "reviews-v1", "reviews", "reviews", REVIEWS)?;
        let ratings = start("bookinfo", "ratings-v1", "ratings", "ratings", RATINGS)?;
        let services = [
            service(
                &dns,
                "kube-dns",
                plan::DNS,
                vec![
                    ServicePort::udp("dns", 53, 53),
                    ServicePort::tcp("dns-tcp", 53, 53),
                ],
            ),
            service(
                &gateway,
                "istio-egressgateway",
                GATEWAY,
                vec![ServicePort::tcp("https", GATEWAY_PORTS.0, GATEWAY_PORTS.1)],
            ),
            service(
                &ratings,
                "ratings",
                RATINGS_SERVICE,
                vec![ServicePort::tcp("http", WORKLOAD_PORT, WORKLOAD_PORT)],
            ),
            service(
                &reviews,
                "reviews",
                REVIEWS_SERVICE,
                vec![ServicePort::tcp("http", WORKLOAD_PORT, WORKLOAD_PORT).node_port(NODE_PORT)],
            ),
        ];
        let state = StateDirectory::new(node.directory().join("state"));
        let pods = [&dns, &gateway, &productpage, &reviews, &ratings];
        declare(&state, &pods, &services)?;
        for service in &services {
            node.service(service)?;
        }

        say("servers: DNS, workloads, sidecars (real Envoy, UID 1337)");
        let mut servers = Vec::new();
        servers.push(("DNS".to_owned(), start_dns(&dns, &services)?));
        let port = WORKLOAD_PORT.to_string();
        for pod in [&productpage, &reviews, &ratings] {
            let name = &pod.spec().name;
            let process = pod
                .helper("app", &["serve-workload", name, &port])?
                .spawn("app")?;
            servers.push((pod.id(), process));
        }
        let address = GatewayAddress {
            ips: plan::service(GATEWAY),
            port: GATEWAY_PORTS.0,
            namespace: gateway.spec().namespace.clone(),
            service_account: gateway.spec().service_account.clone(),
        };
        for pod in [&productpage, &reviews, &gateway] {
            let spec = pod.spec();
            let directory = pod.directory().join("certs");
            let user = envoy::SIDECAR_UID;
            mesh.issue_workload(&spec.namespace, &spec.service_account, &directory, user)?;
        }
        for pod in [&productpage, &reviews] {
            let process = envoy::start_sidecar(pod, &programs.envoy, &address)?;
            servers.push((format!("sidecar of {}", pod.id()), process));
        }
        let config = node
            .directory()
            .join("gateway")
            .join(manifests::GATEWAY_DIRECTORY);
        let process = envoy::start_gateway(&gateway, &programs.envoy, &config)?;
        servers.push((format!("Envoy of {}", gateway.id()), process));

        let mut world = Self {
            wire,
            productpage,
            reviews,
            ratings,
            dns,
            gateway,
            state,
            servers,
            outside,
            node,
        };
        world.wait_until_ready()?;
        Ok(world)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let [outside, _] = plan::OUTSIDE.all();
        let ready = [
            (
                self.node.outside(),
                SocketAddr::new(outside, plan::OUTSIDE_HTTPS),
            ),
            (self.dns.netns(), local(53)),
            (self.productpage.netns(), local(WORKLOAD_PORT)),
            (self.reviews.netns(), local(WORKLOAD_PORT)),
            (self.ratings.netns(), local(WORKLOAD_PORT)),
            (self.productpage.netns(), local(envoy::ADMIN_PORT)),
            (self.reviews.netns(), local(envoy::ADMIN_PORT)),
            (self.gateway.netns(), local(envoy::ADMIN_PORT)),
        ];
        for (netns, address) in ready {
            netns.within(move || wait_for(address)).with_context(|| {
                format!(
                    "nothing listens on {address} in {}; its log may say why",
                    netns.name()
                )
            })?;
        }
        self.check_servers()
    }

    /// An error if a server has ended.
    pub fn check_servers(&mut self) -> Result<()> {
        for (name, process) in &mut self.servers {
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

    /// Directory of the gateway's certificate, as its Envoy sees it.
    pub fn gateway_certificates(&self) -> PathBuf {
        self.gateway.directory().join("certs")
    }

    /// Authority of the outside host.
    pub fn upstream_authority(&self) -> PathBuf {
        self.node.directory().join("upstream/ca.crt")
    }

    /// Where gateways' configuration is written.
    pub fn gateway_configuration(&self) -> PathBuf {
        self.node.directory().join("gateway")
    }
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Waits up to ten seconds for somebody to listen.
pub fn wait_for(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => sleep(Duration::from_millis(20)),
        }
    }
}

fn service(pod: &Pod, name: &str, number: u8, ports: Vec<ServicePort>) -> Service {
    let spec = pod.spec();
    Service {
        namespace: spec.namespace.clone(),
        name: name.to_owned(),
        selector: spec.labels.clone().into_iter().collect(),
        cluster_ips: plan::service(number),
        ports,
        backend: Backend {
            ips: spec.ips,
            pod: Some((spec.namespace.clone(), spec.name.clone(), spec.uid.clone())),
        },
    }
}

fn declare(state: &StateDirectory, pods: &[&Pod], services: &[Service]) -> Result<()> {
    state.apply(&objects::node())?;
    for namespace in ["bookinfo", "global", "istio-egress", "kube-system"] {
        state.apply(&objects::namespace(namespace))?;
    }
    for pod in pods {
        let spec = pod.spec();
        state.apply(&objects::service_account(
            &spec.namespace,
            &spec.service_account,
        ))?;
        state.apply(&objects::pod(spec))?;
    }
    for service in services {
        state.apply(&objects::service(service))?;
        for slice in objects::endpoint_slices(service) {
            state.apply(&slice)?;
        }
    }
    for (name, text) in manifests::GATEWAY {
        state.write(name, text)?;
    }
    Ok(())
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
    fs::write(&path, serde_json::to_vec_pretty(&zone)?)?;
    let path = path_text(&path)?;
    pod.helper("coredns", &["serve-dns", path])?
        .spawn("coredns")
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
