//! Looks at each device that comes, at once and on a thread of its own: a pass looks at the whole node, and may
//! be writing a policy just now.
//!
//! The gate is closed to a device until then: first its hook stands, which judges by the sender, then it is let
//! through the gate. So whoever dies in between, or has not begun yet, nothing leaves by a device that has no
//! hook. Below Linux 6.6 there is no such hook, and the gate closes only while no agent runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::UnknownPods;
use crate::datapath::{DatapathError, Early};
use crate::fence::{Fence, State};
use crate::netlink::NetlinkError;
use crate::node::{Newcomers, Veth};

/// What strangers do to the gate is put back after so long.
const CHECK: Duration = Duration::from_millis(500);
/// The gate closes so soon after the programs know all pods.
const AT_FIRST: Duration = Duration::from_millis(20);
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
}

/// The gate for devices; none where pods that are not known pass, and then one from before is taken down.
pub fn gate(unknown: UnknownPods) -> Option<Fence> {
    use crate::fence::Part::Gate;
    if unknown == UnknownPods::Deny {
        return super::fence::part(Gate);
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
                tracing::warn!(event = "gate_unreadable", %error, "it is left as it is, and looked at again");
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
        let ifindex = veth.ifindex;
        if let Err(error) = self.hook(veth) {
            tracing::warn!(event = "newcomer_unhooked", ifindex, %error, "tried again");
            self.left = true;
            return;
        }
        if let (Some(gate), true) = (&mut self.means.gate, stands)
            && let Err(error) = gate.add(ifindex)
        {
            tracing::warn!(event = "newcomer_shut_out", ifindex, %error, "tried again");
            self.left = true;
        }
    }

    fn hook(&self, veth: Veth) -> Result<(), DatapathError> {
        match &self.means.early {
            Some(early) if veth.leads_out => early.hook(veth.ifindex).map(drop),
            _ => Ok(()),
        }
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
        if is_same && !self.left && self.looked.elapsed() < RESYNC {
            return Ok(());
        }
        let was_there = self.seen.as_ref().is_some_and(|seen| seen.stands);
        self.looked = Instant::now();
        self.left = false;
        let present = self.newcomers.present()?;
        let mut met = BTreeSet::new();
        for veth in present.veths {
            let ifindex = veth.ifindex;
            // Who was there before the gate is not cut off by it, and a pass has seen to its hooks.
            if state.is_there
                && !state.anywhere.contains(&ifindex)
                && let Err(error) = self.hook(veth)
            {
                tracing::warn!(event = "newcomer_unhooked", ifindex, %error, "tried again");
                self.left = true;
                continue;
            }
            met.insert(ifindex);
        }
        let Some(gate) = &mut self.means.gate else {
            return Ok(());
        };
        if state.stands {
            for ifindex in met.difference(&state.devices) {
                gate.add(*ifindex)?;
            }
            let gone = |ifindex: &&u32| !present.devices.contains(ifindex);
            for ifindex in state.anywhere.iter().filter(gone) {
                gate.remove(*ifindex)?;
            }
        } else {
            gate.raise(&met)?;
            if was_there {
                tracing::warn!(
                    event = "gate_changed",
                    "somebody changed the tables `sallyport-gate` of nf_tables; they are set up again"
                );
            } else {
                tracing::info!(
                    event = "gate_closed",
                    devices = met.len(),
                    "to devices that come"
                );
            }
        }
        self.seen = Some(gate.look()?);
        Ok(())
    }
}
