//! What the story's people try, and what is seen of it.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::world::{
    GATEWAY_PORTS, NODE_PORT, POLICY_PORT, RATINGS_SERVICE, WORKLOAD_PORT, World, wait_for,
};
use crate::node::envoy::{self, SIDECAR_UID};
use crate::node::pki::spiffe_id;
use crate::node::plan::{self, Both};
use crate::node::probe::{Probe, Wait};
use crate::node::{Answer, Pod};

/// How long a client waits before it says that nothing came: long enough for a second SYN.
const PATIENCE_MS: &str = "1200";

/// What came of an attempt.
#[derive(Clone, Debug)]
pub struct Observation {
    pub answer: Answer,
    /// Packets of the pod that arrived at the outside host, under whatever address.
    pub arrived: usize,
    /// Packets of the gateway that arrived there.
    pub by_gateway: usize,
    /// Whom it tried to reach outside.
    pub destination: SocketAddr,
}

/// A way around the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    SidecarUser,
    Udp,
    Ipv6,
    NatFlushed,
    RawSocket,
    PacketSocket,
    ForgedSource,
}

impl Bypass {
    pub const ALL: [Self; 7] = [
        Self::SidecarUser,
        Self::Udp,
        Self::Ipv6,
        Self::NatFlushed,
        Self::RawSocket,
        Self::PacketSocket,
        Self::ForgedSource,
    ];

    pub const fn describe(self) -> &'static str {
        match self {
            Self::SidecarUser => "reviews as UID 1337: TCP straight to httpbin.org:80",
            Self::Udp => "reviews by UDP to httpbin.org:9999",
            Self::Ipv6 => "reviews as UID 1337 by IPv6 to httpbin.org:80",
            Self::NatFlushed => "reviews with its nat table flushed: TCP to httpbin.org:80",
            Self::RawSocket => "reviews from a raw IP socket (UDP to httpbin.org:9999)",
            Self::PacketSocket => "reviews from a packet socket (frame to httpbin.org:9999)",
            Self::ForgedSource => "reviews from a raw socket in the name of ratings",
        }
    }

    /// The reason that must be reported for it.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::ForgedSource => "spoofed",
            _ => "not-allowed",
        }
    }

    /// Whether something comes back where it is open: nobody answers to forged headers.
    pub const fn expects_answer(self) -> bool {
        matches!(
            self,
            Self::SidecarUser | Self::Udp | Self::Ipv6 | Self::NatFlushed
        )
    }

    /// Whether a socket call tells who it was.
    pub const fn names_process(self) -> bool {
        self.expects_answer()
    }

    /// Tries it from reviews. `tag` is in the payload where there is one, so that packets under
    /// a forged address are known again.
    pub fn attempt(self, world: &World, tag: &str) -> Result<Observation> {
        let pod = &world.pods.reviews;
        let [v4, v6] = plan::OUTSIDE.all();
        let port = match self {
            Self::SidecarUser | Self::Ipv6 | Self::NatFlushed => plan::OUTSIDE_HTTP,
            _ => plan::OUTSIDE_UDP,
        };
        let to = SocketAddr::new(if self == Self::Ipv6 { v6 } else { v4 }, port);
        let (host, target) = (to.ip().to_string(), to.to_string());
        let path = format!("/{tag}");
        let http = ["http", &host, "--path", &path, "--timeout-ms", PATIENCE_MS];
        let own = pod.ips().v4.to_string();
        let other = world.pods.ratings.ips().v4.to_string();
        let forged = |kind: &'static str, from: &str| {
            let args = [kind, "--from", from, "--to", &target, "--payload", tag];
            pod.probe(&args)
        };
        let mark = world.wire.mark();
        let answer = match self {
            Self::SidecarUser | Self::Ipv6 => pod.probe_as(Some(SIDECAR_UID), &http)?,
            Self::NatFlushed => {
                pod.netns().nft("flush ruleset\n")?;
                let answer = pod.probe(&http);
                envoy::capture(pod)?;
                answer?
            }
            Self::Udp => {
                let args = [
                    "udp",
                    "--to",
                    &target,
                    "--payload",
                    tag,
                    "--timeout-ms",
                    PATIENCE_MS,
                ];
                pod.probe(&args)?
            }
            Self::RawSocket => forged("raw", &own)?,
            Self::PacketSocket => forged("packet", &own)?,
            Self::ForgedSource => forged("raw", &other)?,
        };
        Ok(observe(world, pod, mark, tag, to, answer))
    }
}

