//! Hooks on devices of kernels without tcx: filters of a clsact qdisc, in direct action.
//!
//! A filter outlives its maker without a pin. What is pinned under the hook's name is its program, as
//! a mark that a hook of ours belongs on this device; whether it is there, the kernel's list of filters
//! says. The mark is set before the filter and goes after it, so that no filter is ever forgotten.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use super::sys;
use super::tc::{ETH_P_ALL, Filter, Place, Tc};
use super::{Direction, LinkState};

/// The first there is.
const PRIORITY: u16 = 1;
/// Handles of ours begin here; nobody else's do.
const HANDLE: u32 = 0x5a11;

/// Whether our filter is on the device, first, and with the right program: the one with this id, and
/// with this tag if one is given.
pub fn state(
    ifindex: u32,
    direction: Direction,
    program: u32,
    tag: Option<[u8; 8]>,
) -> io::Result<LinkState> {
    let mut filters = Tc::open()?.filters(ifindex, direction)?;
    filters.retain(|filter| filter.chain == 0);
    let ours: Vec<&Filter> = filters.iter().filter(|it| is_ours(it, direction)).collect();
    let Some(first) = ours.first() else {
        return Ok(LinkState::Gone);
    };
    Ok(
        if !is_ours(&filters[0], direction) || has_tcx(ifindex, direction) {
            LinkState::Displaced
        } else if ours.len() > 1
            || first.program != program
            || tag.is_some_and(|tag| tag != first.tag)
        {
            LinkState::OldProgram
        } else {
            LinkState::Good
        },
    )
}

/// Where the kernel has tcx, too, what hangs there runs before any filter.
fn has_tcx(ifindex: u32, direction: Direction) -> bool {
    sys::query_tcx(ifindex, direction.attach_type()).is_ok_and(|links| !links.is_empty())
}

/// Looks for filters of others; opens a socket for the first question.
pub struct Others(Option<Tc>);

impl Others {
    pub fn open() -> Self {
        Self(None)
    }

    /// Whether the device has any in this direction.
    pub fn are_on(&mut self, ifindex: u32, direction: Direction) -> io::Result<bool> {
        if self.0.is_none() {
            self.0 = Some(Tc::open()?);
        }
        let tc = self.0.as_mut().expect("it was opened just now");
        let filters = tc.filters(ifindex, direction)?;
        Ok(filters.iter().any(|filter| !is_ours(filter, direction)))
    }
}

/// Where one of ours is.
fn place(ifindex: u32, direction: Direction, handle: u32) -> Place {
    Place {
        ifindex,
        direction,
        priority: PRIORITY,
        handle,
    }
}

fn is_ours(filter: &Filter, direction: Direction) -> bool {
    filter.kind == "bpf"
        && filter.chain == 0
        && filter.priority == PRIORITY
        && filter.name == direction.program()
        && filter.direct
}

/// Makes the device ready for filters.
pub fn prepare(ifindex: u32) -> io::Result<()> {
    Tc::open()?.add_clsact(ifindex)
}

/// Adds our filter before all others, then removes those of ours that were there.
pub fn attach(ifindex: u32, direction: Direction, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut tc = Tc::open()?;
    tc.add_clsact(ifindex)?;
    let before = tc.filters(ifindex, direction)?;
    let place = |handle| place(ifindex, direction, handle);
    let free = |handle: &u32| before.iter().all(|filter| filter.handle != *handle);
    let handle = (HANDLE..u32::MAX).find(free);
    let handle = handle.expect("a device has not that many filters");
    // The latest of a priority runs first.
    tc.set_filter(place(handle), direction.program(), program, false)
        .map_err(|error| explain(error, before.first()))?;
    for old in before.iter().filter(|it| is_ours(it, direction)) {
        tc.remove_filter(place(old.handle))?;
    }
    Ok(())
}

/// A priority has one kind of classifier and one protocol.
fn explain(error: io::Error, first: Option<&Filter>) -> io::Error {
    match first {
        Some(first)
            if first.priority == PRIORITY
                && (first.kind != "bpf" || first.protocol != ETH_P_ALL) =>
        {
            io::Error::other(format!(
                "a {} filter of somebody else has priority {PRIORITY} there, before which none of \
                 ours can come; give it another (tc filter … pref 2)",
                first.kind
            ))
        }
        _ => error,
    }
}

/// Gives our filter this program, and leaves one only. No packet goes without.
pub fn swap(ifindex: u32, direction: Direction, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut tc = Tc::open()?;
    let filters = tc.filters(ifindex, direction)?;
    let mut ours = filters.iter().filter(|it| is_ours(it, direction));
    let place = |filter: &Filter| place(ifindex, direction, filter.handle);
    let Some(first) = ours.next() else {
        return attach(ifindex, direction, program);
    };
    tc.set_filter(place(first), direction.program(), program, true)?;
    ours.try_for_each(|other| tc.remove_filter(place(other)))
}

/// Removes our filters of this direction, and the clsact when nobody has a filter there any more.
pub fn detach(ifindex: u32, direction: Direction) -> io::Result<()> {
    let mut tc = Tc::open()?;
    let filters = tc.filters(ifindex, direction)?;
    let ours = filters.iter().filter(|it| is_ours(it, direction));
    let mut removed = false;
    for filter in ours {
        removed = true;
        tc.remove_filter(place(ifindex, direction, filter.handle))?;
    }
    if !removed {
        return Ok(());
    }
    for direction in Direction::BOTH {
        if !tc.filters(ifindex, direction)?.is_empty() {
            return Ok(());
        }
    }
    match tc.remove_clsact(ifindex) {
        // Gone with its device, or by somebody else's hand.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(()),
        other => other,
    }
}
