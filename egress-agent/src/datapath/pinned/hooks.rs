//! The pinned links, and their end.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::loaded_programs;

use super::super::{DeviceHooks, LinkState, clsact, device, links, procfs, sys};
use super::{Pinned, PinnedError, layouts, list};

/// A pinned hook, as the kernel describes it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedHook {
    /// Name of the pin: `dev-<ifindex>-<direction>` or `cg-<hook>`.
    pub pin: String,
    /// Id of its program.
    pub program_id: u32,
    /// Tag of its program, in hexadecimal.
    pub program_tag: String,
    /// How it is attached; none for one on a cgroup.
    pub way: Option<DeviceHooks>,
    pub target: HookTarget,
}

/// A device with hooks of ours, as seen from the caller's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookedDevice {
    pub name: String,
    /// Ours runs before every other program, at both hooks.
    pub is_first: bool,
}

/// What a hook hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookTarget {
    /// A device, by its interface index in the agent's network namespace.
    Device(u32),
    /// A cgroup, by its id.
    Cgroup(u64),
    /// The device or cgroup is gone, and the hook with it.
    Gone,
}

impl Pinned {
    /// All pinned hooks, sorted by the name of their pin: also those of another layout that an agent
    /// is taking over.
    pub fn hooks(&self) -> Result<Vec<PinnedHook>, PinnedError> {
        let mut hooks = self.own_hooks()?;
        let Some(parent) = self.root.parent() else {
            return Ok(hooks);
        };
        for name in layouts(parent)? {
            let root = parent.join(name);
            if root != self.root {
                let others = Self { root }.own_hooks()?;
                let news = |it: &PinnedHook| hooks.iter().all(|hook| hook.pin != it.pin);
                let others: Vec<_> = others.into_iter().filter(news).collect();
                hooks.extend(others);
            }
        }
        hooks.sort_by(|a, b| a.pin.cmp(&b.pin));
        Ok(hooks)
    }

    /// Those of this layout. Filters are looked for in the caller's network namespace, which must be
    /// the node's.
    pub fn own_hooks(&self) -> Result<Vec<PinnedHook>, PinnedError> {
        let directory = self.root.join("links");
        let mut hooks = Vec::new();
        for pin in list(&directory)? {
            let path = directory.join(&pin);
            let read = sys::open_pin(&path).and_then(|link| procfs::describe(link.as_fd()));
            match read {
                Ok(facts) => hooks.push(found(pin, &facts)),
                // Unpinned since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(PinnedError::Io { path, error }),
            }
        }
        Ok(hooks)
    }

    /// Names of the devices that these hooks are on, by interface index, and whether ours come
    /// first there. From another network namespace than the node's a device has no name: its index
    /// means another one there.
    pub fn hooked_devices(hooks: &[PinnedHook]) -> BTreeMap<u32, HookedDevice> {
        let Ok(interfaces) = nix::net::if_::if_nameindex() else {
            return BTreeMap::new();
        };
        let mut devices = BTreeMap::new();
        for interface in &interfaces {
            let Ok(name) = interface.name().to_str() else {
                continue;
            };
            let mut is_first = true;
            let mut is_ours = false;
            for hook in hooks {
                if hook.target != HookTarget::Device(interface.index()) {
                    continue;
                }
                if let Some(first) = hook.comes_first(interface.index()) {
                    is_ours = true;
                    is_first &= first;
                }
            }
            if is_ours {
                let name = name.to_owned();
                devices.insert(interface.index(), HookedDevice { name, is_first });
            }
        }
        devices
    }

    /// Which of these programs the kernel still has: none is found by who may not list programs, which
    /// takes `CAP_SYS_ADMIN`.
    pub fn loaded(programs: &BTreeSet<u32>) -> BTreeSet<u32> {
        loaded_programs()
            .filter_map(Result::ok)
            .map(|program| program.id())
            .filter(|id| programs.contains(id))
            .collect()
    }

    /// Takes down all pins: links first, so that no program looks into maps that go. Returns the
    /// names of what was removed; enforcement has ended then.
    pub fn remove(self) -> Result<Vec<String>, PinnedError> {
        let mut removed = Vec::new();
        for part in ["links", "maps", "schemas"] {
            let directory = self.root.join(part);
            for pin in list(&directory)? {
                let path = directory.join(&pin);
                let unpinned = if part == "links" {
                    links::unpin(&path).map(drop).map_err(io::Error::other)
                } else {
                    std::fs::remove_file(&path)
                };
                unpinned.map_err(|error| PinnedError::Io { path, error })?;
                if part != "schemas" {
                    removed.push(format!("{part}/{pin}"));
                }
            }
            remove_directory(&directory)?;
        }
        remove_directory(&self.root)?;
        if let Some(parent) = self.root.parent()
            && layouts(parent)?.is_empty()
        {
            for name in list(parent)? {
                // Who was last.
                let path = parent.join(name);
                std::fs::remove_file(&path).map_err(|error| PinnedError::Io { path, error })?;
            }
            remove_directory(parent)?;
        }
        Ok(removed)
    }
}

