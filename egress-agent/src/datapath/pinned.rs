//! What is pinned, read by path: for the CLI and the telemetry, whether an agent runs or not.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray, RingBuf};
use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use egress_common::event::Event;
use egress_common::maps::{
    Config, Count, Endpoint, ExactKey4, ExactKey6, ExactRule, Flow, FlowKey, Fragment, FragmentKey,
    Inbound, Origin, OriginKey, PodCounters, PodInfo, PolicyInfo, PrefixKey4, PrefixKey6,
    PrefixRule, RuleInfo, RuleKey, name,
};
use egress_common::reason::REASONS;

use super::sys;

/// Directory of the pins below the bpffs; the last part is the version of their layout.
const DIRECTORY: &str = "sallyport/v1";

/// Why something pinned could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PinnedError {
    #[error(
        "no pins at {}: is the agent installed? Start it with `egress-agent --bpffs {} ...`, or \
         name its BPF file system with --bpffs",
        root.display(), bpffs.display()
    )]
    NotInstalled { root: PathBuf, bpffs: PathBuf },
    #[error("can't read {}: {error}{}", path.display(), hint(error))]
    Io {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("can't {action} the pinned map {map}: {error}; reading pins needs root (CAP_BPF)")]
    Map {
        map: String,
        action: &'static str,
        #[source]
        error: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        "; reading pins needs root (CAP_BPF)"
    } else {
        ""
    }
}

/// The pins of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    root: PathBuf,
}

/// What the kernel tells of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapFacts {
    /// Kind of map, as the kernel names it without its prefix: `hash`, `lpm_trie`.
    pub kind: String,
    /// Bytes.
    pub key_size: u32,
    /// Bytes.
    pub value_size: u32,
    /// Entries; for a ring buffer bytes.
    pub max_entries: u32,
    /// Bytes of kernel memory that the map holds now; none where the kernel does not say.
    pub memory: Option<u64>,
}

/// A pinned link, as the kernel describes it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedHook {
    /// Name of the pin: `dev-<ifindex>-<direction>` or `cg-<hook>`.
    pub pin: String,
    /// Id of its program.
    pub program_id: u32,
    /// Tag of its program, in hexadecimal.
    pub program_tag: String,
    pub target: HookTarget,
}

/// A device with hooks of ours, as seen from the caller's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookedDevice {
    pub name: String,
    /// Ours runs before every other program, at both hooks.
    pub is_first: bool,
}

/// What a link hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookTarget {
    /// A device, by its interface index in the agent's network namespace.
    Device(u32),
    /// A cgroup, by its id.
    Cgroup(u64),
    /// The device or cgroup is gone, and the hook with it.
    Gone,
}

/// An opened hash map, for single look-ups.
pub struct Hash<K, V> {
    map: HashMap<MapData, K, V>,
    name: &'static str,
}

impl<K, V> std::fmt::Debug for Hash<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hash")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<K: Pod, V: Pod> Hash<K, V> {
    /// The value of `key`; none if there is none.
    pub fn get(&self, key: &K) -> Result<Option<V>, PinnedError> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(self.name, "read")(error)),
        }
    }
}

/// The opened ring of events. The kernel keeps one position for all readers: only one may read.
pub struct EventRing {
    ring: RingBuf<MapData>,
    events: PhantomData<Event>,
}

impl std::fmt::Debug for EventRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventRing").finish_non_exhaustive()
    }
}

impl AsRawFd for EventRing {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl AsFd for EventRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl EventRing {
    /// Takes the next event out of the ring; none if it is empty. One that is not of the layout
    /// this version knows is passed over.
    pub fn take(&mut self) -> Option<Event> {
        loop {
            let item = self.ring.next()?;
            if item.len() >= size_of::<Event>() {
                // SAFETY: long enough, and every bit pattern is an `Event`.
                return Some(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
            }
        }
    }
}

impl Pinned {
    /// Finds the pins below a mounted bpffs.
    ///
    /// # Errors
    /// If there are none.
    pub fn open(bpffs: &Path) -> Result<Self, PinnedError> {
        let root = bpffs.join(DIRECTORY);
        if root.join("maps").is_dir() {
            Ok(Self { root })
        } else {
            Err(PinnedError::NotInstalled {
                root,
                bpffs: bpffs.to_owned(),
            })
        }
    }

