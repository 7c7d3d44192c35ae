//! One BPF map with its types.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};

use aya::Pod;
use aya::maps::MapData;

use super::{DatapathError, procfs, sys};

/// Elements written or deleted by one call at most: a huge trie must not hold a CPU for long.
const CHUNK: usize = 4096;

/// A map of the kernel. Every change is one write; comparisons only read.
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    map: MapData,
    /// Entries that it takes.
    size: usize,
    types: PhantomData<(K, V)>,
}

/// Key of a trie: the length comes first. Has no padding, since the data is bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrieKey<K> {
    /// Bits of `data` that count.
    pub prefix_len: u32,
    pub data: K,
}

// SAFETY: integers and byte arrays without padding: both data types have alignment 1 and a size
// that is a multiple of 4.
unsafe impl Pod for TrieKey<egress_common::maps::PrefixKey4> {}
// SAFETY: as above.
unsafe impl Pod for TrieKey<egress_common::maps::PrefixKey6> {}
const _: () = assert!(size_of::<TrieKey<egress_common::maps::PrefixKey4>>() == 12);
const _: () = assert!(size_of::<TrieKey<egress_common::maps::PrefixKey6>>() == 24);

impl<K: Pod, V: Pod> Table<K, V> {
    /// # Errors
    /// If the map's key or value have another size than `K` and `V`.
    pub fn new(name: &'static str, map: MapData) -> Result<Self, DatapathError> {
        let info = map.info().map_err(|error| DatapathError::Aya {
            what: format!("map {name}"),
            error: Box::new(error),
        })?;
        let found = (info.key_size() as usize, info.value_size() as usize);
        let wanted = (size_of::<K>(), size_of::<V>());
        if found != wanted {
            return Err(DatapathError::MapLayout {
                map: name.to_owned(),
                found: format!("key {} B, value {} B", found.0, found.1),
                wanted: format!("key {} B, value {} B", wanted.0, wanted.1),
            });
        }
        let size = info.max_entries() as usize;
        Ok(Self {
            name,
            map,
            size,
            types: PhantomData,
        })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }

    fn error(&self, action: &'static str, error: io::Error) -> DatapathError {
        DatapathError::Map {
            map: self.name,
            action,
            error,
        }
    }

