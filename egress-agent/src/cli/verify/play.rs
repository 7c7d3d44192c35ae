//! Plays the cases one by one: the order to the pod, the tap, the counters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use egress_battery::case::{By, Case, Family, Need};
use egress_battery::client;
use egress_battery::ground::Order;
use egress_battery::inside::Process;
use egress_battery::row::{Observed, Row};
use egress_battery::tap::{Marks, Tap};
use egress_common::Reason;
use egress_common::limits::FORGED_NS;
use egress_common::maps::PodCounters;

use super::Args;
use super::ground::Whereabouts;
use crate::cli::Globals;
use crate::datapath::pinned::Pinned;
use crate::fence::{Fence, Part};

/// Time that a frame may be under way between two devices of this node.
const SETTLE: Duration = Duration::from_millis(10);
/// How long the first frame of an attempt may take.
const MUST_COME: Duration = Duration::from_millis(200);

pub(super) fn all(
    globals: &Globals,
    args: &Args,
    whereabouts: &Whereabouts,
    cases: &[&Case],
) -> Result<Vec<Row>> {
    let mut player = Player {
        args,
        whereabouts,
        pinned: Pinned::open(&globals.bpffs)?,
        tap: Tap::start().context("cannot watch the node's devices; run as root on the node")?,
        process: start(whereabouts, "sallyport-verify")?,
        run: std::process::id(),
        count: 0,
        rested: false,
    };
    let mut rows = Vec::new();
    for case in cases {
        for family in case.families {
            rows.push(player.row(case, *family)?);
        }
    }
    Ok(rows)
}

fn start(whereabouts: &Whereabouts, cgroup: &str) -> Result<Process> {
    let program = std::env::current_exe().context("cannot find this program itself")?;
    let mut command = Command::new(program);
    command.arg("verify-inside");
    Process::start(
        &mut command,
        &whereabouts.netns,
        &whereabouts.cgroup,
        cgroup,
    )
    .with_context(|| format!("cannot start a process in {}", whereabouts.cgroup.display()))
}

struct Player<'a> {
    args: &'a Args,
    whereabouts: &'a Whereabouts,
    pinned: Pinned,
    tap: Tap,
    process: Process,
    run: u32,
    count: u16,
    /// What the pod sent in others' names is forgotten.
    rested: bool,
}

impl Player<'_> {
    fn row(&mut self, case: &Case, family: Family) -> Result<Row> {
        let index = self.family(family);
        let Some(own) = self.whereabouts.own[index] else {
            let why = format!("the pod has no {} address", family.as_str());
            return Ok(Row::not_tried(case, family, why));
        };
        if let Some(why) = self.lacks(case, index) {
            return Ok(Row::not_tried(case, family, why.to_owned()));
        }
        if matches!(case.by, By::Client(_)) && self.whereabouts.audited && !self.rested {
            // While that passes nothing opens a flow to the pod.
            std::thread::sleep(Duration::from_nanos(FORGED_NS) + Duration::from_secs(1));
            self.rested = true;
        }
        self.count += 1;
        let whereabouts = self.whereabouts;
        let order = Order {
            number: case.number,
            family,
            token: format!("sp{:06x}{:04x}", self.run & 0x00ff_ffff, self.count),
            own,
            aim: self.args.aim(own, self.count),
            gateway: whereabouts.gateway[index],
            dns: whereabouts.dns[index],
            other: whereabouts.other[index],
            node: whereabouts.node[index],
            host_mac: whereabouts.host_mac,
        };
        let observed = self.attempt(case, &order)?;
        Ok(Row::judge(case, family, &observed, device_name))
    }

    /// Which of the pairs; below IP it does not matter.
    fn family(&self, family: Family) -> usize {
        match family {
            Family::IPv4 => 0,
            Family::IPv6 => 1,
            Family::Link => usize::from(self.whereabouts.own[0].is_none()),
        }
    }

    /// What is missing for a case.
    fn lacks(&self, case: &Case, index: usize) -> Option<&'static str> {
        let here = self.whereabouts;
        if matches!(case.by, By::Cluster) {
            return Some("it needs the cluster's objects: cargo xtask battery tries it");
        }
        case.needs.iter().find_map(|need| match need {
            Need::Intrusive if !self.args.intrusive => {
                Some("it changes the pod's network for a moment: --intrusive")
            }
            Need::Gateway if here.gateway[index].is_none() => {
                Some("the pod's policy has no gateway")
            }
            Need::Dns if here.dns[index].is_none() => Some("the pod's policy has no resolver"),
            Need::OtherPod if here.other[index].is_none() => Some("no other pod is on this node"),
            Need::Node if here.node[index].is_none() => Some("the node has no such address"),
            _ => None,
        })
    }

    fn attempt(&mut self, case: &Case, order: &Order) -> Result<Observed> {
        self.tap.look_for(Marks {
            token: order.token.clone().into_bytes(),
            aim: Some(order.aim),
            own: self.whereabouts.devices.clone(),
        })?;
        let before = self.counters()?;
        let fenced = fenced();
        let mut fresh = if case.needs(Need::FreshContainer) {
            Some(start(self.whereabouts, "sallyport-verify-ephemeral")?)
        } else {
            None
        };
        let process = fresh.as_mut().unwrap_or(&mut self.process);
        let answer = process
            .ask(order)
            .with_context(|| format!("{} in the pod", case.id()))?;
        let mut trouble = answer.trouble;
        if let (By::Client(client), None) = (case.by, &trouble) {
            // As the process in the pod listens.
            let to = SocketAddr::new(order.own, 20_000 + order.number);
            let asked = client::ask(client, to, order.token.as_bytes());
            trouble = asked.err().map(|error| error.to_string());
        }
        // Nothing has to come where nothing could be sent.
        let must_come = if trouble.is_none() && matches!(case.by, By::Pod(_)) {
            MUST_COME
        } else {
            Duration::ZERO
        };
        let seen = self.tap.seen(SETTLE, must_come)?;
        let after = self.counters()?;
        Ok(Observed {
            audited: self.whereabouts.audited,
            seen,
            reasons: difference(&before, &after),
            fenced: self::fenced().saturating_sub(fenced),
            trouble,
            note: answer.note,
        })
    }

    fn counters(&self) -> Result<PodCounters> {
        let slot = self.whereabouts.slot;
        let counters = self.pinned.counters([slot])?.remove(&slot);
        counters.context("the pod has no counters any more; it is gone")
    }
}

/// Packets that the fence has dropped; where there is none it drops nothing.
fn fenced() -> u64 {
    Fence::facts(Part::Fence).map_or(0, |facts| facts.dropped.values().sum())
}

fn difference(before: &PodCounters, after: &PodCounters) -> BTreeMap<Reason, u64> {
    Reason::ALL
        .iter()
        .map(|reason| {
            let index = *reason as usize;
            let (old, new) = (before.reasons[index].packets, after.reasons[index].packets);
            (*reason, new.saturating_sub(old))
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn device_name(ifindex: u32) -> String {
    let name = nix::net::if_::if_indextoname(ifindex);
    match name.as_ref().map(|name| name.to_str()) {
        Ok(Ok(name)) => name.to_owned(),
        _ => format!("if{ifindex}"),
    }
}
