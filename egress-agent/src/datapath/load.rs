//! Loads the kernel object over the pinned maps.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use aya::programs::{Program, RawTracePointRunOptions, TestRun as _};
use aya::{Ebpf, EbpfLoader};
use aya_obj::Object;
use egress_common::maps::{Endpoint, NO_WAYS, covered_mark, covered_place};
use egress_common::offload::SKB_FIELDS;

use super::device::{self, DeviceHooks};
use super::early::{Early, Turn};
use super::links::{self, BY_SENDER, CgroupHook, DRAFT, Direction, LinkState, Loaded, Tags};
use super::{DatapathError, Maps, Observed, Pins, btf, calls, sys, takeover};

/// The kernel objects that were built into this program.
static WHOLE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress-ebpf.o"));
static IN_PARTS: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress-ebpf-in-parts.o"));

/// The kernel object that was built into this program for kernels with these hooks.
///
/// # Errors
/// If it was built without.
pub fn embedded(hooks: DeviceHooks) -> Result<&'static [u8], DatapathError> {
    let object = match hooks {
        DeviceHooks::Tcx => WHOLE,
        DeviceHooks::Clsact => IN_PARTS,
    };
    if object.is_empty() {
        Err(DatapathError::NoObject)
    } else {
        Ok(object)
    }
}

/// The kernel object for these hooks, as this kernel takes it.
///
/// # Errors
/// If the program was built without, or the kernel lacks what the object calls.
pub fn object(hooks: DeviceHooks) -> Result<&'static [u8], DatapathError> {
    static WHOLE_HERE: OnceLock<&'static [u8]> = OnceLock::new();
    let object = embedded(hooks)?;
    match (hooks, WHOLE_HERE.get()) {
        (DeviceHooks::Clsact, _) => Ok(object),
        (DeviceHooks::Tcx, Some(object)) => Ok(object),
        (DeviceHooks::Tcx, None) => {
            let object = calls::filled_in(object)?;
            Ok(WHOLE_HERE.get_or_init(|| object))
        }
    }
}

/// The program that is run, not attached.
const DEPTH: &str = "sp_depth";
/// The deepest place at which a cgroup is looked for; clusters in a machine's containers, and those
/// in such a cluster's, are at less than ten.
const DEEPEST: u32 = 32;

/// The kubepods cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cgroup {
    path: PathBuf,
    id: u64,
}

/// Loaded programs, opened maps, and the pins.
#[derive(Debug)]
pub struct Datapath {
    pins: Pins,
    pub maps: Maps,
    hooks: DeviceHooks,
    object: &'static [u8],
    programs: Ebpf,
    /// A second copy, loaded when a link must be replaced by another of the same program.
    spare: Option<Ebpf>,
    /// Tag of each program, by name.
    tags: BTreeMap<String, [u8; 8]>,
    cgroup: Cgroup,
    turn: Turn,
}

impl Datapath {
    /// Loads the object for these hooks with its maps pinned, or taken over where they are pinned
    /// already. Attaches nothing. [`DeviceHooks::check`] tells before whether the kernel has these.
    /// `kubepods` is the cgroup that the cgroup hooks go to, and its id.
    ///
    /// # Errors
    /// If a pinned map is not what the object declares, or the kernel refuses a program.
    pub fn load(
        bpffs: &Path,
        hooks: DeviceHooks,
        kubepods: (&Path, u64),
    ) -> Result<Self, DatapathError> {
        let object = object(hooks)?;
        let pins = Pins::at(bpffs)?;
        takeover::begin(&pins)?;
        let parsed = Object::parse(object).map_err(|error| DatapathError::Aya {
            what: "can't read the kernel object".into(),
            error: Box::new(error),
        })?;
        pins.check_maps(&parsed)?;
        // What a replacement that was cut short left: the link before it still stands.
        for name in Pins::list(&pins.links())? {
            if name.ends_with(DRAFT) {
                links::unpin(&pins.links().join(name))?;
            }
        }
        let programs = load(&pins, hooks, object)?;
        let mut tags = BTreeMap::new();
        for name in program_names(hooks) {
            let (_, tag) = info(&programs, name)?;
            tags.insert(name.to_owned(), tag);
        }
        let maps = Maps::open(&pins)?;
        for other in pins.others()? {
            takeover::carry(&other, &pins, &maps)?;
        }
        Ok(Self {
            pins,
            maps,
            hooks,
            object,
            programs,
            spare: None,
            tags,
            cgroup: Cgroup {
                path: kubepods.0.to_owned(),
                id: kubepods.1,
            },
            turn: Turn::default(),
        })
    }

    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// How programs are attached to devices.
    pub fn device_hooks(&self) -> DeviceHooks {
        self.hooks
    }

