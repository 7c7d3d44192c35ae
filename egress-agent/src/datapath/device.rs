//! Hooks on devices: one face for the two ways in which kernels have them.
//!
//! | | tcx | clsact |
//! |---|---|---|
//! | since | Linux 6.6 | tried from 6.1 on |
//! | what runs the program | a BPF link | a filter of the device's clsact qdisc |
//! | pinned as `dev-<ifindex>-<direction>` | the link | the program, as a mark: see [`clsact`] |
//! | kernel object | whole | in parts, for older verifiers |

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use aya_obj::generated::bpf_attach_type;
use serde::Serialize;

use super::links::{self, Direction, LinkState, Loaded, Tags, failed, pin_over, pinned_info};
use super::load::embedded;
use super::sys::{self, Target};
use super::{DatapathError, Pins, calls, clsact};

/// How programs are attached to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceHooks {
    Tcx,
    Clsact,
}

/// What the programs call that not every kernel without tcx has.
const NEEDED: [(ProgramType, BpfHelper, &str); 3] = [
    (
        ProgramType::SchedClassifier,
        BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
        "bpf_ktime_get_coarse_ns",
    ),
    (
        ProgramType::RawTracePoint,
        BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id,
        "bpf_get_current_ancestor_cgroup_id in raw tracepoints",
    ),
    (
        ProgramType::CgroupSkb,
        BpfHelper::BPF_FUNC_skb_ancestor_cgroup_id,
        "bpf_skb_ancestor_cgroup_id in cgroup_skb",
    ),
];

