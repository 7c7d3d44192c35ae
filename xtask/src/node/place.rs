//! Starts a program where a container's process would be: in its cgroup, in its network
//! namespace, with its own view of some files, as its user.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// Where a process is to run.
#[derive(Clone, Debug)]
pub struct Placement {
    /// File of its network namespace.
    pub netns: PathBuf,
    /// Directory of its cgroup; it must exist.
    pub cgroup: PathBuf,
    /// User and group; root without it, with every capability.
    pub uid: Option<u32>,
    /// Files (or directories) to show at other paths, in a mount namespace of its own: from, to.
    pub mounts: Vec<(PathBuf, PathBuf)>,
}

impl Placement {
    /// Makes `command` start there. It leads a session of its own, so that a Ctrl-C at the
    /// terminal reaches it only through us.
    pub fn apply(&self, command: &mut Command) -> Result<()> {
        let procs = self.cgroup.join("cgroup.procs");
        let procs: OwnedFd = OpenOptions::new()
            .write(true)
            .open(&procs)
            .with_context(|| format!("cannot open {}", procs.display()))?
            .into();
        let netns: OwnedFd = File::open(&self.netns)
            .with_context(|| format!("cannot open {}", self.netns.display()))?
            .into();
        let mounts = self
            .mounts
            .iter()
            .map(|(from, to)| Ok((c_path(from)?, c_path(to)?)))
            .collect::<Result<Vec<_>>>()?;
        let uid = self.uid;
        // SAFETY: between fork and exec only system calls are made, on memory that was
        // allocated before; nothing here allocates or takes a lock.
        unsafe {
            command.pre_exec(move || enter(&procs, &netns, &mounts, uid));
        }
        Ok(())
    }
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .with_context(|| format!("a path with a zero byte: {}", path.display()))
}

/// Runs in the child, after fork.
fn enter(
    procs: &OwnedFd,
    netns: &OwnedFd,
    mounts: &[(CString, CString)],
    uid: Option<u32>,
) -> io::Result<()> {
    // SAFETY: plain system calls on descriptors and strings that outlive them.
    unsafe {
        check(libc::setsid())?;
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut(),
        ))?;
        // "0" is the process that writes.
        if libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
            return Err(io::Error::last_os_error());
        }
        check(libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET))?;
        if !mounts.is_empty() {
            check(libc::unshare(libc::CLONE_NEWNS))?;
            let private = libc::MS_REC | libc::MS_PRIVATE;
            check(mount(None, c"/", private))?;
            for (from, to) in mounts {
                check(mount(Some(from), to, libc::MS_BIND))?;
            }
        }
        if let Some(uid) = uid {
            check(libc::setgroups(0, std::ptr::null()))?;
            check(libc::setresgid(uid, uid, uid))?;
            check(libc::setresuid(uid, uid, uid))?;
        }
    }
    Ok(())
}

fn mount(from: Option<&std::ffi::CStr>, to: &std::ffi::CStr, flags: libc::c_ulong) -> i32 {
    let from = from.map_or(std::ptr::null(), std::ffi::CStr::as_ptr);
    // SAFETY: both strings end with zero and outlive the call; the other pointers may be null.
    unsafe { libc::mount(from, to.as_ptr(), std::ptr::null(), flags, std::ptr::null()) }
}

fn check(result: i32) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
