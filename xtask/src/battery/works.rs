//! What must go on working, with clients outside and the cluster's own traffic.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use egress_battery::catalogue;

use super::agent::Agent;
use super::objects::{WEB_HOST_PORT, Whose, since};
use super::services;
use super::table::Row;
use super::tries::{Way, came, token};
use super::world::{LARGE_ANSWER, LARGE_NODE_PORT, NODE_PORT, WORKLOAD, World, of};
use crate::cmd;
use crate::demo::signals;
use crate::node::{Pod, plan};

const WAIT: Duration = Duration::from_secs(5);

/// How a case is tried in one family.
pub(super) type Play = fn(&World, usize) -> Result<()>;

const PLAYS: [(u16, Whose, Play); 6] = [
    (
        370,
        |w| &w.web,
        |w, i| outside_tcp(w, i, NODE_PORT).map(drop),
    ),
    (371, |w| &w.web, outside_udp),
    (372, |w| &w.web, small_path),
    (
        373,
        |w| &w.web,
        |w, i| outside_tcp(w, i, WEB_HOST_PORT).map(drop),
    ),
    (375, |w| &w.web, cluster),
    (376, |w| &w.ratings, not_held),
];

/// What stood before Sallyport came.
#[derive(Debug)]
pub(super) struct Standing {
    clients: Vec<TcpStream>,
    /// What worked before, by case and family.
    before: Vec<(u16, usize)>,
}

impl Standing {
    /// Tries all of it where nothing holds, and leaves a client's connection open.
    pub(super) fn open(world: &World) -> Result<Self> {
        let mut standing = Self {
            clients: Vec::new(),
            before: Vec::new(),
        };
        for index in [0, 1] {
            standing.clients.push(outside_tcp(world, index, NODE_PORT)?);
            for (number, _, play) in PLAYS.iter().chain(&services::PLAYS) {
                standing.before(world, (*number, index), *play);
            }
            for (number, _, play) in services::EXCEPTED {
                standing.before(world, (number, index), play);
            }
        }
        Ok(standing)
    }

    fn before(&mut self, world: &World, (number, index): (u16, usize), play: Play) {
        match play(world, index) {
            Ok(()) => self.before.push((number, index)),
            Err(error) => cmd::say(
                "battery",
                format_args!("B-{number}, nothing held: {error:#}"),
            ),
        }
    }

    pub(super) fn rows(&mut self, world: &World, agent: &mut Agent) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (index, client) in self.clients.iter_mut().enumerate() {
            let played = |_: &World, _| say(client, &token());
            rows.push(row(world, agent, (374, &world.web, index), true, played)?);
        }
        for index in [0, 1] {
            for (number, pod, play) in PLAYS.iter().chain(&services::PLAYS) {
                let case = (*number, pod(world), index);
                rows.push(self.played(world, agent, case, *play)?);
            }
        }
        agent.declare(|| world.lockdown_with("Enforce", &services::exception()))?;
        for index in [0, 1] {
            for (number, pod, play) in services::EXCEPTED {
                rows.push(self.played(world, agent, (number, pod(world), index), play)?);
            }
        }
        agent.declare(|| world.lockdown("Enforce"))?;
        Ok(rows)
    }

    fn played(
        &self,
        world: &World,
        agent: &Agent,
        (number, pod, index): (u16, &Pod, usize),
        play: Play,
    ) -> Result<Row> {
        signals::check()?;
        let before = self.before.contains(&(number, index));
        row(world, agent, (number, pod, index), before, play)
    }
}

/// Pods that nobody holds have no hook that counts.
const NOT_HELD: [u16; 2] = [376, 384];

fn row(
    world: &World,
    agent: &Agent,
    (number, pod, index): (u16, &Pod, usize),
    before: bool,
    play: impl FnOnce(&World, usize) -> Result<()>,
) -> Result<Row> {
    let case = catalogue::find(number).context("a case of the catalogue")?;
    let old = agent.counters(&world.node, pod)?;
    let played = play(world, index);
    let mut row = Row::of(case, index);
    row.reasons = since(&old, agent.counters(&world.node, pod)?);
    row.control = if before { "works" } else { "BROKEN" };
    let counted = NOT_HELD.contains(&number)
        || row
            .expected
            .iter()
            .any(|reason| row.reasons.contains_key(reason));
    row.ok = played.is_ok() && counted;
    row.seen = if row.ok { "works" } else { "BROKEN" };
    if let Err(error) = played {
        row.why = format!("{error:#}");
    }
    Ok(row)
}

/// A client outside on the node's address, whose words come back.
fn outside_tcp(world: &World, index: usize, port: u16) -> Result<TcpStream> {
    let to = SocketAddr::new(of(plan::NODE, index), port);
    let mut stream = world.node.outside().within(move || {
        TcpStream::connect_timeout(&to, WAIT).with_context(|| format!("{to} is not reached"))
    })?;
    stream.set_read_timeout(Some(WAIT))?;
    say(&mut stream, &token())?;
    Ok(stream)
}

fn say(stream: &mut TcpStream, token: &str) -> Result<()> {
    stream.write_all(token.as_bytes()).context("cannot write")?;
    let mut answer = vec![0; token.len()];
    stream.read_exact(&mut answer).context("no answer came")?;
    ensure!(answer == token.as_bytes(), "another answer came");
    Ok(())
}

fn outside_udp(world: &World, index: usize) -> Result<()> {
    let to = SocketAddr::new(of(plan::NODE, index), NODE_PORT);
    world.node.outside().within(move || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).context("cannot open a socket")?;
        socket.set_read_timeout(Some(WAIT))?;
        socket.connect(to)?;
        socket.send(b"hello")?;
        socket
            .recv(&mut [0; 64])
            .map(drop)
            .context("no answer came")
    })
}

/// The way out is narrower than the pod knows: the node tells it by ICMP.
fn small_path(world: &World, index: usize) -> Result<()> {
    let narrow = |mtu: u32| {
        world
            .node
            .host()
            .ip(&format!("link set uplink0 mtu {mtu}\n"))
    };
    let to = SocketAddr::new(of(plan::NODE, index), LARGE_NODE_PORT);
    narrow(1300)?;
    let read = world.node.outside().within(move || {
        let mut stream = TcpStream::connect_timeout(&to, WAIT).context("the pod is not reached")?;
        stream.set_read_timeout(Some(WAIT))?;
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .context("the answer stopped")?;
        Ok(answer.len())
    });
    narrow(1500)?;
    let read = read?;
    ensure!(
        read == LARGE_ANSWER,
        "only {read} of {LARGE_ANSWER} bytes came"
    );
    Ok(())
}

fn cluster(world: &World, index: usize) -> Result<()> {
    for ip in [of(world.ratings.ips(), index), of(plan::service(12), index)] {
        for way in [Way::Tcp, Way::Udp] {
            let to = SocketAddr::new(ip, WORKLOAD);
            ensure!(came(world, &world.web, to, way)?, "{to} is not reached");
        }
    }
    Ok(())
}

fn not_held(world: &World, index: usize) -> Result<()> {
    let to = SocketAddr::new(of(plan::OUTSIDE, index), plan::OUTSIDE_HTTP);
    ensure!(
        came(world, &world.ratings, to, Way::Tcp)?,
        "{to} is not reached"
    );
    Ok(())
}
