//! Elements of maps by the thousand.

use std::io;
use std::os::fd::BorrowedFd;

use aya::Pod;
use aya_obj::generated::bpf_cmd;

use super::{bpf, pointer, raw};

/// Bytes of a place in a walk at least; for maps other than hash maps it is a key.
const PLACE: usize = 4;

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes as many values as there are keys; tells how many were written when one fails.
///
/// # Safety
/// `K` and `V` must be those of the map, which must not be per CPU.
pub unsafe fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    assert_eq!(keys.len(), values.len(), "each key has its value");
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: pointer(keys.as_ptr()),
        values: pointer(values.as_ptr()),
        count: u32::try_from(keys.len()).expect("a chunk is small"),
        map_fd: raw(map),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the caller vouches for the sizes; both slices are as long as `count` says.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) }
        .map(drop)
        .map_err(|error| (attr.count as usize, error))
}

/// A walk through a map, and the elements that one call of it has found.
#[derive(Debug)]
pub struct Walk<K, V> {
    place: Vec<u8>,
    begun: bool,
    pub keys: Vec<K>,
    pub values: Vec<V>,
}

impl<K: Pod, V: Pod> Walk<K, V> {
    /// With room for so many elements a call.
    pub fn new(room: usize) -> Self {
        Self {
            place: vec![0; size_of::<K>().max(PLACE)],
            begun: false,
            keys: Vec::with_capacity(room),
            values: Vec::with_capacity(room),
        }
    }

    /// Goes on; whether there is more. What was found before is forgotten.
    ///
    /// # Safety
    /// As [`update_batch`].
    pub unsafe fn next(&mut self, map: BorrowedFd<'_>) -> io::Result<bool> {
        self.keys.clear();
        self.values.clear();
        let room = self.keys.capacity().min(self.values.capacity());
        let place = pointer(self.place.as_mut_ptr());
        let mut attr = BatchAttr {
            in_batch: if self.begun { place } else { 0 },
            out_batch: place,
            keys: pointer(self.keys.as_mut_ptr()),
            values: pointer(self.values.as_mut_ptr()),
            count: u32::try_from(room).expect("room is small"),
            map_fd: raw(map),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: both have room for `count` elements, whose sizes the caller vouches for, and the
        // place is as long as a key and as the kernel's own number.
        let more = match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => true,
            // The end, and what was found before it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        let found = (attr.count as usize).min(room);
        // SAFETY: the kernel has written so many, and any bits are a `Pod`.
        unsafe {
            self.keys.set_len(found);
            self.values.set_len(found);
        }
        self.begun = true;
        Ok(more)
    }
}