impl DeviceHooks {
    /// The better of those that this kernel has.
    pub fn best() -> Self {
        // Who may not ask is told so by `check`.
        if has_tcx().unwrap_or(true) && calls::are_possible() {
            Self::Tcx
        } else {
            Self::Clsact
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// Whether this program and this kernel can hold pods in this way.
    ///
    /// # Errors
    /// If they can't, in a sentence that says what is lacking.
    pub fn check(self) -> Result<(), DatapathError> {
        embedded(self)?;
        let has_tcx = has_tcx().map_err(|error| DatapathError::Io {
            what: "can't ask the kernel whether it has tcx hooks".into(),
            error,
        })?;
        match (self, has_tcx) {
            (Self::Tcx, false) => return Err(DatapathError::NoTcx),
            (Self::Tcx, true) if !calls::are_possible() => {
                return Err(DatapathError::NoKernelCalls);
            }
            (_, true) => return Ok(()),
            (Self::Clsact, false) => {}
        }
        let mut missing = Vec::new();
        for (program, helper, name) in NEEDED {
            let is_there =
                is_helper_supported(program, helper).map_err(|error| DatapathError::Aya {
                    what: format!("can't ask the kernel whether it has {name}"),
                    error: Box::new(error),
                })?;
            if !is_there {
                missing.push(name);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let release = nix::sys::utsname::uname();
        let release = release.map(|names| names.release().to_string_lossy().into_owned());
        Err(DatapathError::OldKernel {
            release: release.unwrap_or_default(),
            missing: missing.join(" and "),
        })
    }
}

/// tcx came with Linux 6.6; a kernel without it doesn't understand the question for its programs.
fn has_tcx() -> io::Result<bool> {
    // The loopback device is there in every network namespace.
    match sys::query_tcx(1, bpf_attach_type::BPF_TCX_INGRESS) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Device and direction in the name of a pin; none for other pins.
pub(super) fn parse_pin(name: &str) -> Option<(u32, Direction)> {
    let (ifindex, direction) = name.strip_prefix("dev-")?.split_once('-')?;
    let direction = Direction::BOTH
        .into_iter()
        .find(|d| d.name() == direction)?;
    Some((ifindex.parse().ok()?, direction))
}

/// Whether the hook of a device is what it should be. `tags` are those of our programs; none if they
/// are not known (another layout), so that any version will do. A hook of the other way has another program.
///
/// # Errors
/// If the kernel doesn't answer. That nothing is pinned there is an answer: none.
pub fn state(
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
            if tags.is_some_and(|tags| tags.by_sender == Some(info.tag)) {
                LinkState::BySender
            } else if !is_first(ifindex, direction, info.id)? {
                LinkState::Displaced
            } else if tags.is_some_and(|tags| tags.wanted != info.tag) {
                LinkState::OldProgram
            } else {
                LinkState::Good
            }
        }
        Target::Program => clsact::state(
            ifindex,
            direction,
            info.program,
            tags.map(|tags| tags.wanted),
        )
        .map_err(failed(&path, "look for the filter of"))?,
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

/// Those of these devices where programs of somebody else see what comes in beside ours.
pub(super) fn shared(
    pins: &Pins,
    devices: impl Iterator<Item = u32>,
) -> Result<BTreeSet<u32>, DatapathError> {
    let mut shared = BTreeSet::new();
    let mut filters = clsact::Others::open();
    for ifindex in devices {
        let path = pins.device_link(ifindex, Direction::Ingress);
        let ours = pinned_info(&path)?.map(|info| info.id);
        let links = match sys::query_tcx(ifindex, Direction::Ingress.attach_type()) {
            Ok(links) => links,
            // No tcx, or the device has gone.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {
                Vec::new()
            }
            Err(error) => return Err(failed(&path, "look for programs beside")(error)),
        };
        if links.iter().any(|id| Some(*id) != ours)
            || filters
                .are_on(ifindex, Direction::Ingress)
                .map_err(failed(&path, "look for filters beside"))?
        {
            shared.insert(ifindex);
        }
    }
    Ok(shared)
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
/// A hook that is pinned there already is replaced without a gap: the new one is attached first,
/// then takes the name of the old, which ends that. By tcx the kernel takes no program twice on one
/// device, so it must be another copy than the [`standing_program`].
pub(super) fn attach(
    hooks: DeviceHooks,
    pins: &Pins,
    ifindex: u32,
    direction: Direction,
    program: Loaded<'_>,
) -> Result<(), DatapathError> {
    let path = pins.device_link(ifindex, direction);
    let attach = match hooks {
        DeviceHooks::Tcx => attach_tcx,
        DeviceHooks::Clsact => attach_clsact,
    };
    attach(&path, ifindex, direction, program)
}

fn attach_tcx(
    path: &Path,
    ifindex: u32,
    direction: Direction,
    program: Loaded<'_>,
) -> Result<(), DatapathError> {
    let link = sys::link_tcx(program.fd, ifindex, direction.attach_type())
        .map_err(failed(path, "attach"))?;
    pin_over(link.as_fd(), path)
}

fn attach_clsact(
    path: &Path,
    ifindex: u32,
    direction: Direction,
    program: Loaded<'_>,
) -> Result<(), DatapathError> {
    let attach = || -> io::Result<()> { clsact::attach(ifindex, direction, program.fd) };
    let pinned = pinned_info(path)?.map(|info| info.target);
    // A link holds until the filter stands; else the mark comes first.
    let is_link = pinned.is_some_and(|target| target != Target::Program);
    if is_link {
        attach().map_err(failed(path, "attach"))?;
        pin_over(program.fd, path)
    } else {
        // Before there is a mark, since it fails where the device is gone.
        clsact::prepare(ifindex).map_err(failed(path, "attach"))?;
        pin_over(program.fd, path)?;
        attach().map_err(failed(path, "attach"))
    }
}

/// Gives the hook at `path` our program.
pub(super) fn swap(
    hooks: DeviceHooks,
    pins: &Pins,
    ifindex: u32,
    direction: Direction,
    program: Loaded<'_>,
) -> Result<(), DatapathError> {
    let path = pins.device_link(ifindex, direction);
    let pinned = pinned_info(&path)?.map(|info| info.target);
    match (hooks, pinned) {
        (DeviceHooks::Tcx, Some(Target::Tcx(..))) => links::swap(&path, program),
        (DeviceHooks::Clsact, Some(Target::Program)) => {
            clsact::swap(ifindex, direction, program.fd).map_err(failed(&path, "swap"))?;
            pin_over(program.fd, &path)
        }
        _ => attach(hooks, pins, ifindex, direction, program),
    }
}