    /// Instructions that the verifier looked at, by program.
    pub fn verified_instructions(&self) -> BTreeMap<String, u32> {
        self.programs
            .programs()
            .filter_map(|(name, program)| {
                let count = program.info().ok()?.verified_instruction_count()?;
                Some((name.to_owned(), count))
            })
            .collect()
    }

    /// Reads the present state. Writes nothing.
    pub fn observe(&self) -> Result<Observed, DatapathError> {
        let mut observed = Observed {
            slots: self.maps.pod_info.entries()?.into_iter().collect(),
            devices: self.maps.devices.entries()?.into_iter().collect(),
            cgroups: self.maps.cgroups.entries()?.into_iter().collect(),
            policies: self.maps.policy_info.entries()?.into_iter().collect(),
            config: self.maps.config.get(&0)?,
            ..Observed::default()
        };
        for (cgroup, endpoint) in &observed.cgroups {
            let ways = endpoint.passes_with();
            let says = self.maps.covered.get(&covered_place(*cgroup))?;
            let says = says.filter(|says| says.mark == covered_mark(*cgroup));
            if says.is_some_and(|says| (says.slot, says.ways) != (endpoint.slot, ways)) {
                observed.mismarked.insert(*cgroup);
            }
            if ways != NO_WAYS && ways != 0 {
                let devices = self.maps.ways_of(endpoint.slot, ways)?;
                observed.ways.insert(endpoint.slot, devices);
            }
        }
        for name in Pins::list(&self.pins.links())? {
            if let Some((ifindex, direction)) = device::parse_pin(&name) {
                let state = device::state(&self.pins, ifindex, direction, self.tags(direction))?;
                observed
                    .links
                    .extend(state.map(|state| ((ifindex, direction), state)));
            }
        }
        for hook in CgroupHook::ALL {
            let tag = self.tags.get(hook.program()).copied();
            let state = links::cgroup_state(&self.pins, hook, self.cgroup.id, tag)?;
            observed
                .cgroup_links
                .extend(state.map(|state| (hook, state)));
        }
        for other in self.pins.others()? {
            self.observe_other(&other, &mut observed)?;
        }
        Ok(observed)
    }

    fn tags(&self, direction: Direction) -> Option<Tags> {
        Some(Tags {
            wanted: *self.tags.get(direction.program())?,
            by_sender: self.tags.get(BY_SENDER).copied(),
        })
    }

    /// Hooks that stand with a program of another layout.
    fn observe_other(&self, other: &Pins, observed: &mut Observed) -> Result<(), DatapathError> {
        observed.layouts.insert(other.name());
        for name in Pins::list(&other.links())? {
            let Some((ifindex, direction)) = device::parse_pin(&name) else {
                continue;
            };
            let state = device::state(other, ifindex, direction, None)?;
            if state.is_some_and(LinkState::stands) {
                let link = observed.links.entry((ifindex, direction));
                link.or_insert(LinkState::OldProgram);
            }
        }
        for hook in CgroupHook::ALL {
            let state = links::cgroup_state(other, hook, self.cgroup.id, None)?;
            if state.is_some_and(LinkState::stands) {
                let link = observed.cgroup_links.entry(hook);
                link.or_insert(LinkState::OldProgram);
            }
        }
        Ok(())
    }

    fn other(&self, name: &str) -> Result<Option<Pins>, DatapathError> {
        let mut others = self.pins.others()?.into_iter();
        Ok(others.find(|other| other.name() == name))
    }

    /// Takes over what has come into the maps of another layout meanwhile; returns the writes.
    pub fn carry(&self, layout: &str) -> Result<u64, DatapathError> {
        match self.other(layout)? {
            Some(other) => takeover::carry(&other, &self.pins, &self.maps),
            None => Ok(0),
        }
    }

