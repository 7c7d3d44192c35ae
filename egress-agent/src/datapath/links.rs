//! Hooks: attached, pinned, verified, swapped.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya_obj::generated::bpf_attach_type;
use serde::Serialize;

use super::sys::{self, LinkInfo, Target};
use super::{DatapathError, Pins, clsact, device};

/// Side of a device, as the node sees it: ingress is what comes from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// Name of the program that goes there.
    pub fn program(self) -> &'static str {
        match self {
            Self::Ingress => "sp_from_pod",
            Self::Egress => "sp_to_pod",
        }
    }

    pub(super) fn attach_type(self) -> bpf_attach_type {
        match self {
            Self::Ingress => bpf_attach_type::BPF_TCX_INGRESS,
            Self::Egress => bpf_attach_type::BPF_TCX_EGRESS,
        }
    }
}

/// A hook on the kubepods cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupHook {
    Connect4,
    Connect6,
    Sendmsg4,
    Sendmsg6,
    Ingress,
    Egress,
}

impl CgroupHook {
    /// In the order they are attached: the one that refuses comes last.
    pub const ALL: [Self; 6] = [
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::Ingress,
        Self::Egress,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// Name of the program that goes there.
    pub fn program(self) -> &'static str {
        match self {
            Self::Connect4 => "sp_connect4",
            Self::Connect6 => "sp_connect6",
            Self::Sendmsg4 => "sp_sendmsg4",
            Self::Sendmsg6 => "sp_sendmsg6",
            Self::Ingress => "sp_cg_ingress",
            Self::Egress => "sp_cg_egress",
        }
    }

    fn attach_type(self) -> bpf_attach_type {
        match self {
            Self::Connect4 => bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
            Self::Connect6 => bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
            Self::Sendmsg4 => bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG,
            Self::Sendmsg6 => bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG,
            Self::Ingress => bpf_attach_type::BPF_CGROUP_INET_INGRESS,
            Self::Egress => bpf_attach_type::BPF_CGROUP_INET_EGRESS,
        }
    }
}

/// What a pinned link turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// Attached where it should be, runs first, with the program that we carry.
    Good,
    /// The same, with a program of another version.
    OldProgram,
    /// The program that judges by the sender: the device is nobody's yet. Where it runs among others
    /// does not matter.
    BySender,
    /// Attached, but another program runs before it.
    Displaced,
    /// Its device or cgroup is gone.
    Gone,
    /// Pinned under this name is something else.
    Wrong,
}

impl LinkState {
    /// A program of ours runs there that knows whose device it is.
    pub fn stands(self) -> bool {
        matches!(self, Self::Good | Self::OldProgram | Self::Displaced)
    }
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "good",
            Self::OldProgram => "old-program",
            Self::BySender => "by-sender",
            Self::Displaced => "displaced",
            Self::Gone => "gone",
            Self::Wrong => "wrong",
        })
    }
}

/// One loaded program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded<'a> {
    pub fd: BorrowedFd<'a>,
    pub id: u32,
}

/// The program on devices that may be a pod's.
pub const BY_SENDER: &str = "sp_by_sender";

/// Tags of our programs for packets in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tags {
    /// The one that belongs there.
    pub wanted: [u8; 8],
    /// [`BY_SENDER`]; none where it is not loaded.
    pub by_sender: Option<[u8; 8]>,
}

/// Whether the link of a hook on the cgroup with this id is what it should be; as
/// [`device::state`].
pub fn cgroup_state(
    pins: &Pins,
    hook: CgroupHook,
    cgroup: u64,
    tag: Option<[u8; 8]>,
) -> Result<Option<LinkState>, DatapathError> {
    let path = pins.cgroup_link(hook);
    let Some(info) = pinned_info(&path)? else {
        return Ok(None);
    };
    let wanted = hook.attach_type() as u32;
    Ok(Some(match info.target {
        Target::Cgroup(0, _) => LinkState::Gone,
        Target::Cgroup(at, kind) if at == cgroup && kind == wanted => {
            if tag.is_some_and(|tag| tag != info.tag) {
                LinkState::OldProgram
            } else {
                LinkState::Good
            }
        }
        _ => LinkState::Wrong,
    }))
}

