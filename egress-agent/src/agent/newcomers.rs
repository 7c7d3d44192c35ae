//! Looks at each device that comes, at once and on a thread of its own: a pass looks at the whole node, and may
//! be writing a policy just now.
//!
//! The gate is closed to a device until then: first its hook stands, which judges by the sender, then it is let
//! through the gate. So whoever dies in between, or has not begun yet, nothing leaves by a device that has no
//! hook. Below Linux 6.6 there is no such hook, and the gate closes only while no agent runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::UnknownPods;
use super::disturbed::Teller;
use crate::datapath::{DatapathError, Early};
use crate::fence::{Fence, State};
use crate::netlink::NetlinkError;
use crate::node::{Newcomers, Veth};

/// What strangers do to the gate is put back after so long.
const CHECK: Duration = Duration::from_millis(500);
/// The gate closes so soon after the programs know all pods.
const AT_FIRST: Duration = Duration::from_millis(20);
/// A pair that stays on the node is let through after so long: network plugins may make one there, and then move
/// an end of it into a pod.
const SETTLED: Duration = Duration::from_secs(1);
/// All devices are looked at so often, whatever was told.
const RESYNC: Duration = Duration::from_secs(10);

/// What is done for new devices.
#[derive(Debug)]
pub struct Means {
    /// None below Linux 6.6.
    pub early: Option<Early>,
    /// None where this kernel has no `nf_tables`, or who is not known passes.
    pub gate: Option<Fence>,
    /// The programs know all pods that there were before: until then a hook, or the gate, could stop one of
    /// these.
    pub armed: Arc<AtomicBool>,
    /// Told of what strangers do to the gate.
    pub teller: Teller,
}

/// The gate for devices; none where pods that are not known pass, and then one from before is taken down.
pub fn gate(unknown: UnknownPods) -> Option<Fence> {
    use crate::fence::Part::Gate;
    if unknown == UnknownPods::Deny {
        return super::fence::open(Gate);
    }
    if let Err(error) = Fence::end(Gate) {
        tracing::error!(
            event = "gate_stands", %error,
            "new devices stay cut off: `nft delete table` of each `sallyport-gate`"
        );
    }
    None
}

/// Follows the node's devices for as long as the process lives.
///
/// # Errors
/// If the kernel gives no socket or no thread.
pub fn follow(means: Means) -> Result<()> {
    let newcomers = Newcomers::open().context("can't listen to new network devices")?;
    let keeper = Keeper {
        newcomers,
        means,
        seen: None,
        looked: Instant::now(),
        left: false,
        is_unsure: false,
        unhooked: BTreeSet::new(),
        stays: BTreeMap::new(),
    };
    let thread = thread::Builder::new().name("newcomers".to_owned());
    thread
        .spawn(move || keeper.run())
        .context("can't start a thread")?;
    Ok(())
}

struct Keeper {
    newcomers: Newcomers,
    means: Means,
    /// The gate as it was left; none before it was looked at.
    seen: Option<State>,
    looked: Instant,
    /// Some device could not be let through.
    left: bool,
    /// Something failed half done: what is there may be nobody else's doing.
    is_unsure: bool,
    /// Devices that no hook could be set on, which was said.
    unhooked: BTreeSet<u32>,
    /// Since when those with both ends on the node are known.
    stays: BTreeMap<u32, Instant>,
}

impl Keeper {
    fn run(mut self) {
        let mut is_deaf = false;
        loop {
            let is_closed = self.means.gate.is_none() || self.seen.is_some();
            let at_most = if is_closed { CHECK } else { AT_FIRST };
            match self.newcomers.wait(at_most) {
                Ok(veths) => {
                    is_deaf = false;
                    for veth in veths {
                        self.meet(veth);
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_deaf, true) {
                        tracing::error!(
                            event = "newcomers_unheard", %error,
                            "new devices are looked at up to half a second later"
                        );
                    }
                    thread::sleep(CHECK);
                    self.left = true;
                    if let Ok(anew) = Newcomers::open() {
                        self.newcomers = anew;
                    }
                }
            }
            if let Err(error) = self.check() {
                if !std::mem::replace(&mut self.is_unsure, true) {
                    tracing::warn!(event = "gate_failed", %error, "it is looked at again until it is as it should be");
                }
                thread::sleep(CHECK);
            }
        }
    }

