//! The one hook that is not set by a pass: on a device that has just come, before anything is known of it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device;
use super::links::{Direction, Loaded};
use super::{DatapathError, DeviceHooks, Pins};

/// Whoever changes a device's links holds it: a pin is replaced under a name that is the same for all.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn(Arc<Mutex<()>>);

impl Turn {
    /// A panic while it was held leaves at worst a link that the next pass replaces.
    pub(super) fn take(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has devices judged by the sender, beside the passes.
#[derive(Debug)]
pub struct Early {
    pub(super) pins: Pins,
    pub(super) program: OwnedFd,
    pub(super) id: u32,
    pub(super) turn: Turn,
}

impl Early {
    /// Attaches the hook, unless there is one of ours; whether it did.
    ///
    /// # Errors
    /// If the kernel refuses; a device that has gone again is none.
    pub fn hook(&self, ifindex: u32) -> Result<bool, DatapathError> {
        let _turn = self.turn.take();
        let direction = Direction::Ingress;
        if self.pins.device_link(ifindex, direction).exists() {
            return Ok(false);
        }
        let program = Loaded {
            fd: self.program.as_fd(),
            id: self.id,
        };
        match device::attach(DeviceHooks::Tcx, &self.pins, ifindex, direction, program) {
            Ok(()) => Ok(true),
            Err(DatapathError::Link { error, .. })
                if error.raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