    pub fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        let mut value = std::mem::MaybeUninit::<V>::zeroed();
        // SAFETY: as long as the value, and zeroed.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<V>())
        };
        // SAFETY: sizes were compared in `new`.
        let found = unsafe { sys::lookup(self.fd(), key, bytes) }
            .map_err(|error| self.error("read", error))?;
        // SAFETY: any bits are a `Pod`.
        Ok(found.then(|| unsafe { value.assume_init() }))
    }

    pub fn insert(&self, key: &K, value: &V) -> Result<(), DatapathError> {
        // SAFETY: a `Pod` is its bytes.
        let bytes = unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<V>())
        };
        // SAFETY: sizes were compared in `new`.
        unsafe { sys::update(self.fd(), key, bytes) }.map_err(|error| self.error("write", error))
    }

    /// Whether there was one to remove.
    pub fn remove(&self, key: &K) -> Result<bool, DatapathError> {
        // SAFETY: sizes were compared in `new`.
        unsafe { sys::delete(self.fd(), key) }.map_err(|error| self.error("delete from", error))
    }

    /// Keys as they stand. The kernel starts over after a key that has been removed, so this is for
    /// maps that nobody but the agent writes.
    pub fn keys(&self) -> Result<Vec<K>, DatapathError> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            // SAFETY: sizes were compared in `new`.
            let next = unsafe { sys::next_key(self.fd(), keys.last()) }
                .map_err(|error| self.error("list", error))?;
            match next {
                Some(key) => keys.push(key),
                None => return Ok(keys),
            }
        }
    }

    /// All entries as they stand, read in batches where the kernel can. As [`Table::keys`], for maps
    /// that nobody but the agent writes.
    pub fn entries(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let mut entries = Vec::new();
        let mut walk = sys::Walk::new(CHUNK);
        loop {
            // SAFETY: sizes were compared in `new`; these maps are not per CPU.
            match unsafe { walk.next(self.fd()) } {
                Ok(more) => {
                    let found = walk.keys.iter().copied().zip(walk.values.iter().copied());
                    entries.extend(found);
                    // A map that is being changed may make the walk begin again.
                    if !more || entries.len() > 2 * self.size {
                        return Ok(entries);
                    }
                }
                Err(error) if is_unsupported(&error) => return self.entries_one_by_one(),
                Err(error) => return Err(self.error("list", error)),
            }
        }
    }

    fn entries_one_by_one(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let mut entries = Vec::new();
        for key in self.keys()? {
            if let Some(value) = self.get(&key)? {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }

    /// Bytes of kernel memory that the map holds now, which tell of each element added or removed
    /// where memory is taken for each; none where the kernel does not say.
    pub fn memory(&self) -> Option<u64> {
        let facts = procfs::describe(self.fd()).ok()?;
        facts.get("memlock")?.parse().ok()
    }

    /// Writes many; in one call for each 4096 where the kernel can.
    pub fn insert_all(&self, entries: &[(K, V)]) -> Result<u64, DatapathError> {
        for chunk in entries.chunks(CHUNK) {
            let (keys, values): (Vec<K>, Vec<V>) = chunk.iter().copied().unzip();
            // SAFETY: sizes were compared in `new`; these maps are not per CPU.
            let result = unsafe { sys::update_batch(self.fd(), &keys, &values) };
            if let Err((done, error)) = result {
                if !is_unsupported(&error) {
                    let _ = done;
                    return Err(self.error("write", error));
                }
                for (key, value) in chunk {
                    self.insert(key, value)?;
                }
            }
        }
        Ok(entries.len() as u64)
    }

    /// Removes all whose key says so; returns how many.
    pub fn remove_where(&self, gone: impl Fn(&K) -> bool) -> Result<u64, DatapathError> {
        let mut removed = 0;
        let keys = self.entries()?.into_iter().map(|(key, _)| key);
        for key in keys.filter(gone) {
            removed += u64::from(self.remove(&key)?);
        }
        Ok(removed)
    }
}

/// The kernel's words for "not of this kind of map".
fn is_unsupported(error: &io::Error) -> bool {
    const ENOTSUPP: i32 = 524;
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | ENOTSUPP))
}

/// The counters: one value a CPU.
#[derive(Debug)]
pub struct PerCpuTable<V> {
    name: &'static str,
    map: MapData,
    cpus: usize,
    types: PhantomData<V>,
}

impl<V: Pod> PerCpuTable<V> {
    pub fn new(name: &'static str, map: MapData) -> Result<Self, DatapathError> {
        const { assert!(size_of::<V>().is_multiple_of(8), "the kernel rounds up") }
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| DatapathError::Io {
            what: format!("can't read {path}"),
            error,
        })?;
        Ok(Self {
            name,
            map,
            cpus,
            types: PhantomData,
        })
    }

    fn error(&self, action: &'static str, error: io::Error) -> DatapathError {
        DatapathError::Map {
            map: self.name,
            action,
            error,
        }
    }

    /// The value of each possible CPU.
    pub fn get(&self, index: u32) -> Result<Vec<V>, DatapathError> {
        let mut bytes = vec![0_u8; self.cpus * size_of::<V>()];
        // SAFETY: one value a possible CPU, a multiple of 8 bytes each.
        unsafe { sys::lookup(self.map.fd().as_fd(), &index, &mut bytes) }
            .map_err(|error| self.error("read", error))?;
        Ok(bytes
            .chunks_exact(size_of::<V>())
            // SAFETY: as long as a `V`, and any bits are a `Pod`.
            .map(|chunk| unsafe { chunk.as_ptr().cast::<V>().read_unaligned() })
            .collect())
    }

    /// Sets the value to zero on every CPU.
    pub fn zero(&self, index: u32) -> Result<(), DatapathError> {
        let bytes = vec![0_u8; self.cpus * size_of::<V>()];
        // SAFETY: as in `get`.
        unsafe { sys::update(self.map.fd().as_fd(), &index, &bytes) }
            .map_err(|error| self.error("write", error))
    }
}
