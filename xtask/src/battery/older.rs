//! Connections that are older than what forbids them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use egress_battery::catalogue;
use egress_battery::craft::{self, Ends};
use serde_json::json;

use super::agent::Agent;
use super::objects::since;
use super::table::Row;
use super::tries::token;
use super::world::{World, of};
use crate::node::pod::HOST_MAC_BYTES;
use crate::node::{plan, raw};

const WAIT: Duration = Duration::from_secs(5);
/// The pod's port, and that of its accomplice.
const FLOW: (u16, u16) = (7001, 7777);
/// The same where the accomplice never said a word.
const FORGED: (u16, u16) = (7002, 7778);

/// Connections of `web`, by case and family.
#[derive(Debug)]
pub(super) struct Connections {
    tcp: Vec<(u16, usize, TcpStream)>,
    udp: Vec<(usize, UdpSocket, UdpSocket)>,
    /// In which the pod itself said the first word, as the accomplice.
    forged: Vec<(usize, UdpSocket)>,
}

impl Connections {
    /// Those that are older than the agent.
    pub(super) fn open(world: &World) -> Result<Self> {
        let mut connections = Self {
            tcp: Vec::new(),
            udp: Vec::new(),
            forged: Vec::new(),
        };
        connections.connect(world, 330)?;
        Ok(connections)
    }

    /// Those that are older than the lockdown that holds.
    pub(super) fn open_audited(&mut self, world: &World) -> Result<()> {
        self.connect(world, 331)?;
        for index in [0, 1] {
            let (own, outside) = (of(world.web.ips(), index), of(plan::OUTSIDE, index));
            let near = world.web.netns().within(move || socket(own, FLOW.0))?;
            let far = world
                .node
                .outside()
                .within(move || socket(outside, FLOW.1))?;
            near.connect((outside, FLOW.1)).context("cannot connect")?;
            far.connect((own, FLOW.0)).context("cannot connect")?;
            for (from, to) in [(&near, &far), (&far, &near)] {
                from.send(b"hello").context("cannot send")?;
                to.recv(&mut [0; 64])
                    .context("the accomplice is not reached")?;
            }
            self.udp.push((index, near, far));
            self.forge(world, index)?;
        }
        Ok(())
    }

    /// The pod sends to itself as its accomplice would, and the node brings it back.
    fn forge(&mut self, world: &World, index: usize) -> Result<()> {
        let (own, outside) = (of(world.web.ips(), index), of(plan::OUTSIDE, index));
        let near = world.web.netns().within(move || socket(own, FORGED.0))?;
        near.connect((outside, FORGED.1))
            .context("cannot connect")?;
        let ends = Ends::new(outside, own).context("addresses of one family")?;
        let datagram = craft::udp(ends, (FORGED.1, FORGED.0), b"hello");
        let packet = craft::packet(ends, craft::protocol::UDP, &datagram);
        let frame = raw::ethernet_frame(HOST_MAC_BYTES, [2; 6], None, &packet);
        world
            .web
            .netns()
            .within(move || raw::send_frame("eth0", &frame))?;
        near.recv(&mut [0; 64])
            .context("the node does not bring back what the pod sends to itself")?;
        self.forged.push((index, near));
        Ok(())
    }

    /// Those that are older than the policy that forbids them.
    pub(super) fn open_allowed(&mut self, world: &World) -> Result<()> {
        self.connect(world, 332)
    }

    fn connect(&mut self, world: &World, number: u16) -> Result<()> {
        for index in [0, 1] {
            let to = SocketAddr::new(of(plan::OUTSIDE, index), plan::OUTSIDE_HTTP);
            let mut stream = world.web.netns().within(move || {
                TcpStream::connect_timeout(&to, WAIT)
                    .with_context(|| format!("the outside is not reached at {to}"))
            })?;
            stream.set_read_timeout(Some(WAIT))?;
            stream.write_all(b"hello")?;
            let length = stream
                .read(&mut [0; 64])
                .context("the outside does not answer")?;
            ensure!(length > 0, "the outside closed the connection");
            self.tcp.push((number, index, stream));
        }
        Ok(())
    }

    /// Whether they are cut.
    pub(super) fn rows(&mut self, world: &World, agent: &Agent) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (number, index, stream) in &mut self.tcp {
            rows.push(row(world, agent, *number, *index, |token| {
                stream.write_all(token.as_bytes()).context("cannot write")
            })?);
        }
        for (index, near, far) in &self.udp {
            rows.push(row(world, agent, 333, *index, |token| {
                // What still comes from the accomplice opens nothing: the pod began.
                far.send(b"go on").context("cannot send")?;
                near.recv(&mut [0; 64])
                    .context("the accomplice reaches the pod")?;
                near.send(token.as_bytes()).map(drop).context("cannot send")
            })?);
        }
        for (index, near) in &self.forged {
            rows.push(row(world, agent, 334, *index, |token| {
                near.send(token.as_bytes()).map(drop).context("cannot send")
            })?);
        }
        Ok(rows)
    }
}

fn socket(own: IpAddr, port: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((own, port)).context("cannot open a socket")?;
    socket.set_read_timeout(Some(WAIT))?;
    Ok(socket)
}

/// An exception for the outside.
pub(super) fn allow(world: &World) -> Result<()> {
    let [v4, v6] = plan::OUTSIDE.all();
    let cidrs = json!([{ "cidr": format!("{v4}/32") }, { "cidr": format!("{v6}/128") }]);
    world.lockdown_with("Enforce", &json!({ "cidrs": cidrs }))
}

fn row(
    world: &World,
    agent: &Agent,
    number: u16,
    index: usize,
    send: impl FnOnce(&str) -> Result<()>,
) -> Result<Row> {
    let case = catalogue::find(number).context("a case of the catalogue")?;
    let (token, mark) = (token(), world.wire.mark());
    let before = agent.counters(&world.node, &world.web)?;
    send(&token)?;
    let out = world
        .wire
        .since(mark)
        .iter()
        .any(|packet| packet.contains(&token));
    let mut row = Row::of(case, index);
    row.reasons = since(&before, agent.counters(&world.node, &world.web)?);
    // It was answered when it was opened.
    row.judge(true, out);
    Ok(row)
}
