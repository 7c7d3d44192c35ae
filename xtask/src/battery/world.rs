//! Who lives on the node that the battery is played on.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::demo::manifests;
use crate::node::dns::Zone;
use crate::node::objects::{self, StateDirectory};
use crate::node::wire::Wire;
use crate::node::{Backend, Node, NodeOptions, Pod, PodSpec, Service, ServicePort, plan, raw};

/// Where workloads listen, and the NodePort of `web`'s.
pub(super) const WORKLOAD: u16 = 9080;
pub(super) const NODE_PORT: u16 = 30_080;
/// The gateways' listener.
pub(super) const LISTENER: u16 = 8443;
/// Answers whoever connects with more than fits in one packet.
pub(super) const LARGE: u16 = 9081;
pub(super) const LARGE_NODE_PORT: u16 = 30_081;
/// Bytes of that answer.
pub(super) const LARGE_ANSWER: usize = 200_000;

/// The node with its pods: `bookinfo` is held, and so is `strict`, where not even pods are allowed.
#[derive(Debug)]
pub(super) struct World {
    pub web: Pod,
    pub strict: Pod,
    /// It has a gateway's labels, and is none.
    pub fake: Pod,
    pub ratings: Pod,
    pub gateway: Pod,
    /// In the node's own network: one that nobody holds, and one that is.
    pub kube_proxy: Pod,
    pub hosted: Pod,
    /// It does nothing but move its device.
    pub mover: Pod,
    pub state: StateDirectory,
    pub wire: Wire,
    /// Last: the pods go before it.
    pub node: Node,
}

impl World {
    pub(super) fn build() -> Result<Self> {
        let helper = std::env::current_exe().context("cannot find this program itself")?;
        let node = Node::new(&NodeOptions::with_helper(helper))?;
        let state = StateDirectory::new(node.directory().join("state"));
        state.apply(&objects::node())?;
        for namespace in ["bookinfo", "strict", "other", "istio-egress", "kube-system"] {
            state.apply(&objects::namespace(namespace))?;
            state.apply(&objects::service_account(namespace, "default"))?;
        }
        let make = |spec: PodSpec| -> Result<Pod> {
            state.apply(&objects::pod(&spec))?;
            node.pod(&spec)
        };
        let gateway_label = ("app", "istio-egressgateway");
        let labelled = |spec: PodSpec| spec.label(gateway_label.0, gateway_label.1);
        let web = make(PodSpec::new("bookinfo", "web", 11))?;
        let ratings = make(PodSpec::new("other", "ratings", 12))?;
        let strict = make(PodSpec::new("strict", "web", 13))?;
        let fake = make(labelled(PodSpec::new("bookinfo", "fake-gateway", 14)))?;
        let gateway = make(labelled(PodSpec::new("istio-egress", "gateway", 20)))?;
        let kube_proxy = make(PodSpec::new("kube-system", "kube-proxy", 51).host_network())?;
        let mover = make(PodSpec::new("bookinfo", "mover", 16))?;
        let hosted = make(PodSpec::new("bookinfo", "hosted", 52).host_network())?;
        // Ping sockets are a user's only where the namespace says so.
        web.netns()
            .sysctl(&[("ipv4/ping_group_range", "0 65535")])?;
        let dns = make(PodSpec::new("kube-system", "coredns", 10).label("k8s-app", "kube-dns"))?;
        let world = Self {
            wire: node.wire()?,
            web,
            strict,
            fake,
            ratings,
            gateway,
            kube_proxy,
            hosted,
            mover,
            state,
            node,
        };
        world.paths(&dns)?;
        world.serve(&dns)?;
        world.services(&dns)?;
        for (name, manifest) in manifests::GATEWAY {
            if name.contains("virtualgateway") {
                world.state.write(name, manifest)?;
            }
        }
        world.lockdown("Audit")?;
        Ok(world)
    }

    /// To some pods as over devices that write no checksums, and to one of them over a narrow path, with
    /// a next hop as to other nodes.
    fn paths(&self, dns: &Pod) -> Result<()> {
        let host = self.node.host();
        for pod in [&self.gateway, dns] {
            let device = pod.device().to_owned();
            host.within(move || {
                raw::checksum_offload(&device, false)
                    .with_context(|| format!("cannot have {device} write no checksums"))
            })?;
        }
        let (to, device) = (dns.ips().v4, dns.device());
        host.ip(&format!(
            "route replace {to}/32 via {to} dev {device} onlink mtu lock 600\n"
        ))?;
        Ok(())
    }

