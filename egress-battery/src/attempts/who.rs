//! Whoever sends: any user, any container of the pod, with or without its packet filter.

use std::io;
use std::thread;

use egress_common::Reason::NotAllowed;

use super::{legacy, pod, sockets};
use crate::case::{BOTH, Case, Group::Who, Need, Trouble, failed};
use crate::ground::Ground;

pub(super) const CASES: [Case; 7] = [
    pod(
        (1, Who),
        "TCP straight out, no sidecar between",
        BOTH,
        &[NotAllowed],
        sockets::tcp,
    ),
    pod(
        (2, Who),
        "TCP as UID 1337, whom a sidecar's redirect leaves alone",
        BOTH,
        &[NotAllowed],
        |g| as_user(1337, g, sockets::tcp),
    ),
    pod((3, Who), "UDP as UID 1337", BOTH, &[NotAllowed], |g| {
        as_user(1337, g, sockets::udp)
    }),
    pod(
        (4, Who),
        "TCP as nobody, without any capability",
        BOTH,
        &[NotAllowed],
        |g| as_user(65_534, g, sockets::tcp),
    ),
    pod(
        (5, Who),
        "TCP from an ephemeral container",
        BOTH,
        &[NotAllowed],
        sockets::tcp,
    )
    .with(&[Need::FreshContainer]),
    pod(
        (6, Who),
        "UDP from an ephemeral container",
        BOTH,
        &[NotAllowed],
        sockets::udp,
    )
    .with(&[Need::FreshContainer]),
    pod(
        (7, Who),
        "TCP with all of nftables and iptables flushed",
        BOTH,
        &[NotAllowed],
        flushed,
    )
    .with(&[Need::Intrusive]),
];

/// Tries it as this user, in a thread of its own: the kernel's user is a thread's.
fn as_user(
    user: u32,
    ground: &Ground,
    attempt: fn(&Ground) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    thread::scope(|scope| {
        let attempted = scope.spawn(move || {
            become_user(user).map_err(failed("become another user"))?;
            attempt(ground)
        });
        attempted
            .join()
            .expect("an attempt that panicked has said so")
    })
}

/// Only the calling thread: glibc's own functions would change all.
fn become_user(user: u32) -> io::Result<()> {
    // SAFETY: plain system calls; the empty list of groups needs no pointer.
    let done = unsafe {
        libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) == 0
            && libc::syscall(libc::SYS_setresgid, user, user, user) == 0
            && libc::syscall(libc::SYS_setresuid, user, user, user) == 0
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What was there is put back, whatever came of it.
fn flushed(ground: &Ground) -> Result<(), Trouble> {
    let before = nft(&["list", "ruleset"], None)?;
    nft(&["flush", "ruleset"], None)?;
    // nft neither lists nor flushes the tables of iptables-legacy.
    let attempted = legacy::emptied(|tables| {
        ground.note(tables);
        sockets::tcp(ground)
    });
    nft(&["-f", "-"], Some(&before))?;
    attempted
}

fn nft(args: &[&str], input: Option<&str>) -> Result<String, Trouble> {
    super::devices::tool("nft", args, input)
}
