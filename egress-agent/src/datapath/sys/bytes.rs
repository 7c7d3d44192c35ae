//! Elements of maps whose types are not known here.

use std::io;
use std::os::fd::BorrowedFd;

use aya_obj::generated::{BPF_ANY, BPF_NOEXIST, bpf_cmd};

use super::{ElemAttr, bpf, pointer, raw};

fn elem_bytes(map: BorrowedFd<'_>, key: u64, value: u64, flags: u64) -> ElemAttr {
    ElemAttr {
        map_fd: raw(map),
        pad: 0,
        key,
        value,
        flags,
    }
}

/// As [`super::lookup`], for a map of any layout.
///
/// # Safety
/// `key` and `value` must be as long as the map's, `value` for each possible CPU of a per-CPU map.
pub unsafe fn lookup_bytes(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = elem_bytes(map, pointer(key.as_ptr()), pointer(value.as_mut_ptr()), 0);
    // SAFETY: the caller vouches for the sizes.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// As [`super::update`], for a map of any layout; unless `replace`, a value that is there stays (EEXIST).
///
/// # Safety
/// As [`lookup_bytes`].
pub unsafe fn update_bytes(
    map: BorrowedFd<'_>,
    key: &[u8],
    value: &[u8],
    replace: bool,
) -> io::Result<()> {
    let flags = if replace { BPF_ANY } else { BPF_NOEXIST };
    let (key, value) = (pointer(key.as_ptr()), pointer(value.as_ptr()));
    let mut attr = elem_bytes(map, key, value, u64::from(flags));
    // SAFETY: the caller vouches for the sizes.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// As [`super::next_key`], for a map of any layout; whether there is one.
///
/// # Safety
/// Both keys must be as long as the map's.
pub unsafe fn next_key_bytes(
    map: BorrowedFd<'_>,
    key: Option<&[u8]>,
    next: &mut [u8],
) -> io::Result<bool> {
    let key = key.map_or(0, |key| pointer(key.as_ptr()));
    let mut attr = elem_bytes(map, key, pointer(next.as_mut_ptr()), 0);
    // SAFETY: the caller vouches for the sizes.
    match unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