    fn is_armed(&self) -> bool {
        self.means.armed.load(Ordering::Acquire)
    }

    /// A device that has just come.
    fn meet(&mut self, veth: Veth) {
        let stands = self.seen.as_ref().is_some_and(|state| state.is_there);
        if !stands && !self.is_armed() {
            // The pass that arms it finds the device.
            return;
        }
        if !self.is_settled(veth) || !self.hook(veth) {
            self.left = true;
            return;
        }
        let ifindex = veth.ifindex;
        if stands && let Err(error) = self.let_through(ifindex) {
            tracing::warn!(event = "newcomer_shut_out", ifindex, %error, "tried again");
            self.left = true;
        }
    }

    /// Whether it is known if the device leads out.
    fn is_settled(&mut self, veth: Veth) -> bool {
        if veth.leads_out {
            self.stays.remove(&veth.ifindex);
            return true;
        }
        let since = self.stays.entry(veth.ifindex);
        since.or_insert_with(Instant::now).elapsed() >= SETTLED
    }

    /// Whether nothing stands against letting the device through. What does is said once.
    fn hook(&mut self, veth: Veth) -> bool {
        let ifindex = veth.ifindex;
        let done: Result<(), DatapathError> = match &self.means.early {
            Some(early) if veth.leads_out => early.hook(ifindex).map(drop),
            _ => Ok(()),
        };
        match done {
            Ok(()) => {
                self.unhooked.remove(&ifindex);
                true
            }
            Err(error) => {
                if self.unhooked.insert(ifindex) {
                    tracing::warn!(event = "newcomer_unhooked", ifindex, %error, "tried again until it works");
                }
                false
            }
        }
    }

    fn let_through(&mut self, ifindex: u32) -> Result<(), NetlinkError> {
        if let Some(gate) = &mut self.means.gate {
            gate.add(ifindex)?;
        }
        if let Some(seen) = &mut self.seen {
            seen.devices.insert(ifindex);
            seen.anywhere.insert(ifindex);
        }
        Ok(())
    }

    /// Has the gate stand, with all devices in its set that may be there.
    fn check(&mut self) -> Result<(), NetlinkError> {
        let is_armed = self.is_armed();
        let Some(gate) = &mut self.means.gate else {
            return Ok(());
        };
        let state = gate.look()?;
        if !state.is_there && !is_armed {
            return Ok(());
        }
        let is_same = state.stands && self.seen.as_ref() == Some(&state);
        let due = if self.left { CHECK } else { RESYNC };
        if is_same && self.looked.elapsed() < due {
            return Ok(());
        }
        if !self.is_unsure && self.seen.as_ref().is_some_and(|seen| *seen != state) {
            self.means.teller.gate_changed();
        }
        self.looked = Instant::now();
        self.left = false;
        let present = self.newcomers.present()?;
        let is_present = |ifindex: &u32| present.devices.contains(ifindex);
        self.unhooked.retain(is_present);
        self.stays.retain(|ifindex, _| is_present(ifindex));
        // Who was there before the gate is not cut off by it, and a pass has seen to its hooks.
        let is_first = !state.is_there && self.seen.is_none();
        // Somebody may have emptied the set.
        let mut known = state.anywhere.clone();
        known.extend(self.seen.iter().flat_map(|seen| &seen.anywhere));
        let mut met = BTreeSet::new();
        for veth in present.veths {
            let is_new = !is_first && !known.contains(&veth.ifindex);
            if is_new && !(self.is_settled(veth) && self.hook(veth)) {
                self.left = true;
                continue;
            }
            met.insert(veth.ifindex);
        }
        if state.stands {
            for ifindex in met.difference(&state.devices) {
                self.let_through(*ifindex)?;
            }
        }
        let Some(gate) = &mut self.means.gate else {
            return Ok(());
        };
        if state.stands {
            for ifindex in state.anywhere.iter().filter(|it| !is_present(it)) {
                gate.remove(*ifindex)?;
            }
        } else {
            gate.raise(&met)?;
            if self.seen.is_none() {
                tracing::info!(
                    event = "gate_closed",
                    devices = met.len(),
                    "to devices that come"
                );
            }
        }
        self.seen = Some(gate.look()?);
        self.is_unsure = false;
        Ok(())
    }
}