/// What is pinned at `path`; none if nothing is.
pub(super) fn pinned_info(path: &Path) -> Result<Option<LinkInfo>, DatapathError> {
    let Some(link) = open_if_pinned(path)? else {
        return Ok(None);
    };
    sys::link_info(link.as_fd())
        .map(Some)
        .map_err(failed(path, "look at"))
}

/// Attaches a program to a cgroup and pins it; one that is pinned there already ends when it stands.
pub(super) fn attach_cgroup(
    pins: &Pins,
    hook: CgroupHook,
    cgroup: &Path,
    program: Loaded<'_>,
) -> Result<(), DatapathError> {
    let path = pins.cgroup_link(hook);
    let directory = sys::open_directory(cgroup).map_err(failed(cgroup, "open"))?;
    let link = sys::link_cgroup(program.fd, directory.as_fd(), hook.attach_type())
        .map_err(failed(&path, "attach"))?;
    pin_over(link.as_fd(), &path)
}

/// Gives the link at `path` our program.
pub(super) fn swap(path: &Path, program: Loaded<'_>) -> Result<(), DatapathError> {
    sys::open_pin(path)
        .and_then(|link| sys::link_update(link.as_fd(), program.fd))
        .map_err(failed(path, "swap the program of"))
}

/// Ends a hook; whether there was one. It has ended when this returns.
pub(super) fn unpin(path: &Path) -> Result<bool, DatapathError> {
    let Some(pinned) = open_if_pinned(path)? else {
        return Ok(false);
    };
    if is_mark(&pinned, path)? {
        // As long as there is a filter there is its mark.
        end_filter(path)?;
        std::fs::remove_file(path).map_err(failed(path, "unpin"))?;
    } else {
        std::fs::remove_file(path).map_err(failed(path, "unpin"))?;
        sys::link_detach(pinned.as_fd()).map_err(failed(path, "detach"))?;
    }
    Ok(true)
}

/// Removes what is pinned at `path` if it is a mark, and lets the filter stand.
pub(super) fn forget_mark(path: &Path) -> Result<(), DatapathError> {
    match open_if_pinned(path)? {
        Some(pinned) if is_mark(&pinned, path)? => {
            std::fs::remove_file(path).map_err(failed(path, "unpin"))
        }
        _ => Ok(()),
    }
}

/// Pins a link, or a mark (see [`clsact`]), under a name of its own first, because a rename replaces
/// and a pin does not. What had the name before ends, unless both are marks: then the filter is the
/// same.
pub(super) fn pin_over(new: BorrowedFd<'_>, path: &Path) -> Result<(), DatapathError> {
    let draft = draft_of(path);
    unpin(&draft)?;
    let old = open_if_pinned(path)?;
    sys::pin(new, &draft).map_err(failed(&draft, "pin"))?;
    std::fs::rename(&draft, path).map_err(failed(path, "pin"))?;
    let Some(old) = old else { return Ok(()) };
    if !is_mark(&old, path)? {
        return sys::link_detach(old.as_fd()).map_err(failed(path, "detach the old"));
    }
    if sys::is_program(new).map_err(failed(path, "look at"))? {
        return Ok(());
    }
    end_filter(path)
}

/// What is pinned there is a program, and marks a filter.
fn is_mark(pinned: &OwnedFd, path: &Path) -> Result<bool, DatapathError> {
    sys::is_program(pinned.as_fd()).map_err(failed(path, "look at"))
}

/// Takes the filter that the mark at `path` stands for off its device. Drafts stand for none.
fn end_filter(path: &Path) -> Result<(), DatapathError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match device::parse_pin(&name) {
        Some((ifindex, direction)) => {
            clsact::detach(ifindex, direction).map_err(failed(path, "detach the filter of"))
        }
        None => Ok(()),
    }
}

pub(super) fn open_if_pinned(path: &Path) -> Result<Option<OwnedFd>, DatapathError> {
    match sys::open_pin(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, "open")(error)),
    }
}

/// The name a link has between its attaching and its taking over.
pub(super) fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(DRAFT);
    PathBuf::from(name)
}

/// Bpffs takes no dots in names.
pub(super) const DRAFT: &str = "-new";

pub(super) fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> DatapathError {
    let link = path
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    move |error| DatapathError::Link {
        link,
        action,
        error,
    }
}
