//! Who lives on the node: the pods, their Services, and the objects that declare them.

use anyhow::{Context as _, Result};

use super::{GATEWAY_PORTS, NODE_PORT, WORKLOAD_PORT};
use crate::demo::manifests;
use crate::node::envoy::GatewayAddress;
use crate::node::objects::{self, StateDirectory};
use crate::node::plan;
use crate::node::{Backend, Node, Pod, PodSpec, Service, ServicePort};

// Numbers of addresses; a Service has that of its pod.
const DNS: u8 = plan::DNS;
const REVIEWS: u8 = 11;
const RATINGS: u8 = 12;
const PRODUCTPAGE: u8 = 13;
const GATEWAY: u8 = 20;

/// The Service of ratings.
pub const RATINGS_SERVICE: plan::Both = plan::service(RATINGS);

/// The guide's pods.
#[derive(Debug)]
pub struct Pods {
    pub productpage: Pod,
    pub reviews: Pod,
    pub ratings: Pod,
    pub dns: Pod,
    pub gateway: Pod,
}

impl Pods {
    pub(super) fn start(node: &Node) -> Result<Self> {
        let start = |namespace: &str, name: &str, app: &str, account: &str, number: u8| {
            let spec = PodSpec::new(namespace, name, number);
            node.pod(&spec.label("app", app).service_account(account))
                .with_context(|| format!("pod {namespace}/{name}"))
        };
        let gateway = "istio-egressgateway";
        Ok(Self {
            productpage: start(
                "bookinfo",
                "productpage-v1",
                "productpage",
                "productpage",
                PRODUCTPAGE,
            )?,
            reviews: start("bookinfo", "reviews-v1", "reviews", "reviews", REVIEWS)?,
            ratings: start("bookinfo", "ratings-v1", "ratings", "ratings", RATINGS)?,
            dns: start("kube-system", "coredns-0", "kube-dns", "coredns", DNS)?,
            gateway: start(
                "istio-egress",
                "istio-egressgateway-0",
                gateway,
                gateway,
                GATEWAY,
            )?,
        })
    }

    pub fn all(&self) -> [&Pod; 5] {
        [
            &self.productpage,
            &self.reviews,
            &self.ratings,
            &self.dns,
            &self.gateway,
        ]
    }

    pub(super) fn services(&self) -> [Service; 4] {
        let (https, behind) = GATEWAY_PORTS;
        let http = ServicePort::tcp("http", WORKLOAD_PORT, WORKLOAD_PORT);
        let dns = vec![
            ServicePort::udp("dns", 53, 53),
            ServicePort::tcp("dns-tcp", 53, 53),
        ];
        [
            service(&self.dns, "kube-dns", DNS, dns),
            service(
                &self.gateway,
                "istio-egressgateway",
                GATEWAY,
                vec![ServicePort::tcp("https", https, behind)],
            ),
            service(&self.ratings, "ratings", RATINGS, vec![http.clone()]),
            service(
                &self.reviews,
                "reviews",
                REVIEWS,
                vec![http.node_port(NODE_PORT)],
            ),
        ]
    }

    /// Whom sidecars send httpbin.org's requests to.
    pub(super) fn gateway_address(&self) -> GatewayAddress {
        let spec = self.gateway.spec();
        GatewayAddress {
            ips: plan::service(GATEWAY),
            port: GATEWAY_PORTS.0,
            namespace: spec.namespace.clone(),
            service_account: spec.service_account.clone(),
        }
    }

    pub(super) fn declare(&self, state: &StateDirectory, services: &[Service]) -> Result<()> {
        state.apply(&objects::node())?;
        for namespace in ["bookinfo", "global", "istio-egress", "kube-system"] {
            state.apply(&objects::namespace(namespace))?;
        }
        for pod in self.all() {
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
