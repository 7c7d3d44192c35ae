//! Wakes the agent when pods come, go or get their devices.
//!
//! Three sources: rtnetlink's notices of devices and addresses, inotify on the pods' cgroups
//! (directories that appear, and `cgroup.events`, which the kernel touches when a cgroup gets its
//! first process or loses its last), and the clock. A notice says only that it is time to look
//! again, so a lost one costs nothing once the loss is known.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, sleep_until};

use super::cgroups::{CgroupError, Kubepods};

/// `linux/rtnetlink.h`.
pub(super) const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
/// Room for the notices of some hundred devices at once.
pub(super) const NETLINK_BUFFER: usize = 1 << 20;
/// Notices come in bursts: what follows the first within this time is one change with it.
const SETTLE: Duration = Duration::from_millis(2);
/// When to look again while a pod is not complete: its namespace and device come soon after its
/// cgroup or never.
const RETRIES_MS: [u64; 12] = [2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000];

/// Why changes can't be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("can't listen to changes of network devices: {0}")]
    Netlink(#[source] io::Error),
    #[error("can't watch cgroups: {0}. If it is the limit, raise fs.inotify.max_user_instances")]
    Inotify(#[source] io::Error),
    #[error(transparent)]
    Cgroups(#[from] CgroupError),
}

/// What there is to look at again. Several may be true at once.
// Independent of each other: no state machine.
#[allow(clippy::struct_excessive_bools)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// A device or address of the node came, went or changed.
    pub links: bool,
    /// A cgroup came or went, or got its first process or lost its last.
    pub cgroups: bool,
    /// Notices were lost.
    pub lost: bool,
    /// It is time: a pod was not complete, or the safety interval is over.
    pub timer: bool,
}

/// Waits for changes. Everything it needs to know is in itself, so `changed` may be dropped and
/// called again at any time.
#[derive(Debug)]
pub struct Watcher {
    kubepods: Kubepods,
    links: AsyncFd<Socket>,
    cgroups: AsyncFd<Watches>,
    safety: Duration,
    /// The next of `RETRIES_MS`; none while all pods are complete.
    retry: Option<usize>,
    /// When the next look is due whatever happens.
    due: Instant,
    /// Something has happened that is not read yet: `changed` was dropped in between.
    pending: bool,
    /// The last attempt to add a watch hit the user's limit; said once.
    limited: bool,
}

/// nix gives its descriptor only in the newer form.
#[derive(Debug)]
struct Watches(Inotify);

impl AsRawFd for Watches {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watcher {
    /// Watches from now on; so make it before the first look. Devices are those of the network
    /// namespace that the calling thread is in. Must be called within a tokio runtime.
    ///
    /// `safety` is the longest time between two looks.
    pub fn new(kubepods: Kubepods, safety: Duration) -> Result<Self, WatchError> {
        let listen = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            // A small buffer only loses notices sooner, which is noticed.
            let _ = socket.set_rx_buf_sz(NETLINK_BUFFER);
            socket.bind(&SocketAddr::new(0, 0))?;
            for group in [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR] {
                socket.add_membership(group)?;
            }
            // SAFETY: the socket owns its descriptor and is not replaced.
            Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
        };
        let links = listen().map_err(WatchError::Netlink)?;
        let watch = || {
            let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
            let watches = Watches(Inotify::init(flags)?);
            // SAFETY: as above.
            Ok(unsafe { AsyncFd::register_with_interest(watches, Interest::READABLE) }?)
        };
        let cgroups = watch().map_err(WatchError::Inotify)?;
        let due = Instant::now() + safety;
        let mut watcher = Self {
            kubepods,
            links,
            cgroups,
            safety,
            retry: None,
            due,
            pending: false,
            limited: false,
        };
        watcher.watch_tree()?;
        Ok(watcher)
    }

    /// Tells after each look whether a pod is not complete yet (no process, or no device where
    /// it should have one). While that is so, `changed` returns at growing intervals.
    pub fn looked(&mut self, incomplete: bool) {
        let delay = match (incomplete, self.retry) {
            (false, _) => {
                self.retry = None;
                self.safety
            }
            (true, step) => {
                let step = step.map_or(0, |step| step + 1).min(RETRIES_MS.len() - 1);
                self.retry = Some(step);
                Duration::from_millis(RETRIES_MS[step]).min(self.safety)
            }
        };
        self.due = Instant::now() + delay;
    }

    /// Returns when it is time to look again, at the latest after the safety interval.
    ///
    /// # Errors
    /// When the kernel's descriptors fail, which is final.
    pub async fn changed(&mut self) -> Result<Change, WatchError> {
        if !self.pending {
            // Readiness is taken back before the reading: what arrives in between sets it again.
            tokio::select! {
                ready = self.links.readable() => {
                    ready.map_err(WatchError::Netlink)?.clear_ready();
                }
                ready = self.cgroups.readable() => {
                    ready.map_err(WatchError::Inotify)?.clear_ready();
                }
                () = sleep_until(self.due) => {}
            }
            self.pending = true;
        }
        sleep(SETTLE).await;
        let mut change = self.drain()?;
        self.pending = false;
        if change.cgroups || change.lost {
            // What comes anew is looked at closely from the start.
            self.retry = None;
        }
        if Instant::now() >= self.due {
            change.timer = true;
            // Should the caller not say what it saw.
            self.due = Instant::now() + self.safety;
        }
        if change.cgroups || change.lost || change.timer {
            self.watch_tree()?;
        }
        Ok(change)
    }

    /// Takes all notices that wait.
    fn drain(&mut self) -> Result<Change, WatchError> {
        let mut change = Change::default();
        while let Some(read) = try_io(&self.links, receive) {
            match read {
                Ok(()) => change.links = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => change.lost = true,
                Err(error) => return Err(WatchError::Netlink(error)),
            }
        }
        while let Some(read) = try_io(&self.cgroups, |watches| Ok(watches.0.read_events()?)) {
            for event in read.map_err(WatchError::Inotify)? {
                change.lost |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                // A watch that ends with its cgroup says IN_IGNORED.
                change.cgroups = true;
            }
        }
        Ok(change)
    }

    /// Watches kubepods, the `QoS` directories and the pods. To add a watch that is there
    /// already changes nothing, and the kernel takes it away with the cgroup.
    fn watch_tree(&mut self) -> Result<(), WatchError> {
        // A directory's children are listed only after it is watched: none is missed.
        self.watch_directory(&self.kubepods.path.clone())?;
        for parent in self.kubepods.parents()? {
            self.watch_directory(&parent)?;
        }
        for pod in self.kubepods.pods()?.into_values() {
            self.watch_directory(&pod.path)?;
            self.watch(&pod.path.join("cgroup.events"), AddWatchFlags::IN_MODIFY)?;
        }
        Ok(())
    }

    fn watch_directory(&mut self, path: &Path) -> Result<(), WatchError> {
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        self.watch(path, flags)
    }

    fn watch(&mut self, path: &Path, flags: AddWatchFlags) -> Result<(), WatchError> {
        match self.cgroups.get_ref().0.add_watch(path, flags) {
            Ok(_) => self.limited = false,
            // It has gone.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV) => {}
            Err(Errno::ENOSPC) => {
                if !self.limited {
                    tracing::warn!(
                        event = "watch-limit", path = %path.display(),
                        "no more inotify watches: new pods are seen late; \
                         raise fs.inotify.max_user_watches"
                    );
                }
                self.limited = true;
            }
            Err(error) => return Err(WatchError::Inotify(error.into())),
        }
        Ok(())
    }
}

/// One read without waiting; none if there is nothing to read. The descriptor is asked even when
/// tokio has not seen it ready yet.
fn try_io<F: AsRawFd, T>(
    fd: &AsyncFd<F>,
    read: impl Fn(&F) -> io::Result<T>,
) -> Option<io::Result<T>> {
    loop {
        match read(fd.get_ref()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            result => return Some(result),
        }
    }
}

/// The content does not matter: a notice that is longer than the buffer is cut.
fn receive(socket: &Socket) -> io::Result<()> {
    let mut buffer = [0; 4096];
    socket.recv(&mut buffer.as_mut_slice(), 0).map(drop)
}
