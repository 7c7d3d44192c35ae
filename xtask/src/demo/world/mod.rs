//! The guide's cluster on the node in miniature: Bookinfo, the cluster's DNS, an egress gateway,
//! and httpbin.org outside.

mod pods;
mod servers;

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

pub use self::pods::{Pods, RATINGS_SERVICE};
use self::servers::Servers;
use super::Gateway;
use super::programs::Programs;
use crate::node::envoy::ADMIN_PORT;
use crate::node::objects::StateDirectory;
use crate::node::plan;
use crate::node::wire::Wire;
use crate::node::{Node, NodeOptions};

/// Port that the workloads listen on.
pub const WORKLOAD_PORT: u16 = 9080;
/// Port of the node that leads to reviews.
pub const NODE_PORT: u16 = 30080;
/// Ports of the gateway: its Service's and its pod's.
pub const GATEWAY_PORTS: (u16, u16) = (443, 8443);
/// Port of the node on which the agent serves gateway policy.
pub const POLICY_PORT: u16 = 9443;

/// Everything that stands.
#[derive(Debug)]
pub struct World {
    pub wire: Wire,
    pub pods: Pods,
    pub state: StateDirectory,
    pub gateway: Gateway,
    servers: Servers,
    // Last, so that the node is taken down when nothing uses it any more.
    pub node: Node,
}

impl World {
    /// Builds it, telling each step to `say`.
    pub fn build(programs: &Programs, gateway: Gateway, say: &dyn Fn(&str)) -> Result<Self> {
        say("a node: namespaces, routes, cgroups, an uplink and what is beyond");
        let node = Node::new(&NodeOptions::with_helper(&programs.helper))?;
        let wire = node.wire()?;
        say("pods: productpage, reviews, ratings, coredns, istio-egressgateway");
        let pods = Pods::start(&node)?;
        say("certificates: SPIFFE identities of the mesh, httpbin.org's own");
        servers::certify(&node, &pods)?;
        say("Services and the objects that declare it all");
        let services = pods.services();
        for service in &services {
            node.service(service)?;
        }
        let state = StateDirectory::new(node.directory().join("state"));
        pods.declare(&state, &services)?;
        say("servers: httpbin.org, DNS, workloads, sidecars and gateway (real Envoys)");
        let servers = Servers::start(&node, &pods, &services, programs, gateway)?;
        let mut world = Self {
            wire,
            pods,
            state,
            gateway,
            servers,
            node,
        };
        world.wait_until_ready()?;
        Ok(world)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let Pods {
            productpage,
            reviews,
            ratings,
            dns,
            gateway,
        } = &self.pods;
        let outside = SocketAddr::new(plan::OUTSIDE.v4.into(), plan::OUTSIDE_HTTPS);
        let ready = [
            (self.node.outside(), outside),
            (dns.netns(), local(53)),
            (productpage.netns(), local(WORKLOAD_PORT)),
            (reviews.netns(), local(WORKLOAD_PORT)),
            (ratings.netns(), local(WORKLOAD_PORT)),
            (productpage.netns(), local(ADMIN_PORT)),
            (reviews.netns(), local(ADMIN_PORT)),
            (gateway.netns(), local(ADMIN_PORT)),
        ];
        for (netns, address) in ready {
            if let Err(error) = netns.within(move || wait_for(address)) {
                // A server that has ended says why.
                self.servers.check()?;
                return Err(error)
                    .with_context(|| format!("nothing listens on {address} in {}", netns.name()));
            }
        }
        Ok(())
    }

    /// Directory of the gateway's certificate, as its Envoy sees it.
    pub fn gateway_certificates(&self) -> PathBuf {
        self.pods.gateway.directory().join("certs")
    }

    /// Authority of the outside host.
    pub fn upstream_authority(&self) -> PathBuf {
        self.node.directory().join("upstream/ca.crt")
    }

    /// Directory of the agent's own certificate.
    pub fn agent_certificates(&self) -> PathBuf {
        self.node.directory().join("certs/agent")
    }

    /// What the gateway said of requests so far, a JSON document for each.
    pub fn access_log(&self) -> Vec<serde_json::Value> {
        self.servers.access_log()
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