    /// Removes the directory of another layout, and what hooks are left there.
    pub fn remove_layout(&self, layout: &str) -> Result<u64, DatapathError> {
        let writes = self.carry(layout)?;
        let Some(other) = self.other(layout)? else {
            return Ok(writes);
        };
        // Where both have a mark the filter is the one that we attached.
        for name in Pins::list(&self.pins.links())? {
            links::forget_mark(&other.links().join(name))?;
        }
        Ok(writes + other.remove()? as u64)
    }

    /// Lets a cgroup through the gate of another layout's programs, where they are in force.
    pub fn let_through_others(
        &self,
        cgroup: u64,
        endpoint: &Endpoint,
    ) -> Result<(), DatapathError> {
        takeover::let_through(&self.pins, cgroup, endpoint)
    }

    /// How deep kubepods is below the root of the machine's cgroup hierarchy, as the kernel counts
    /// and whatever a cgroup namespace shows; none if the calling thread is in no pod.
    pub fn kubepods_depth(&self) -> Result<Option<u32>, DatapathError> {
        let Some(Program::RawTracePoint(program)) = self.programs.program(DEPTH) else {
            return Err(missing(DEPTH));
        };
        for depth in 0..=DEEPEST {
            let mut options = RawTracePointRunOptions::new();
            options.args[..2].copy_from_slice(&[depth.into(), self.cgroup.id]);
            let result = program
                .test_run(options)
                .map_err(|error| DatapathError::Aya {
                    what: "can't ask the kernel how deep kubepods is".into(),
                    error: Box::new(error),
                })?;
            if result.return_value != 0 {
                return Ok(Some(depth));
            }
        }
        Ok(None)
    }

    /// What has devices judged by the sender from another thread; none where that is not done.
    ///
    /// # Errors
    /// If no more files can be opened.
    pub fn early(&self) -> Result<Option<Early>, DatapathError> {
        if self.hooks != DeviceHooks::Tcx {
            return Ok(None);
        }
        let program = loaded(&self.programs, BY_SENDER)?;
        let copy = program.fd.try_clone_to_owned();
        Ok(Some(Early {
            pins: self.pins.clone(),
            program: copy.map_err(|error| DatapathError::Io {
                what: format!("can't share program {BY_SENDER}"),
                error,
            })?,
            id: program.id,
            turn: self.turn.clone(),
        }))
    }

    /// Attaches first on the device; replaces a link of ours without a gap.
    pub fn attach(&mut self, ifindex: u32, direction: Direction) -> Result<(), DatapathError> {
        let turn = self.turn.clone();
        let _turn = turn.take();
        let program = loaded(&self.programs, direction.program())?;
        if self.hooks == DeviceHooks::Clsact {
            return device::attach(self.hooks, &self.pins, ifindex, direction, program);
        }
        // A device that is going may be here, too, with a link that has ended: loading takes a
        // second, in which pods that begin would wait.
        let standing = device::standing_program(&self.pins, ifindex, direction)?;
        if standing == Some(program.id) {
            return self.attach_spare(ifindex, direction);
        }
        match device::attach(self.hooks, &self.pins, ifindex, direction, program) {
            // The pin is gone, and somebody holds the link: the program is there already.
            Err(DatapathError::Link { error, .. })
                if error.raw_os_error() == Some(libc::EEXIST) =>
            {
                self.attach_spare(ifindex, direction)
            }
            attached => attached,
        }
    }

    fn attach_spare(&mut self, ifindex: u32, direction: Direction) -> Result<(), DatapathError> {
        if self.spare.is_none() {
            self.spare = Some(load(&self.pins, self.hooks, self.object)?);
        }
        let spare = self.spare.as_ref().expect("it was loaded just now");
        let program = loaded(spare, direction.program())?;
        device::attach(self.hooks, &self.pins, ifindex, direction, program)
    }

    /// Gives a hook that stands the program that we carry.
    pub fn swap(&self, ifindex: u32, direction: Direction) -> Result<(), DatapathError> {
        let _turn = self.turn.take();
        let program = loaded(&self.programs, direction.program())?;
        let path = self.pins.device_link(ifindex, direction);
        takeover::fetch(&self.pins, &path)?;
        device::swap(self.hooks, &self.pins, ifindex, direction, program)
    }