    /// The versioned directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn map(&self, map: &str) -> Result<Map, PinnedError> {
        let data =
            MapData::from_pin(self.root.join("maps").join(map)).map_err(failed(map, "open"))?;
        Map::from_map_data(data).map_err(failed(map, "open"))
    }

    /// Names of the pinned maps, sorted.
    pub fn map_names(&self) -> Result<Vec<String>, PinnedError> {
        list(&self.root.join("maps"))
    }

    pub fn map_facts(&self, map: &str) -> Result<MapFacts, PinnedError> {
        let path = self.root.join("maps").join(map);
        let info = MapInfo::from_pin(path).map_err(failed(map, "look at"))?;
        let kind = info.map_type().map_err(failed(map, "look at"))?;
        let fd = info.fd().map_err(failed(map, "look at"))?;
        let described = describe(fd.as_fd().as_raw_fd()).unwrap_or_default();
        Ok(MapFacts {
            kind: snake(&format!("{kind:?}")),
            key_size: info.key_size(),
            value_size: info.value_size(),
            max_entries: info.max_entries(),
            memory: described
                .get("memlock")
                .and_then(|bytes| bytes.parse().ok()),
        })
    }

    /// Opens a hash map for look-ups.
    pub fn hash<K: Pod, V: Pod>(&self, map: &'static str) -> Result<Hash<K, V>, PinnedError> {
        Ok(Hash {
            map: HashMap::try_from(self.map(map)?).map_err(failed(map, "open"))?,
            name: map,
        })
    }

    /// All entries of a hash map as they stand. A map that changes meanwhile may show an entry
    /// twice or leave out one.
    pub fn entries<K: Pod, V: Pod>(&self, map: &'static str) -> Result<Vec<(K, V)>, PinnedError> {
        let hash = self.hash::<K, V>(map)?;
        // A changing map may make the walk begin again; it must end all the same.
        let most = 2 * self.map_facts(map)?.max_entries as usize;
        let mut entries = Vec::new();
        for entry in hash.map.iter().take(most) {
            match entry {
                Ok(entry) => entries.push(entry),
                // Removed between its key and its value.
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(failed(map, "list")(error)),
            }
        }
        Ok(entries)
    }

    /// All entries of a trie: bits of the key that count, key, value.
    pub fn prefixes<K: Pod, V: Pod>(
        &self,
        map: &'static str,
    ) -> Result<Vec<(u32, K, V)>, PinnedError> {
        let trie: LpmTrie<_, K, V> =
            LpmTrie::try_from(self.map(map)?).map_err(failed(map, "open"))?;
        let mut entries = Vec::new();
        for entry in trie.iter() {
            match entry {
                Ok((key, value)) => entries.push((key.prefix_len(), key.data(), value)),
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(failed(map, "list")(error)),
            }
        }
        Ok(entries)
    }

    fn trie_len<K: Pod>(&self, map: &'static str) -> Result<usize, PinnedError> {
        let trie: LpmTrie<_, K, PrefixRule> =
            LpmTrie::try_from(self.map(map)?).map_err(failed(map, "open"))?;
        Ok(trie
            .iter()
            .map_while(|entry: Result<(Key<K>, _), _>| entry.ok())
            .count())
    }

