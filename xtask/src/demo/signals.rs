//! Ctrl-C and its kin: the story stops at the next step, and everything is taken down.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigSet, Signal};

static STOP: AtomicBool = AtomicBool::new(false);

/// Takes the signals over. Must be called before any thread is started: it blocks them here, and
/// later threads inherit that.
pub fn take_over() -> Result<()> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().context("cannot block signals")?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while let Ok(signal) = set.wait() {
                if STOP.swap(true, Ordering::Relaxed) {
                    // The node's helper process cleans up when this one is gone.
                    process::exit(128 + signal as i32);
                }
                eprintln!("{signal}: stopping and taking the node down");
            }
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// Whether somebody has asked to stop.
pub fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// An error once somebody has asked to stop.
pub fn check() -> Result<()> {
    if stopped() {
        bail!("interrupted");
    }
    Ok(())
}
