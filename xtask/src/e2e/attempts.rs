//! Ways around the gateway, each tried twice: audited, where it must come through, and enforced,
//! where it must not.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};

use super::cluster::Place;
use super::inside::Arrived;
use super::report::Finding;
use super::world::{Counters, World};
use crate::node::{Answer, plan};

/// How long an attempt waits for an answer, in milliseconds.
const PATIENCE_MS: &str = "1500";
const TCP: u8 = 6;

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Http,
    SidecarUser,
    Udp,
    Ipv6,
    Icmp,
    RawSocket,
    PacketSocket,
    SpoofedSource,
    Vlan,
    Fragments,
    OutsideEndpoints,
    NodePort,
    HostNetwork,
    LabelImpostor,
}

impl Way {
    pub const ALL: [Self; 14] = [
        Self::Http,
        Self::SidecarUser,
        Self::Udp,
        Self::Ipv6,
        Self::Icmp,
        Self::RawSocket,
        Self::PacketSocket,
        Self::SpoofedSource,
        Self::Vlan,
        Self::Fragments,
        Self::OutsideEndpoints,
        Self::NodePort,
        Self::HostNetwork,
        Self::LabelImpostor,
    ];

    /// Its cases: audited, enforced.
    pub const fn cases(self) -> (&'static str, &'static str) {
        match self {
            Self::Http => ("audit-http", "bypass-http"),
            Self::SidecarUser => ("audit-uid-1337", "bypass-uid-1337"),
            Self::Udp => ("audit-udp", "bypass-udp"),
            Self::Ipv6 => ("audit-ipv6", "bypass-ipv6"),
            Self::Icmp => ("audit-icmp", "bypass-icmp"),
            Self::RawSocket => ("audit-raw-socket", "bypass-raw-socket"),
            Self::PacketSocket => ("audit-packet-socket", "bypass-packet-socket"),
            Self::SpoofedSource => ("audit-spoofed-source", "bypass-spoofed-source"),
            Self::Vlan => ("audit-vlan", "bypass-vlan"),
            Self::Fragments => ("audit-fragments", "bypass-fragments"),
            Self::OutsideEndpoints => ("audit-outside-endpoints", "bypass-outside-endpoints"),
            Self::NodePort => ("audit-node-port", "bypass-node-port"),
            Self::HostNetwork => ("audit-host-network", "bypass-host-network"),
            Self::LabelImpostor => ("audit-label-impostor", "bypass-label-impostor"),
        }
    }

    /// The kernel's reason for it.
    const fn reason(self) -> &'static str {
        match self {
            Self::SpoofedSource => "spoofed",
            Self::Vlan => "vlan",
            _ => "not-allowed",
        }
    }

    /// Whether it must arrive where nothing cuts it. Others may cut these too: a CNI and the
    /// node's reverse path filter forged sources, the node VLANs that it has not.
    const fn must_arrive(self) -> bool {
        !matches!(self, Self::SpoofedSource | Self::Vlan)
    }
}

/// What an attempt needs to know about the cluster.
#[derive(Clone, Debug)]
pub struct Addresses {
    reviews: IpAddr,
    reviews_v6: bool,
    other: IpAddr,
    leak: IpAddr,
    leak_node_port: u16,
    node: Option<IpAddr>,
}

impl Addresses {
    pub async fn look_up(world: &World) -> Result<Self> {
        let held = world.names.held();
        let reviews = world.addresses(&held, "reviews").await?;
        Ok(Self {
            reviews: *reviews.first().context("reviews has no address")?,
            reviews_v6: reviews.iter().any(IpAddr::is_ipv6),
            other: world.v4(&held, "ratings").await?,
            leak: world.cluster_ip(&held, "leak").await?,
            leak_node_port: world.node_port(&held, "leak").await?,
            node: world.nodes[0].address,
        })
    }
}

