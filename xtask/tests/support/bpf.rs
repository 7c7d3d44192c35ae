//! What a stranger with root does to links and maps, by `bpf(2)`; layouts as in `linux/bpf.h`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const MAP_LOOKUP_ELEM: i64 = 1;
const MAP_UPDATE_ELEM: i64 = 2;
const MAP_DELETE_ELEM: i64 = 3;
const MAP_GET_NEXT_KEY: i64 = 4;
const PROG_LOAD: i64 = 5;
const OBJ_PIN: i64 = 6;
const OBJ_GET: i64 = 7;
const LINK_CREATE: i64 = 28;
const LINK_DETACH: i64 = 34;
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
const BEFORE: u32 = 1 << 3;

/// `union bpf_attr`, filled word by word.
struct Attr([u8; 128]);

impl Attr {
    fn new() -> Self {
        Self([0; 128])
    }

    fn word(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn pointer<T>(mut self, at: usize, to: *const T) -> Self {
        self.0[at..at + 8].copy_from_slice(&(to as u64).to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: &OwnedFd) -> Self {
        self.word(at, u32::try_from(fd.as_raw_fd()).expect("a descriptor"))
    }

    /// # Safety
    /// Pointers within must be valid for the command.
    unsafe fn call(mut self, command: i64) -> io::Result<i64> {
        // SAFETY: the attribute is alive and as long as said; the rest is the caller's promise.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(result)
    }

    /// # Safety
    /// As [`Attr::call`].
    unsafe fn open(self, command: i64) -> io::Result<OwnedFd> {
        // SAFETY: the caller's promise.
        let fd = unsafe { self.call(command) }?;
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel just made it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

pub fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    // SAFETY: a live C string.
    unsafe { Attr::new().pointer(0, path.as_ptr()).open(OBJ_GET) }
}

/// What procfs says of what is pinned there.
pub fn fact(pin: &Path, name: &str) -> Option<u64> {
    let fd = open(pin).ok()?;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let mut facts = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = facts.find(|(key, _)| *key == name)?;
    value.trim().parse().ok()
}

/// Ends a link, and leaves its pin.
pub fn detach(pin: &Path) {
    let link = open(pin).expect("a link");
    // SAFETY: no pointers.
    unsafe { Attr::new().fd(0, &link).call(LINK_DETACH) }.expect("detach");
}

/// A program for devices that leaves all packets to those after it.
fn harmless() -> io::Result<OwnedFd> {
    // r0 = TCX_NEXT; exit
    let instructions: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let program = Attr::new()
        .word(0, SCHED_CLS)
        .word(4, 2)
        .pointer(8, instructions.as_ptr())
        .pointer(16, c"GPL".as_ptr());
    // SAFETY: two instructions and a C string, both alive.
    unsafe { program.open(PROG_LOAD) }
}

/// Pins one.
pub fn pin_harmless(pin: &Path) -> io::Result<()> {
    let program = harmless()?;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attr = Attr::new().pointer(0, path.as_ptr()).fd(8, &program);
    // SAFETY: a live C string.
    unsafe { attr.call(OBJ_PIN) }.map(drop)
}

/// Puts one first on a device of the calling thread's network namespace.
pub fn go_before(ifindex: u32) -> io::Result<OwnedFd> {
    let program = harmless()?;
    let link = Attr::new().fd(0, &program).word(4, ifindex);
    // SAFETY: no pointers.
    unsafe { link.word(8, TCX_INGRESS).word(12, BEFORE).open(LINK_CREATE) }
}

/// The first key of a map.
pub fn first_key(pin: &Path, size: usize) -> io::Result<Vec<u8>> {
    let first = keys(pin, size)?.into_iter().next();
    first.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// All keys of a map.
pub fn keys(pin: &Path, size: usize) -> io::Result<Vec<Vec<u8>>> {
    let map = open(pin)?;
    let mut keys: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut key = vec![0; size];
        let last = keys.last().map_or(std::ptr::null(), Vec::as_ptr);
        let attr = Attr::new().fd(0, &map).pointer(8, last);
        // SAFETY: keys are as long as the map's, which the caller knows.
        match unsafe { attr.pointer(16, key.as_mut_ptr()).call(MAP_GET_NEXT_KEY) } {
            Ok(_) => keys.push(key),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(keys),
            Err(error) => return Err(error),
        }
    }
}

pub fn update(pin: &Path, key: &[u8], value: &[u8]) -> io::Result<()> {
    let map = open(pin)?;
    let attr = Attr::new().fd(0, &map).pointer(8, key.as_ptr());
    // SAFETY: both are as long as the map's, which the caller knows.
    unsafe { attr.pointer(16, value.as_ptr()).call(MAP_UPDATE_ELEM) }.map(drop)
}

/// The value of a key, so many bytes of it.
pub fn get(pin: &Path, key: &[u8], size: usize) -> Option<Vec<u8>> {
    let map = open(pin).ok()?;
    // Longer than any value.
    let mut value = vec![0_u8; 1024];
    let attr = Attr::new().fd(0, &map).pointer(8, key.as_ptr());
    // SAFETY: as above.
    unsafe { attr.pointer(16, value.as_mut_ptr()).call(MAP_LOOKUP_ELEM) }.ok()?;
    value.truncate(size);
    Some(value)
}

pub fn delete(pin: &Path, key: &[u8]) -> io::Result<()> {
    let map = open(pin)?;
    // SAFETY: as above.
    unsafe {
        Attr::new()
            .fd(0, &map)
            .pointer(8, key.as_ptr())
            .call(MAP_DELETE_ELEM)
    }
    .map(drop)
}

pub fn has(pin: &Path, key: &[u8]) -> bool {
    get(pin, key, 0).is_some()
}