/// Looks at what the wire brought since the mark.
fn observe(
    world: &World,
    pod: &Pod,
    mark: usize,
    tag: &str,
    destination: SocketAddr,
    answer: Answer,
) -> Observation {
    let outward = |destination: IpAddr| plan::OUTSIDE.all().contains(&destination);
    let (own, gateway) = (pod.ips().all(), world.pods.gateway.ips().all());
    let mut observation = Observation {
        answer,
        arrived: 0,
        by_gateway: 0,
        destination,
    };
    for seen in world
        .wire
        .since(mark)
        .iter()
        .filter(|seen| outward(seen.destination))
    {
        // Replies to clients outside are not the pod's own doing.
        let reply = seen.source_port == WORKLOAD_PORT || seen.source_port == NODE_PORT;
        if gateway.contains(&seen.source) {
            observation.by_gateway += 1;
        } else if !reply && (own.contains(&seen.source) || seen.contains(tag)) {
            observation.arrived += 1;
        }
    }
    observation
}

/// A request for httpbin.org by its name, as an application behind a sidecar makes it.
pub fn by_gateway(world: &World, pod: &Pod) -> Result<Observation> {
    const PATH: &str = "/get";
    let mark = world.wire.mark();
    let answer = pod.probe(&[
        "http",
        plan::OUTSIDE_NAME,
        "--path",
        PATH,
        "--timeout-ms",
        "4000",
    ])?;
    let to = SocketAddr::new(plan::OUTSIDE.v4.into(), plan::OUTSIDE_HTTP);
    // In TLS nothing of the path can be read; in the clear it would be a way around.
    Ok(observe(world, pod, mark, PATH, to, answer))
}

/// A request to the gateway with productpage's certificate, from the pod of reviews.
pub fn with_stolen_certificate(world: &World) -> Result<Observation> {
    const PATH: &str = "/stolen";
    let (thief, victim) = (&world.pods.reviews, &world.pods.productpage);
    let certs = victim.directory().join("certs");
    let gateway = SocketAddr::new(world.pods.gateway.ips().v4.into(), GATEWAY_PORTS.1);
    let mark = world.wire.mark();
    // As the sidecar's user: the redirect leaves it alone.
    let answer = thief.probe_as(
        Some(SIDECAR_UID),
        &[
            "mesh",
            "--to",
            &gateway.to_string(),
            "--certs",
            certs.to_str().context("a path in UTF-8")?,
            "--authority",
            plan::OUTSIDE_NAME,
            "--path",
            PATH,
            "--timeout-ms",
            "4000",
        ],
    )?;
    let to = SocketAddr::new(plan::OUTSIDE.v4.into(), plan::OUTSIDE_HTTP);
    Ok(observe(world, thief, mark, PATH, to, answer))
}

/// What the gateway wrote of a client's request after the first `mark` entries; waits up to two
/// seconds for it.
pub fn access_entry(world: &World, mark: usize, client: &Pod) -> Option<Value> {
    let spec = client.spec();
    let id = spiffe_id(&spec.namespace, &spec.service_account);
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let entries = world.access_log();
        let mut new = entries.into_iter().skip(mark);
        if let Some(entry) = new.find(|entry| entry["client"] == id.as_str()) {
            return Some(entry);
        }
        if Instant::now() > deadline {
            return None;
        }
        sleep(Duration::from_millis(20));
    }
}

/// Waits until the agent's policy server listens.
pub fn wait_for_policy_server(world: &World) -> Result<()> {
    let address = SocketAddr::new(plan::NODE.v4.into(), POLICY_PORT);
    let gateway = world.pods.gateway.netns();
    gateway
        .within(move || wait_for(address))
        .context("the agent does not serve gateway policy; its log may say why")
}

