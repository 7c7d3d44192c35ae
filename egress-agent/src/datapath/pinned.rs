//! What is pinned, read by path: for the CLI and the telemetry, whether an agent runs or not.

mod hooks;

use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, DevMap, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use egress_common::event::Event;
use egress_common::maps::{
    Config, Count, Covered, Endpoint, ExactKey4, ExactKey6, ExactRule, Flow, FlowKey, Fragment,
    FragmentKey, Inbound, Origin, OriginKey, PodCounters, PodInfo, PolicyInfo, PrefixKey4,
    PrefixKey6, PrefixRule, RuleInfo, RuleKey, name,
};
use egress_common::reason::REASONS;

use super::{layout, procfs};

pub use hooks::{HookTarget, HookedDevice, PinnedHook};

/// Why something pinned could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PinnedError {
    #[error(
        "no pins at {}: is the agent installed? Start it with `egress-agent --bpffs {} ...`, or \
         name its BPF file system with --bpffs",
        root.display(), bpffs.display()
    )]
    NotInstalled { root: PathBuf, bpffs: PathBuf },
    #[error(
        "what is pinned at {} was made by an agent of another version ({}), whose maps this \
         egressctl ({}) can't read: use the one in that agent's image, or let an agent of this \
         version start",
        root.display(), found.join(", "), layout::OWN.as_str()
    )]
    OtherLayout { root: PathBuf, found: Vec<String> },
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
        let all = bpffs.join(layout::DIRECTORY);
        let root = all.join(layout::OWN.as_str());
        if root.join("maps").is_dir() {
            return Ok(Self { root });
        }
        let found = layouts(&all)?;
        Err(if found.is_empty() {
            PinnedError::NotInstalled {
                root,
                bpffs: bpffs.to_owned(),
            }
        } else {
            PinnedError::OtherLayout { root: all, found }
        })
    }

    /// What agents of any version have pinned.
    ///
    /// # Errors
    /// If there is nothing.
    pub fn all(bpffs: &Path) -> Result<Vec<Self>, PinnedError> {
        let root = bpffs.join(layout::DIRECTORY);
        let found = layouts(&root)?;
        if found.is_empty() {
            let bpffs = bpffs.to_owned();
            return Err(PinnedError::NotInstalled { root, bpffs });
        }
        let pinned = found.into_iter().map(|name| Self {
            root: root.join(name),
        });
        Ok(pinned.collect())
    }

    /// The directory of one layout.
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
        // By its pin, not by its number, for which CAP_SYS_ADMIN is asked.
        let data = MapData::from_pin(path).map_err(failed(map, "look at"))?;
        let info = data.info().map_err(failed(map, "look at"))?;
        let kind = info.map_type().map_err(failed(map, "look at"))?;
        let described = procfs::describe(data.fd().as_fd()).unwrap_or_default();
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
        // As in `entries`.
        let most = 2 * self.map_facts(map)?.max_entries as usize;
        for entry in trie.iter().take(most) {
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

    /// Interface index of the device at this place of `sp_ways`; none if there is none.
    pub fn way(&self, place: u32) -> Result<Option<u32>, PinnedError> {
        let ways = DevMap::try_from(self.map(name::WAYS)?).map_err(failed(name::WAYS, "open"))?;
        match ways.get(place, 0) {
            Ok(way) => Ok(Some(way.if_index)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(name::WAYS, "read")(error)),
        }
    }

    /// What stands at one place of the shortcut through the cgroup hook.
    pub fn covered(&self, place: u32) -> Result<Covered, PinnedError> {
        let array: Array<_, Covered> =
            Array::try_from(self.map(name::COVERED)?).map_err(failed(name::COVERED, "open"))?;
        array.get(&place, 0).map_err(failed(name::COVERED, "read"))
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

/// Names of the layouts, sorted.
fn layouts(directory: &Path) -> Result<Vec<String>, PinnedError> {
    let mut names = list(directory)?;
    names
        .retain(|name| std::fs::symlink_metadata(directory.join(name)).is_ok_and(|it| it.is_dir()));
    Ok(names)
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

#[cfg(test)]
mod tests {
    use super::*;

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