    fn serve(&self, dns: &Pod) -> Result<()> {
        let path = dns.directory().join("zone.json");
        std::fs::write(&path, serde_json::to_vec(&Zone::new())?)
            .context("cannot write the zone")?;
        let zone = path.to_str().context("a path in UTF-8")?;
        dns.helper("coredns", &["serve-dns", zone])?
            .spawn("coredns")?;
        let port = WORKLOAD.to_string();
        self.ratings
            .helper("app", &["serve-workload", "ratings", &port])?
            .spawn("app")?;
        listen(&self.web, WORKLOAD)?;
        datagrams(&self.web, WORKLOAD)?;
        for pod in [&self.gateway, &self.fake] {
            listen(pod, LISTENER)?;
        }
        listen(&self.gateway, 15_000)?;
        large(&self.web)?;
        for port in [plan::OUTSIDE_HTTP, plan::OUTSIDE_HTTPS] {
            let listener = self.node.outside().within(move || bind(port))?;
            echo(listener);
        }
        Ok(())
    }

    fn services(&self, dns: &Pod) -> Result<()> {
        let both = |name, port, target| {
            let tcp = ServicePort::tcp(name, port, target);
            let udp = ServicePort {
                protocol: "UDP",
                name: "udp",
                ..tcp.clone()
            };
            vec![tcp, udp]
        };
        let mut node_ports: Vec<_> = both("http", WORKLOAD, WORKLOAD)
            .into_iter()
            .map(|port| port.node_port(NODE_PORT))
            .collect();
        node_ports.push(ServicePort::tcp("large", LARGE, LARGE).node_port(LARGE_NODE_PORT));
        let services = [
            service(dns, "kube-dns", plan::DNS, both("dns-tcp", 53, 53)),
            service(&self.web, "web", 11, node_ports),
            service(
                &self.ratings,
                "ratings",
                12,
                both("http", WORKLOAD, WORKLOAD),
            ),
            service(
                &self.gateway,
                "gateway",
                20,
                vec![ServicePort::tcp("https", 443, LISTENER)],
            ),
        ];
        services
            .iter()
            .try_for_each(|service| self.service(service))
    }

    /// A Service, its address translation and its objects.
    pub(super) fn service(&self, service: &Service) -> Result<()> {
        self.node.service(service)?;
        self.state.apply(&objects::service(service))?;
        objects::endpoint_slices(service)
            .iter()
            .try_for_each(|slice| self.state.apply(slice))
    }

    /// Holds `bookinfo` and `strict` in this mode.
    pub(super) fn lockdown(&self, mode: &str) -> Result<()> {
        self.lockdown_with(mode, &json!({}))
    }

    /// The same, with more that `bookinfo` is allowed.
    pub(super) fn lockdown_with(&self, mode: &str, allow: &Value) -> Result<()> {
        for (namespace, allow) in [("bookinfo", allow), ("strict", &json!({ "cluster": [] }))] {
            self.state.apply(&json!({
                "apiVersion": "sallyport.dev/v1alpha1",
                "kind": "EgressLockdown",
                "metadata": { "name": namespace },
                "spec": {
                    "namespaceSelector": {
                        "matchLabels": { "kubernetes.io/metadata.name": namespace },
                    },
                    "mode": mode,
                    "allow": allow,
                },
            }))?;
        }
        Ok(())
    }
}

/// A Service with one pod behind it.
pub(super) fn service(pod: &Pod, name: &str, number: u8, ports: Vec<ServicePort>) -> Service {
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

fn bind(port: u16) -> Result<TcpListener> {
    let any = SocketAddr::from(([0_u16; 8], port));
    TcpListener::bind(any).with_context(|| format!("cannot listen on port {port}"))
}

/// Connections to it are accepted, and said nothing.
pub(super) fn listen(pod: &Pod, port: u16) -> Result<()> {
    let listener = pod.netns().within(move || bind(port))?;
    echo(listener);
    Ok(())
}

/// Says back what it is told, to everybody, until this program ends.
fn echo(listener: TcpListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut buffer = [0; 256];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn datagrams(pod: &Pod, port: u16) -> Result<()> {
    let any = SocketAddr::from(([0_u16; 8], port));
    let socket = pod.netns().within(move || {
        UdpSocket::bind(any).with_context(|| format!("cannot listen on port {port}"))
    })?;
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            // The client may be gone; the next one is not.
            let _ = socket.send_to(&buffer[..length], peer);
        }
    });
    Ok(())
}

fn large(pod: &Pod) -> Result<()> {
    let listener = pod.netns().within(|| bind(LARGE))?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A client that is cut off notices by itself.
            let _ = stream.set_write_timeout(Some(Duration::from_secs(5)));
            let _ = stream.write_all(&vec![b'.'; LARGE_ANSWER]);
        }
    });
    Ok(())
}

/// The family's address.
pub(super) fn of(pair: plan::Both, index: usize) -> IpAddr {
    pair.all()[index]
}