impl PinnedHook {
    /// Whether it comes first on the device of this index; none if it is not there.
    fn comes_first(&self, ifindex: u32) -> Option<bool> {
        if self.way == Some(DeviceHooks::Clsact) {
            return match self.filter() {
                LinkState::Gone | LinkState::Wrong => None,
                state => Some(state != LinkState::Displaced),
            };
        }
        let (_, direction) = device::parse_pin(&self.pin)?;
        let programs = sys::query_tcx_programs(ifindex, direction.attach_type()).ok()?;
        let place = programs.iter().position(|id| *id == self.program_id);
        place.map(|place| place == 0)
    }

    /// How it is with the filter that its program is pinned for.
    fn filter(&self) -> LinkState {
        let place = device::parse_pin(&self.pin);
        place.map_or(LinkState::Wrong, |(ifindex, direction)| {
            // What can't be listed is not there, as far as anybody can tell.
            clsact::state(ifindex, direction, self.program_id, None).unwrap_or(LinkState::Gone)
        })
    }
}

/// As the facts say; but of a filter they say only that there should be one.
fn found(pin: String, facts: &BTreeMap<String, String>) -> PinnedHook {
    let mut hook = hook(pin, facts);
    if hook.way == Some(DeviceHooks::Clsact)
        && let Some((ifindex, _)) = device::parse_pin(&hook.pin)
        && hook.filter().stands()
    {
        hook.target = HookTarget::Device(ifindex);
    }
    hook
}

fn remove_directory(path: &Path) -> Result<(), PinnedError> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PinnedError::Io {
            path: path.to_owned(),
            error,
        }),
        _ => Ok(()),
    }
}

fn hook(pin: String, facts: &BTreeMap<String, String>) -> PinnedHook {
    let number = |key: &str| facts.get(key).and_then(|text| text.parse::<u64>().ok());
    // Both numbers turn 0 when what the link hangs on goes.
    let target = match (number("ifindex"), number("cgroup_id")) {
        (Some(ifindex), _) if ifindex != 0 => {
            u32::try_from(ifindex).map_or(HookTarget::Gone, HookTarget::Device)
        }
        (_, Some(cgroup)) if cgroup != 0 => HookTarget::Cgroup(cgroup),
        _ => HookTarget::Gone,
    };
    let program_id = number("prog_id").and_then(|id| u32::try_from(id).ok());
    let way = if facts.contains_key("prog_type") {
        Some(DeviceHooks::Clsact)
    } else {
        facts.contains_key("ifindex").then_some(DeviceHooks::Tcx)
    };
    PinnedHook {
        pin,
        way,
        program_id: program_id.unwrap_or(0),
        program_tag: facts.get("prog_tag").cloned().unwrap_or_default(),
        target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::procfs::facts;

    #[test]
    fn links_are_read_from_procfs() {
        let tcx = "pos:\t0\nlink_type:\ttcx\nlink_id:\t7\nprog_tag:\t00aabb\nprog_id:\t41\n\
                   ifindex:\t12\nattach_type:\t46 (ingress)\n";
        let found = hook("dev-12-ingress".to_owned(), &facts(tcx));
        assert_eq!(found.target, HookTarget::Device(12));
        assert_eq!(found.way, Some(DeviceHooks::Tcx));
        assert_eq!(
            (found.program_id, found.program_tag.as_str()),
            (41, "00aabb")
        );
        let gone = tcx.replace("ifindex:\t12", "ifindex:\t0");
        assert_eq!(hook(String::new(), &facts(&gone)).target, HookTarget::Gone);
        let cgroup = "link_type:\tcgroup\nprog_tag:\t01\nprog_id:\t2\ncgroup_id:\t345\n";
        let found = hook(String::new(), &facts(cgroup));
        assert_eq!(found.target, HookTarget::Cgroup(345));
        assert_eq!(found.way, None);
        // A mark tells its program, and not whether there is a filter.
        let mark = "prog_type:\t3\nprog_jited:\t1\nprog_tag:\t02\nprog_id:\t9\n";
        let found = hook("dev-12-egress".to_owned(), &facts(mark));
        assert_eq!(found.way, Some(DeviceHooks::Clsact));
        assert_eq!((found.program_id, found.target), (9, HookTarget::Gone));
    }
}
