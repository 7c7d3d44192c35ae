//! A pod that moves its device into a network namespace of its own, where none of its processes is: by
//! its namespace nobody finds the device any more.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use egress_battery::catalogue;
use egress_battery::craft::{self, Ends};
use nix::sched::{CloneFlags, unshare};

use super::agent::Agent;
use super::objects::since;
use super::table::Row;
use super::tries::token;
use super::world::{World, of};
use crate::demo::signals;
use crate::node::{Netns, Pod, plan};

const NUMBER: u16 = 316;
/// Time for the agent to look at the node again, more than once.
const PASSES: Duration = Duration::from_millis(2500);

/// Whether it comes out where nothing holds, in each family.
pub(super) fn without(world: &World) -> Result<[bool; 2]> {
    Ok([
        came(world, &world.mover, 0, Duration::ZERO)?,
        came(world, &world.mover, 1, Duration::ZERO)?,
    ])
}

pub(super) fn rows(world: &World, agent: &Agent, control: [bool; 2]) -> Result<Vec<Row>> {
    let case = catalogue::find(NUMBER).context("a case of the catalogue")?;
    let mut rows = Vec::new();
    for (index, before) in control.into_iter().enumerate() {
        signals::check()?;
        let old = agent.counters(&world.node, &world.mover)?;
        let out = came(world, &world.mover, index, PASSES)?;
        let mut row = Row::of(case, index);
        row.reasons = since(&old, agent.counters(&world.node, &world.mover)?);
        row.judge(before, out);
        rows.push(row);
    }
    Ok(rows)
}

fn came(world: &World, pod: &Pod, index: usize, wait: Duration) -> Result<bool> {
    let (own, to) = (of(pod.ips(), index), of(plan::OUTSIDE, index));
    let token = token();
    let mark = world.wire.mark();
    let ends = Ends::new(own, to).context("one family")?;
    let datagram = craft::udp(ends, (40_000, plan::OUTSIDE_UDP), token.as_bytes());
    let packet = craft::packet(ends, craft::protocol::UDP, &datagram);
    let home = pod.netns().clone();
    pod.netns().within(move || away(&home, wait, &packet))?;
    let seen = world.wire.since(mark);
    Ok(seen.iter().any(|packet| packet.contains(&token)))
}

/// In a thread that may change its namespace. The device comes back without its addresses, and needs
/// none.
fn away(home: &Netns, wait: Duration, packet: &[u8]) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    home.ip(&format!("link set eth0 netns {}\n", nix::unistd::gettid()))?;
    // It would say things to its neighbours by itself.
    std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1")
        .context("cannot have the device say nothing by itself")?;
    link("up")?;
    sleep(wait);
    let mut sent = craft::send_cooked("eth0", [0xee; 6], packet);
    // The kernel lets a device send when it comes to it.
    for _ in 0..75 {
        if sent.is_ok() {
            break;
        }
        sleep(Duration::from_millis(20));
        sent = craft::send_cooked("eth0", [0xee; 6], packet);
    }
    sleep(Duration::from_millis(50));
    link(&format!("netns {}", home.name()))?;
    sent.context("cannot send by the device that was moved")
}

/// `ip link set` in the calling thread's namespace.
fn link(change: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["link", "set", "eth0"]);
    let status = command.args(change.split(' ')).status();
    ensure!(
        status.context("cannot run ip")?.success(),
        "ip link set eth0 {change} failed"
    );
    Ok(())
}
