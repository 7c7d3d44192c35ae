//! Has each device that comes judged by the sender at once, on a thread of its own: a pass looks at the
//! whole node, and may be writing a policy just now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};

use crate::datapath::Early;
use crate::node::Newcomers;

/// Follows the node's devices for as long as the process lives. `armed` says that the programs know all
/// pods that there were before: until then a hook could stop one of these.
///
/// # Errors
/// If the kernel gives no socket or no thread.
pub fn follow(early: Early, armed: Arc<AtomicBool>) -> Result<()> {
    let newcomers = Newcomers::open().context("can't listen to new network devices")?;
    let thread = thread::Builder::new().name("newcomers".to_owned());
    let run = move || run(newcomers, &early, &armed);
    thread.spawn(run).context("can't start a thread")?;
    Ok(())
}

fn run(mut newcomers: Newcomers, early: &Early, armed: &AtomicBool) {
    loop {
        let devices = match newcomers.next() {
            Ok(devices) => devices,
            Err(error) => {
                tracing::error!(
                    event = "newcomers_ended", %error,
                    "devices get their first hook some milliseconds later: restart the agent"
                );
                return;
            }
        };
        for ifindex in devices {
            if !armed.load(Ordering::Acquire) {
                // The pass that arms it finds the device.
                continue;
            }
            if let Err(error) = early.hook(ifindex) {
                tracing::warn!(event = "newcomer_unhooked", ifindex, %error, "a pass tries again");
            }
        }
    }
}
