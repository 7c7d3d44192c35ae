//! Pinned maps as bytes: of any layout, for taking over what is in them.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::{MapData, MapType};

use super::{DatapathError, sys};

/// A map whose types this version may not know.
#[derive(Debug)]
pub struct Bytes {
    name: String,
    /// The kernel's number of the map.
    pub id: u32,
    map: MapData,
    key: usize,
    /// Bytes of a value; of a per-CPU map those of one CPU, rounded up to 8.
    pub value: usize,
    /// Values of one key: possible CPUs, or 1.
    pub values: usize,
    entries: usize,
}

impl Bytes {
    /// Opens a pin.
    pub fn open(path: &Path) -> Result<Self, DatapathError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aya = |error| DatapathError::Aya {
            what: format!("can't open the pinned map {}", path.display()),
            error: Box::new(error),
        };
        let map = MapData::from_pin(path).map_err(aya)?;
        let info = map.info().map_err(aya)?;
        let kind = info.map_type().map_err(aya)?;
        let per_cpu = matches!(
            kind,
            MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash
        );
        let (mut value, mut values) = (info.value_size() as usize, 1);
        if per_cpu {
            value = value.next_multiple_of(8);
            values = aya::util::nr_cpus().map_err(|(path, error)| DatapathError::Io {
                what: format!("can't read {path}"),
                error,
            })?;
        }
        Ok(Self {
            name: name.into_owned(),
            key: info.key_size() as usize,
            value,
            values,
            entries: info.max_entries() as usize,
            id: info.id(),
            map,
        })
    }

    /// Bytes of a key.
    pub fn key_size(&self) -> usize {
        self.key
    }

    /// Pins the same map under another name.
    pub fn pin(&self, path: &Path) -> Result<(), DatapathError> {
        sys::pin(self.map.fd().as_fd(), path).map_err(|error| self.failed("pin", error))
    }

    /// Keys as they stand; some are missed or come twice if others write meanwhile.
    pub fn keys(&self) -> Result<Vec<Vec<u8>>, DatapathError> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        // The kernel begins again after a key that is gone: the walk must end all the same.
        while keys.len() < 2 * self.entries {
            let last = keys.last().map(Vec::as_slice);
            let mut next = vec![0; self.key];
            // SAFETY: keys have the size that the kernel says.
            let found = unsafe { sys::next_key_bytes(self.map.fd().as_fd(), last, &mut next) };
            if !found.map_err(|error| self.failed("list", error))? {
                break;
            }
            keys.push(next);
        }
        Ok(keys)
    }

    /// The value of a key, of all CPUs if there are several.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DatapathError> {
        assert_eq!(key.len(), self.key, "keys have one size");
        let mut value = vec![0; self.value * self.values];
        // SAFETY: key and value have the sizes that the kernel says.
        let found = unsafe { sys::lookup_bytes(self.map.fd().as_fd(), key, &mut value) };
        let found = found.map_err(|error| self.failed("read", error))?;
        Ok(found.then_some(value))
    }

    /// Writes a value, or only where there is none; whether it was written.
    pub fn set(&self, key: &[u8], value: &[u8], replace: bool) -> Result<bool, DatapathError> {
        assert_eq!(key.len(), self.key, "keys have one size");
        assert_eq!(value.len(), self.value * self.values, "and values");
        // SAFETY: key and value have the sizes that the kernel says.
        let set = unsafe { sys::update_bytes(self.map.fd().as_fd(), key, value, replace) };
        match set {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(self.failed("write", error)),
        }
    }

    fn failed(&self, action: &str, error: io::Error) -> DatapathError {
        DatapathError::Io {
            what: format!("can't {action} map {}", self.name),
            error,
        }
    }
}
