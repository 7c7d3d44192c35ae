//! Hooks: attached, pinned, verified, swapped.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya_obj::generated::bpf_attach_type;
use serde::Serialize;

use super::sys::{self, LinkInfo, Target};
use super::{DatapathError, Pins};

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

    fn attach_type(self) -> bpf_attach_type {
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

/// Device and direction in the name of a pin; none for other pins.
pub(super) fn parse_device_pin(name: &str) -> Option<(u32, Direction)> {
    let (ifindex, direction) = name.strip_prefix("dev-")?.split_once('-')?;
    let direction = Direction::BOTH
        .into_iter()
        .find(|d| d.name() == direction)?;
    Some((ifindex.parse().ok()?, direction))
}

/// The program on devices that may be a pod's.
pub const BY_SENDER: &str = "sp_by_sender";

/// Tags of our programs for packets from a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tags {
    /// The one that belongs there.
    pub wanted: [u8; 8],
    /// [`BY_SENDER`].
    pub by_sender: [u8; 8],
}

/// Whether the link of a device is what it should be. `tags` are those of our programs; none if they
/// are not known (another layout), so that any version will do.
///
/// # Errors
/// If the kernel doesn't answer. That nothing is pinned there is an answer: none.
pub fn device_state(
    pins: &Pins,
    ifindex: u32,
    direction: Direction,
    tags: Option<Tags>,
) -> Result<Option<LinkState>, DatapathError> {
    let path = pins.device_link(ifindex, direction);
    let Some(info) = pinned_info(&path)? else {
        return Ok(None);
    };
    let wanted = direction.attach_type() as u32;
    Ok(Some(match info.target {
        Target::Tcx(0, _) => LinkState::Gone,
        Target::Tcx(at, kind) if at == ifindex && kind == wanted => {
            if tags.is_some_and(|tags| tags.by_sender == info.tag) {
                LinkState::BySender
            } else if !is_first(ifindex, direction, info.id)? {
                LinkState::Displaced
            } else if tags.is_some_and(|tags| tags.wanted != info.tag) {
                LinkState::OldProgram
            } else {
                LinkState::Good
            }
        }
        _ => LinkState::Wrong,
    }))
}

/// As [`device_state`], for a hook on the cgroup with this id.
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

/// Whether this link runs before all others of the hook.
fn is_first(ifindex: u32, direction: Direction, link: u32) -> Result<bool, DatapathError> {
    match sys::query_tcx(ifindex, direction.attach_type()) {
        Ok(links) => Ok(links.first() == Some(&link)),
        // Gone since it was looked at, which the next look finds.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(true),
        Err(error) => Err(DatapathError::Link {
            link: format!("{} of device {ifindex}", direction.name()),
            action: "list programs on",
            error,
        }),
    }
}

fn pinned_info(path: &Path) -> Result<Option<LinkInfo>, DatapathError> {
    let Some(link) = open_if_pinned(path)? else {
        return Ok(None);
    };
    sys::link_info(link.as_fd())
        .map(Some)
        .map_err(failed(path, "look at"))
}

/// The program that our link runs on a device; none if no link is pinned, or its device is gone.
pub(super) fn standing_program(
    pins: &Pins,
    ifindex: u32,
    direction: Direction,
) -> Result<Option<u32>, DatapathError> {
    let info = pinned_info(&pins.device_link(ifindex, direction))?;
    let standing = info.filter(|info| !matches!(info.target, Target::Tcx(0, _)));
    Ok(standing.map(|info| info.program))
}

/// Attaches a program first on a device and pins it.
///
/// A link that is pinned there already is replaced without a gap: the new one is attached first,
/// then takes the name of the old, which ends that. The kernel takes no program twice on one
/// device, so it must be another copy than the [`standing_program`].
pub(super) fn attach_device(
    pins: &Pins,
    ifindex: u32,
    direction: Direction,
    program: Loaded<'_>,
) -> Result<(), DatapathError> {
    let path = pins.device_link(ifindex, direction);
    let link = sys::link_tcx(program.fd, ifindex, direction.attach_type()).map_err(|error| {
        // The kernel knows BPF_LINK_CREATE, but not this kind of link.
        if error.raw_os_error() == Some(libc::EINVAL) && !has_tcx() {
            DatapathError::NoTcx
        } else {
            failed(&path, "attach")(error)
        }
    })?;
    pin_over(&link, &path)
}

/// Attaches a program to a cgroup and pins it; as [`attach_device`].
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
    pin_over(&link, &path)
}

/// Gives the link at `path` our program.
pub(super) fn swap(path: &Path, program: Loaded<'_>) -> Result<(), DatapathError> {
    sys::open_pin(path)
        .and_then(|link| sys::link_update(link.as_fd(), program.fd))
        .map_err(failed(path, "swap the program of"))
}

/// Ends a link; whether there was one. It has ended when this returns.
pub(super) fn unpin(path: &Path) -> Result<bool, DatapathError> {
    let Some(link) = open_if_pinned(path)? else {
        return Ok(false);
    };
    std::fs::remove_file(path).map_err(failed(path, "unpin"))?;
    sys::link_detach(link.as_fd()).map_err(failed(path, "detach"))?;
    Ok(true)
}

/// Pins under a name of its own first, because a rename replaces and a pin does not. What had
/// the name before ends.
fn pin_over(link: &OwnedFd, path: &Path) -> Result<(), DatapathError> {
    let draft = draft_of(path);
    unpin(&draft)?;
    let old = open_if_pinned(path)?;
    sys::pin(link.as_fd(), &draft).map_err(failed(&draft, "pin"))?;
    std::fs::rename(&draft, path).map_err(failed(path, "pin"))?;
    match old {
        Some(old) => sys::link_detach(old.as_fd()).map_err(failed(path, "detach the old")),
        None => Ok(()),
    }
}

fn open_if_pinned(path: &Path) -> Result<Option<OwnedFd>, DatapathError> {
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

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> DatapathError {
    let link = path
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    move |error| DatapathError::Link {
        link,
        action,
        error,
    }
}

/// tcx came with Linux 6.6; a kernel without it refuses to list its programs.
pub(super) fn has_tcx() -> bool {
    // The loopback device is there in every network namespace.
    sys::query_tcx(1, bpf_attach_type::BPF_TCX_INGRESS).is_ok()
}