    /// Entries in use; none for a map that is always full (an array) or has none (the ring).
    pub fn used(&self, map: &str) -> Result<Option<u64>, PinnedError> {
        let used = match map {
            name::DEVICES => self.entries::<u32, Endpoint>(name::DEVICES)?.len(),
            name::CGROUPS => self.entries::<u64, Endpoint>(name::CGROUPS)?.len(),
            name::EXACT4 => self.entries::<ExactKey4, ExactRule>(name::EXACT4)?.len(),
            name::EXACT6 => self.entries::<ExactKey6, ExactRule>(name::EXACT6)?.len(),
            name::PREFIX4 => self.trie_len::<PrefixKey4>(name::PREFIX4)?,
            name::PREFIX6 => self.trie_len::<PrefixKey6>(name::PREFIX6)?,
            name::FLOWS_IN => self.entries::<FlowKey, Flow>(name::FLOWS_IN)?.len(),
            name::FLOWS_OUT => self.entries::<FlowKey, Flow>(name::FLOWS_OUT)?.len(),
            name::FRAGMENTS => self
                .entries::<FragmentKey, Fragment>(name::FRAGMENTS)?
                .len(),
            name::ORIGINS => self.entries::<OriginKey, Origin>(name::ORIGINS)?.len(),
            name::POD_INFO => self.entries::<u32, PodInfo>(name::POD_INFO)?.len(),
            name::POLICY_INFO => self.entries::<u32, PolicyInfo>(name::POLICY_INFO)?.len(),
            name::RULE_INFO => self.entries::<RuleKey, RuleInfo>(name::RULE_INFO)?.len(),
            _ => return Ok(None),
        };
        Ok(Some(used as u64))
    }

    /// The node's settings.
    pub fn config(&self) -> Result<Config, PinnedError> {
        let array: Array<_, Config> =
            Array::try_from(self.map(name::CONFIG)?).map_err(failed(name::CONFIG, "open"))?;
        array.get(&0, 0).map_err(failed(name::CONFIG, "read"))
    }

    /// Counters of each of these slots, summed over the CPUs.
    pub fn counters(
        &self,
        slots: impl IntoIterator<Item = u32>,
    ) -> Result<BTreeMap<u32, PodCounters>, PinnedError> {
        let array: PerCpuArray<_, PodCounters> = PerCpuArray::try_from(self.map(name::COUNTERS)?)
            .map_err(failed(name::COUNTERS, "open"))?;
        let mut sums = BTreeMap::new();
        for slot in slots {
            let values = array
                .get(&slot, 0)
                .map_err(failed(name::COUNTERS, "read"))?;
            sums.insert(slot, sum(values.iter()));
        }
        Ok(sums)
    }

    /// Numbers of the networks that have opened flows to the pod of this slot.
    pub fn inbound(&self, slot: u32) -> Result<Inbound, PinnedError> {
        let array: Array<_, Inbound> =
            Array::try_from(self.map(name::INBOUND)?).map_err(failed(name::INBOUND, "open"))?;
        array.get(&slot, 0).map_err(failed(name::INBOUND, "read"))
    }

    /// Opens the ring of events. The caller must be its only reader: see `telemetry::lock`.
    pub fn events(&self) -> Result<EventRing, PinnedError> {
        let ring =
            RingBuf::try_from(self.map(name::EVENTS)?).map_err(failed(name::EVENTS, "open"))?;
        Ok(EventRing {
            ring,
            events: PhantomData,
        })
    }

    /// All pinned links, sorted by the name of their pin.
    pub fn hooks(&self) -> Result<Vec<PinnedHook>, PinnedError> {
        let directory = self.root.join("links");
        let mut hooks = Vec::new();
        for pin in list(&directory)? {
            let path = directory.join(&pin);
            let read = sys::open_pin(&path).and_then(|link| describe(link.as_raw_fd()));
            match read {
                Ok(facts) => hooks.push(hook(pin, &facts)),
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
                let side = if hook.pin.ends_with("-ingress") {
                    TcAttachType::Ingress
                } else {
                    TcAttachType::Egress
                };
                let Ok((_, programs)) = SchedClassifier::query_tcx(name, side) else {
                    continue;
                };
                let place = programs.iter().position(|it| it.id() == hook.program_id);
                is_ours |= place.is_some();
                is_first &= place == Some(0);
            }
            if is_ours {
                let name = name.to_owned();
                devices.insert(interface.index(), HookedDevice { name, is_first });
            }
        }
        devices
    }

