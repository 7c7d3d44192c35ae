//! Memory that a process and the kernel both look into: rings of packet and `AF_XDP` sockets, their frames, and
//! counters that the kernel gives back.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Pages that the kernel looks into. They go with this value.
#[derive(Debug)]
pub(crate) struct Shared {
    start: NonNull<u8>,
    length: usize,
}

impl Shared {
    /// Pages of nobody yet; the kernel is told of them.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        Self::map(length, flags, -1, 0)
    }

    /// What the kernel has at this offset of a socket.
    pub(crate) fn of(socket: &OwnedFd, length: usize, offset: libc::off_t) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        Self::map(length, flags, socket.as_raw_fd(), offset)
    }

    fn map(length: usize, flags: i32, fd: i32, offset: libc::off_t) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses the place, so nothing that is there is replaced.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("no address"))?;
        Ok(Self { start, length })
    }

    /// As the kernel is told of it.
    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Writes bytes, before the kernel is told that they are there.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.length, "beyond the pages");
        // SAFETY: the place is within the pages, which live as long as this value, and no reference
        // into them is ever handed out.
        unsafe {
            let place = self.start.as_ptr().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
        }
    }

    /// What the kernel has written at the start, after a call that it did so within.
    pub(crate) fn read(&self, length: usize) -> Vec<u8> {
        assert!(length <= self.length, "beyond the pages");
        let mut bytes = vec![0; length];
        // SAFETY: the place is within the pages, and the bytes are ours alone.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.as_ptr(), bytes.as_mut_ptr(), length);
        }
        bytes
    }

    /// Writes a number that tells the kernel of what was written before.
    pub(crate) fn publish(&self, at: usize, number: u32) {
        assert!(at + 4 <= self.length && at.is_multiple_of(4), "no place");
        // SAFETY: the place is within the pages and aligned, as pages are; whoever else writes it, the
        // kernel, does so at once.
        let place = unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(at).cast()) };
        place.store(number, Ordering::Release);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: they were mapped by this value, with this length, and nothing points there any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