    /// Has the device judged by the sender: attaches the program for that, or gives it to a link of ours
    /// that stands.
    pub fn attach_by_sender(&self, ifindex: u32) -> Result<(), DatapathError> {
        let _turn = self.turn.take();
        let program = loaded(&self.programs, BY_SENDER)?;
        let path = self.pins.device_link(ifindex, Direction::Ingress);
        takeover::fetch(&self.pins, &path)?;
        let change = match device::standing_program(&self.pins, ifindex, Direction::Ingress)? {
            Some(_) => device::swap,
            None => device::attach,
        };
        change(self.hooks, &self.pins, ifindex, Direction::Ingress, program)
    }

    /// Takes the hook from the device; whether there was one.
    pub fn detach(&self, ifindex: u32, direction: Direction) -> Result<bool, DatapathError> {
        let _turn = self.turn.take();
        let mut found = links::unpin(&self.pins.device_link(ifindex, direction))?;
        for other in self.pins.others()? {
            found |= links::unpin(&other.device_link(ifindex, direction))?;
        }
        Ok(found)
    }

    /// Attaches to kubepods; replaces a link of ours.
    pub fn attach_cgroup(&self, hook: CgroupHook) -> Result<(), DatapathError> {
        let program = loaded(&self.programs, hook.program())?;
        links::attach_cgroup(&self.pins, hook, &self.cgroup.path, program)
    }

    /// As [`Datapath::swap`], for a hook on kubepods.
    pub fn swap_cgroup(&self, hook: CgroupHook) -> Result<(), DatapathError> {
        let program = loaded(&self.programs, hook.program())?;
        let path = self.pins.cgroup_link(hook);
        takeover::fetch(&self.pins, &path)?;
        links::swap(&path, program)
    }
}

/// Devices are judged by the sender where hooks are links, which are given another program at once.
fn program_names(hooks: DeviceHooks) -> impl Iterator<Item = &'static str> {
    let by_sender = (hooks == DeviceHooks::Tcx).then_some(BY_SENDER);
    let devices = Direction::BOTH.into_iter().map(Direction::program);
    let cgroup = CgroupHook::ALL.into_iter().map(CgroupHook::program);
    devices.chain(by_sender).chain(cgroup)
}

/// A loader that tells the programs what they must know of this kernel.
///
/// # Errors
/// If the kernel does not tell it.
pub fn loader() -> Result<EbpfLoader<'static>, DatapathError> {
    let mut loader = EbpfLoader::new();
    loader.override_global(SKB_FIELDS, &btf::description()?.skb, true);
    Ok(loader)
}

fn load(pins: &Pins, hooks: DeviceHooks, object: &[u8]) -> Result<Ebpf, DatapathError> {
    let mut programs = loader()?
        .default_map_pin_directory(pins.maps())
        .load(object)
        .map_err(|error| DatapathError::Aya {
            what: "can't load the kernel object".into(),
            error: Box::new(error),
        })?;
    for name in program_names(hooks).chain([DEPTH]) {
        let program = programs.program_mut(name).ok_or_else(|| missing(name))?;
        let result = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::RawTracePoint(program) => program.load(),
            _ => return Err(missing(name)),
        };
        result.map_err(|error| DatapathError::Aya {
            what: format!("the kernel refuses program {name}"),
            error: Box::new(error),
        })?;
    }
    Ok(programs)
}

fn missing(name: &str) -> DatapathError {
    DatapathError::Missing {
        what: format!("program {name}"),
    }
}

fn loaded<'a>(programs: &'a Ebpf, name: &str) -> Result<Loaded<'a>, DatapathError> {
    let fd = programs
        .program(name)
        .and_then(|program| program.fd().ok())
        .ok_or_else(|| missing(name))?
        .as_fd();
    let (id, _) = info(programs, name)?;
    Ok(Loaded { fd, id })
}

fn info(programs: &Ebpf, name: &str) -> Result<(u32, [u8; 8]), DatapathError> {
    let fd = programs
        .program(name)
        .and_then(|program| program.fd().ok())
        .ok_or_else(|| missing(name))?
        .as_fd();
    sys::program_info(fd).map_err(|error| DatapathError::Io {
        what: format!("can't look at program {name}"),
        error,
    })
}
