//! Loads the kernel object over the pinned maps.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::programs::{Program, RawTracePointRunOptions, TestRun as _};
use aya::{Ebpf, EbpfLoader};
use aya_obj::Object;

use super::links::{self, CgroupHook, DRAFT, Direction, LinkState, Loaded};
use super::{DatapathError, Maps, Observed, Pins, sys};

/// The kernel object that was built into this program.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress-ebpf.o"));

/// The kernel object that was built into this program.
///
/// # Errors
/// If it was built without.
pub fn object() -> Result<&'static [u8], DatapathError> {
    if OBJECT.is_empty() {
        Err(DatapathError::NoObject)
    } else {
        Ok(OBJECT)
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
    object: Vec<u8>,
    programs: Ebpf,
    /// A second copy, loaded when a link must be replaced by another of the same program.
    spare: Option<Ebpf>,
    /// Tag of each program, by name.
    tags: BTreeMap<String, [u8; 8]>,
    cgroup: Cgroup,
}

impl Datapath {
    /// Loads `object` with its maps pinned, or taken over where they are pinned already.
    /// Attaches nothing. `kubepods` is the cgroup that the cgroup hooks go to, and its id.
    ///
    /// # Errors
    /// If a pinned map is not what the object declares, or the kernel refuses a program.
    pub fn load(
        bpffs: &Path,
        object: &[u8],
        kubepods: (&Path, u64),
    ) -> Result<Self, DatapathError> {
        if !links::has_tcx() {
            return Err(DatapathError::NoTcx);
        }
        let pins = Pins::at(bpffs)?;
        pins.create()?;
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
        let programs = load(&pins, object)?;
        let mut tags = BTreeMap::new();
        for name in program_names() {
            let (_, tag) = info(&programs, name)?;
            tags.insert(name.to_owned(), tag);
        }
        let maps = Maps::open(&pins)?;
        Ok(Self {
            pins,
            maps,
            object: object.to_vec(),
            programs,
            spare: None,
            tags,
            cgroup: Cgroup {
                path: kubepods.0.to_owned(),
                id: kubepods.1,
            },
        })
    }

    pub fn pins(&self) -> &Pins {
        &self.pins
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
        for name in Pins::list(&self.pins.links())? {
            if let Some((ifindex, direction)) = links::parse_device_pin(&name) {
                let tag = self.tags.get(direction.program()).copied();
                let state = links::device_state(&self.pins, ifindex, direction, tag)?;
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
        Ok(observed)
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

    /// Devices on which another program has come before ours.
    pub fn displaced(&self) -> Result<Vec<(u32, Direction)>, DatapathError> {
        let mut displaced = Vec::new();
        for name in Pins::list(&self.pins.links())? {
            if let Some((ifindex, direction)) = links::parse_device_pin(&name)
                && links::device_state(&self.pins, ifindex, direction, None)?
                    == Some(LinkState::Displaced)
            {
                displaced.push((ifindex, direction));
            }
        }
        Ok(displaced)
    }

    /// Attaches first on the device; replaces a link of ours without a gap.
    pub fn attach(&mut self, ifindex: u32, direction: Direction) -> Result<(), DatapathError> {
        let name = direction.program();
        let mut program = loaded(&self.programs, name)?;
        // A device that is going may be here, too, with a link that has ended: loading takes a
        // second, in which pods that begin would wait.
        let standing = links::standing_program(&self.pins, ifindex, direction)?;
        if standing == Some(program.id) {
            if self.spare.is_none() {
                self.spare = Some(load(&self.pins, &self.object)?);
            }
            let spare = self.spare.as_ref().expect("it was loaded just now");
            program = loaded(spare, name)?;
        }
        links::attach_device(&self.pins, ifindex, direction, program)
    }

    /// Gives a link that stands the program that we carry.
    pub fn swap(&self, ifindex: u32, direction: Direction) -> Result<(), DatapathError> {
        let program = loaded(&self.programs, direction.program())?;
        links::swap(&self.pins.device_link(ifindex, direction), program)
    }

    /// Takes the hook from the device; whether there was one.
    pub fn detach(&self, ifindex: u32, direction: Direction) -> Result<bool, DatapathError> {
        links::unpin(&self.pins.device_link(ifindex, direction))
    }

    /// Attaches to kubepods; replaces a link of ours.
    pub fn attach_cgroup(&self, hook: CgroupHook) -> Result<(), DatapathError> {
        let program = loaded(&self.programs, hook.program())?;
        links::attach_cgroup(&self.pins, hook, &self.cgroup.path, program)
    }

    /// As [`Datapath::swap`], for a hook on kubepods.
    pub fn swap_cgroup(&self, hook: CgroupHook) -> Result<(), DatapathError> {
        let program = loaded(&self.programs, hook.program())?;
        links::swap(&self.pins.cgroup_link(hook), program)
    }
}

fn program_names() -> impl Iterator<Item = &'static str> {
    let devices = Direction::BOTH.into_iter().map(Direction::program);
    devices.chain(CgroupHook::ALL.into_iter().map(CgroupHook::program))
}

fn load(pins: &Pins, object: &[u8]) -> Result<Ebpf, DatapathError> {
    let mut programs = EbpfLoader::new()
        .default_map_pin_directory(pins.maps())
        .load(object)
        .map_err(|error| DatapathError::Aya {
            what: "can't load the kernel object".into(),
            error: Box::new(error),
        })?;
    for name in program_names().chain([DEPTH]) {
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