/// Waits until the gateway's Envoy listens as the agent told it to.
pub fn wait_for_gateway(world: &World) -> Result<()> {
    let address = SocketAddr::new(world.pods.gateway.ips().v4.into(), GATEWAY_PORTS.1);
    world
        .node
        .host()
        .within(move || wait_for(address))
        .context("the gateway's Envoy does not listen; its log may say why")
}

/// A kind of traffic that no lockdown may touch; each is tried in both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordinary {
    PodToPod,
    PodToService,
    DnsUdp,
    DnsTcp,
    NodePort,
    KubeletProbe,
    NotHeld,
}

impl Ordinary {
    pub const ALL: [Self; 7] = [
        Self::PodToPod,
        Self::PodToService,
        Self::DnsUdp,
        Self::DnsTcp,
        Self::NodePort,
        Self::KubeletProbe,
        Self::NotHeld,
    ];

    pub const fn describe(self) -> &'static str {
        match self {
            Self::PodToPod => "reviews to the pod of ratings, IPv4 and IPv6",
            Self::PodToService => "reviews to the Service of ratings, IPv4 and IPv6",
            Self::DnsUdp => "reviews asks kube-dns by UDP, IPv4 and IPv6",
            Self::DnsTcp => "reviews asks kube-dns by TCP, IPv4 and IPv6",
            Self::NodePort => "a client outside to reviews' NodePort, IPv4 and IPv6",
            Self::KubeletProbe => "the node probes reviews' port, IPv4 and IPv6",
            Self::NotHeld => "coredns, which nobody holds, to httpbin.org:80, both",
        }
    }

    /// Tries it in both families; gives what went wrong, or nothing.
    pub fn attempt(self, world: &World) -> Result<String> {
        let mut trouble = String::new();
        for ip in self.destinations(world).all() {
            let answer = self.attempt_one(world, ip)?;
            let fine = match self {
                Self::DnsUdp | Self::DnsTcp => answer.body == plan::OUTSIDE.v4.to_string(),
                _ => answer.status == Some(200),
            };
            if !fine {
                let error = answer.error.unwrap_or_default();
                let _ = write!(trouble, "{ip}: {} {error} ", answer.outcome);
            }
        }
        Ok(trouble.trim_end().to_owned())
    }

    fn destinations(self, world: &World) -> Both {
        match self {
            Self::PodToPod => world.pods.ratings.ips(),
            Self::PodToService => RATINGS_SERVICE,
            Self::DnsUdp | Self::DnsTcp => plan::service(plan::DNS),
            Self::NodePort => plan::NODE,
            Self::KubeletProbe => world.pods.reviews.ips(),
            Self::NotHeld => plan::OUTSIDE,
        }
    }

    fn attempt_one(self, world: &World, ip: IpAddr) -> Result<Answer> {
        let port = WORKLOAD_PORT.to_string();
        let text = ip.to_string();
        let server = SocketAddr::new(ip, 53).to_string();
        let from_outside = |netns: &crate::node::Netns, port: u16| {
            let wait = Wait { timeout_ms: 2000 };
            let (path, host) = ("/".to_owned(), text.clone());
            let probe = Probe::Http {
                host,
                port,
                path,
                authority: None,
                wait,
            };
            netns.within(move || Ok(probe.run()))
        };
        match self {
            Self::PodToPod | Self::PodToService => world
                .pods
                .reviews
                .probe(&["http", &text, "--port", &port, "--path", "/"]),
            Self::DnsUdp => {
                world
                    .pods
                    .reviews
                    .probe(&["dns", plan::OUTSIDE_NAME, "--server", &server])
            }
            Self::DnsTcp => {
                world
                    .pods
                    .reviews
                    .probe(&["dns", plan::OUTSIDE_NAME, "--server", &server, "--tcp"])
            }
            Self::NodePort => from_outside(world.node.outside(), NODE_PORT),
            Self::KubeletProbe => from_outside(world.node.host(), WORKLOAD_PORT),
            Self::NotHeld => world.pods.dns.probe(&["http", &text, "--path", "/"]),
        }
    }
}