/// What to run where, or why it can't be tried here.
enum Command {
    Run(Place, Vec<String>),
    Skip(&'static str),
}

fn command(way: Way, world: &World, at: &Addresses, token: &str) -> Command {
    let app = |pod: &str| world.held(pod);
    let udp = SocketAddr::new(plan::OUTSIDE.v4.into(), plan::OUTSIDE_UDP).to_string();
    let own = at.reviews.to_string();
    let path = format!("/{token}");
    let http = |to: IpAddr, port: u16| {
        let (to, port) = (to.to_string(), port.to_string());
        words(&[
            "probe",
            "http",
            &to,
            "--port",
            &port,
            "--path",
            &path,
            "--timeout-ms",
            PATIENCE_MS,
        ])
    };
    let outside = || http(plan::OUTSIDE.v4.into(), plan::OUTSIDE_HTTP);
    let datagram = || {
        words(&[
            "probe",
            "udp",
            "--to",
            &udp,
            "--payload",
            token,
            "--timeout-ms",
            PATIENCE_MS,
        ])
    };
    let craft = |kind: &str, from: &str, more: &[&str]| {
        let args = [
            "craft",
            kind,
            "--from",
            from,
            "--to",
            &udp,
            "--payload",
            token,
        ];
        words(&[&args, more].concat())
    };
    let (place, args) = match way {
        Way::Http => (app("reviews"), outside()),
        Way::SidecarUser => {
            let sidecar = Place::new(&world.names.held(), "reviews", "sidecar");
            (sidecar, outside())
        }
        Way::Udp => (app("reviews"), datagram()),
        Way::Ipv6 if !at.reviews_v6 => {
            return Command::Skip("pods of this cluster have no IPv6 address");
        }
        Way::Ipv6 => {
            let to = plan::OUTSIDE.v6.into();
            (app("reviews"), http(to, plan::OUTSIDE_HTTP))
        }
        Way::Icmp => {
            let to = plan::OUTSIDE.v4.to_string();
            let args = ["craft", "icmp", "--to", &to, "--payload", token];
            (app("reviews"), words(&args))
        }
        Way::RawSocket => (app("reviews"), craft("raw", &own, &[])),
        Way::PacketSocket => (app("reviews"), craft("packet", &own, &[])),
        Way::SpoofedSource => {
            let other = at.other.to_string();
            (app("reviews"), craft("packet", &other, &[]))
        }
        Way::Vlan => (app("reviews"), craft("packet", &own, &["--vlan", "7"])),
        Way::Fragments => (app("reviews"), craft("fragments", &own, &[])),
        Way::OutsideEndpoints => (app("reviews"), http(at.leak, plan::OUTSIDE_HTTP)),
        Way::NodePort => match at.node {
            Some(node) => (app("reviews"), http(node, at.leak_node_port)),
            None => return Command::Skip("the node has no internal address"),
        },
        Way::HostNetwork => (app("host-network"), datagram()),
        Way::LabelImpostor => (app("impostor"), datagram()),
    };
    Command::Run(place, args)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// How an attempt went.
#[derive(Clone, Debug)]
pub struct Observation {
    pub answer: Answer,
    /// Its packets that arrived outside.
    pub arrived: usize,
    /// What the kernel counted for its pod meanwhile: reason, packets, whether it passes.
    pub counted: Vec<(String, u64, bool)>,
}

impl Observation {
    /// Packets that ended with a reason that does not pass.
    fn denied(&self, reason: &str) -> u64 {
        let denied = self.counted.iter().filter(|one| one.0 == reason && !one.2);
        denied.map(|one| one.1).sum()
    }

    /// What the kernel says, in words.
    pub fn reasons(&self) -> String {
        let counted: Vec<String> = self
            .counted
            .iter()
            .map(|(reason, packets, _)| format!("{reason} {packets}"))
            .collect();
        counted.join(", ")
    }

    pub fn seen(&self) -> String {
        let client = match (self.answer.status, &self.answer.error) {
            (Some(status), _) => status.to_string(),
            (None, Some(error)) if self.answer.outcome == "error" => error.clone(),
            (None, _) => self.answer.outcome.clone(),
        };
        format!("{} arrived, client: {client}", self.arrived)
    }
}

/// Runs a program in a pod and looks at what came of it. Packets are known by the token in their
/// payload; those of an HTTP attempt by their port too, since its first packet bears nothing.
pub async fn observe(
    world: &World,
    node: &str,
    place: &Place,
    args: &[String],
    token: &str,
) -> Result<Observation> {
    let id = place.id();
    let counters = || Box::pin(world.counters(node, &id));
    let (before, mark) = tokio::try_join!(counters(), Box::pin(world.mark(node)))?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let answer = world.probe(place, &args).await?;
    let (arrivals, after) = tokio::try_join!(Box::pin(world.since(node, mark)), counters())?;
    let tcp = args.contains(&"http");
    Ok(Observation {
        answer,
        arrived: count(&arrivals.packets, token, tcp),
        counted: grown(&before, &after),
    })
}

/// Packets of an attempt.
pub fn count(packets: &[Arrived], token: &str, tcp: bool) -> usize {
    let ours = packets.iter().filter(|packet| {
        let port = tcp && packet.protocol == TCP && packet.destination_port == plan::OUTSIDE_HTTP;
        port || packet.payload.contains(token)
    });
    ours.count()
}

fn grown(before: &Counters, after: &Counters) -> Vec<(String, u64, bool)> {
    let grown = after.iter().filter_map(|(reason, (packets, passes))| {
        let old = before.get(reason).map_or(0, |one| one.0);
        let more = packets.saturating_sub(old);
        (more > 0).then(|| (reason.clone(), more, *passes))
    });
    grown.collect()
}

/// Tries it while the lockdown is `Audit`.
pub async fn audited(way: Way, world: &World, at: &Addresses) -> Result<Finding> {
    let token = token(way.cases().0);
    let (place, args) = match command(way, world, at, &token) {
        Command::Run(place, args) => (place, args),
        Command::Skip(why) => return Ok(Finding::skip(why)),
    };
    let seen = observe(world, world.node(), &place, &args, &token).await?;
    let ok = (seen.arrived > 0 || !way.must_arrive()) && seen.denied(way.reason()) > 0;
    Ok(Finding::because(ok, seen.seen(), seen.reasons()))
}

/// Tries it while the lockdown is `Enforce`.
pub async fn enforced(way: Way, world: &World, at: &Addresses) -> Result<Finding> {
    let token = token(way.cases().1);
    let (place, args) = match command(way, world, at, &token) {
        Command::Run(place, args) => (place, args),
        Command::Skip(why) => return Ok(Finding::skip(why)),
    };
    let seen = observe(world, world.node(), &place, &args, &token).await?;
    Ok(cut(&seen, way.reason()))
}

/// Nothing arrived, nothing came back, and the kernel says why.
pub fn cut(seen: &Observation, reason: &str) -> Finding {
    let ok = seen.arrived == 0 && !seen.answer.answered() && seen.denied(reason) > 0;
    Finding::because(ok, seen.seen(), seen.reasons())
}

/// What the payloads of a case bear: no token is the beginning of another.
pub fn token(case: &str) -> String {
    format!("e2e:{case}.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e2e::cases;

    fn packet(protocol: u8, port: u16, payload: &str) -> Arrived {
        Arrived {
            source: "10.244.1.11".parse().unwrap(),
            destination: plan::OUTSIDE.v4.into(),
            protocol,
            source_port: 1,
            destination_port: port,
            payload: payload.into(),
        }
    }

    #[test]
    fn every_way_has_both_its_cases() {
        for way in Way::ALL {
            let (audit, bypass) = way.cases();
            assert_eq!(
                cases::find(audit).name.strip_prefix("audit-"),
                cases::find(bypass).name.strip_prefix("bypass-")
            );
        }
    }

    #[test]
    fn a_packet_is_known_by_its_token_or_port() {
        let token = token("bypass-udp");
        let packets = [
            packet(17, 9999, "e2e:bypass-udp."),
            packet(17, 9999, "e2e:bypass-icmp."),
            packet(6, 80, ""),
            packet(6, 443, ""),
        ];
        assert_eq!(count(&packets, &token, false), 1);
        assert_eq!(count(&packets, &token, true), 2);
    }

    #[test]
    fn cut_means_nothing_out_nothing_back_and_a_reason() {
        let observation = |arrived, outcome: &str, counted: &[(&str, u64, bool)]| Observation {
            answer: Answer {
                outcome: outcome.into(),
                ..Answer::default()
            },
            arrived,
            counted: counted
                .iter()
                .map(|(reason, packets, passes)| ((*reason).to_owned(), *packets, *passes))
                .collect(),
        };
        let is_cut =
            |seen: &Observation| matches!(cut(seen, "not-allowed"), Finding::Seen { ok: true, .. });
        let reason = [("not-allowed", 3, false)];
        assert!(is_cut(&observation(0, "timeout", &reason)));
        assert!(!is_cut(&observation(1, "timeout", &reason)));
        assert!(!is_cut(&observation(0, "answered", &reason)));
        assert!(!is_cut(&observation(0, "timeout", &[])));
        assert!(!is_cut(&observation(0, "timeout", &[("vlan", 3, false)])));
    }

    #[test]
    fn only_what_grew_is_told() {
        let counters = |not_allowed: u64| {
            Counters::from([
                ("not-allowed".to_owned(), (not_allowed, false)),
                ("cluster".to_owned(), (5, true)),
            ])
        };
        let grown = grown(&counters(1), &counters(4));
        assert_eq!(grown, [("not-allowed".to_owned(), 3, false)]);
    }
}