    /// Which of these programs the kernel still has.
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
        for part in ["links", "maps"] {
            let directory = self.root.join(part);
            for pin in list(&directory)? {
                let path = directory.join(&pin);
                let unpinned = if part == "links" {
                    end_link(&path)
                } else {
                    std::fs::remove_file(&path)
                };
                unpinned.map_err(|error| PinnedError::Io { path, error })?;
                removed.push(format!("{part}/{pin}"));
            }
            remove_directory(&directory)?;
        }
        remove_directory(&self.root)?;
        if let Some(parent) = self.root.parent()
            && list(parent)?.is_empty()
        {
            remove_directory(parent)?;
        }
        Ok(removed)
    }
}

fn failed<E>(map: &str, action: &'static str) -> impl FnOnce(E) -> PinnedError
where
    E: std::error::Error + Send + Sync + 'static,
{
    let map = map.to_owned();
    move |error| PinnedError::Map {
        map,
        action,
        error: Box::new(error),
    }
}

fn list(directory: &Path) -> Result<Vec<String>, PinnedError> {
    let failed = |error| PinnedError::Io {
        path: directory.to_owned(),
        error,
    };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(
            entry
                .map_err(failed)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort();
    Ok(names)
}

/// Detached now: the kernel takes its time with a link that is only unpinned.
fn end_link(path: &Path) -> io::Result<()> {
    let link = sys::open_pin(path)?;
    std::fs::remove_file(path)?;
    sys::link_detach(link.as_fd())
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

fn sum<'a>(values: impl Iterator<Item = &'a PodCounters>) -> PodCounters {
    let mut total = PodCounters {
        reasons: [Count {
            packets: 0,
            bytes: 0,
        }; REASONS],
        audited: 0,
        events_lost: 0,
        tokens: 0,
        filled_ns: 0,
    };
    for value in values {
        for (sum, count) in total.reasons.iter_mut().zip(&value.reasons) {
            sum.packets = sum.packets.wrapping_add(count.packets);
            sum.bytes = sum.bytes.wrapping_add(count.bytes);
        }
        total.audited = total.audited.wrapping_add(value.audited);
        total.events_lost = total.events_lost.wrapping_add(value.events_lost);
    }
    total
}

/// `LpmTrie` as the kernel writes it: `lpm_trie`.
fn snake(camel: &str) -> String {
    let mut text = String::new();
    for character in camel.chars() {
        if character.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(character.to_ascii_lowercase());
    }
    text
}

/// What procfs says of a descriptor.
fn describe(fd: RawFd) -> io::Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    Ok(facts(&text))
}

fn facts(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .collect()
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
    PinnedHook {
        pin,
        program_id: program_id.unwrap_or(0),
        program_tag: facts.get("prog_tag").cloned().unwrap_or_default(),
        target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_from_procfs() {
        let tcx = "pos:\t0\nlink_type:\ttcx\nlink_id:\t7\nprog_tag:\t00aabb\nprog_id:\t41\n\
                   ifindex:\t12\nattach_type:\t46 (ingress)\n";
        let found = hook("dev-12-ingress".to_owned(), &facts(tcx));
        assert_eq!(found.target, HookTarget::Device(12));
        assert_eq!(
            (found.program_id, found.program_tag.as_str()),
            (41, "00aabb")
        );
        let gone = tcx.replace("ifindex:\t12", "ifindex:\t0");
        assert_eq!(hook(String::new(), &facts(&gone)).target, HookTarget::Gone);
        let cgroup = "link_type:\tcgroup\nprog_tag:\t01\nprog_id:\t2\ncgroup_id:\t345\n";
        let found = hook(String::new(), &facts(cgroup));
        assert_eq!(found.target, HookTarget::Cgroup(345));
    }

    #[test]
    fn kinds_are_named_as_the_kernel_does() {
        assert_eq!(snake("LpmTrie"), "lpm_trie");
        assert_eq!(snake("Hash"), "hash");
    }

    #[test]
    fn counters_add_up_over_cpus() {
        let mut one = sum([].iter());
        one.reasons[16].packets = 2;
        one.reasons[16].bytes = 200;
        one.events_lost = 1;
        let total = sum([one, one, one].iter());
        assert_eq!(total.reasons[16].packets, 6);
        assert_eq!(total.reasons[16].bytes, 600);
        assert_eq!(total.events_lost, 3);
    }
}
