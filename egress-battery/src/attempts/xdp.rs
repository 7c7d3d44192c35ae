//! Frames that no socket sends and no queue sees: an XDP program gives them to the driver.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::case::{Trouble, failed};
use crate::craft::{self, ethertype_of};
use crate::ground::Ground;

/// `linux/bpf.h`.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
/// "Return `XDP_TX`": put 3 into register 0, exit.
const PROGRAM: [u64; 2] = [
    u64::from_ne_bytes([0xb7, 0, 0, 0, 3, 0, 0, 0]),
    u64::from_ne_bytes([0x95, 0, 0, 0, 0, 0, 0, 0]),
];
const FRAMES: u32 = 2;

/// The front of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    license: u64,
    log: [u32; 2],
    log_buffer: u64,
}

/// The same for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct Run {
    program: u32,
    result: u32,
    length_in: u32,
    length_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_length_in: u32,
    context_length_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

/// Runs the program on frames as if the device had received them: it has the driver send them. On a
/// veth they pass only if the node's side can take them in bulk: it has receive offload (GRO) or an
/// XDP program.
pub(super) fn send(ground: &Ground) -> Result<(), Trouble> {
    let load = Load {
        kind: BPF_PROG_TYPE_XDP,
        instructions: 2,
        program: PROGRAM.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log: [0; 2],
        log_buffer: 0,
    };
    // SAFETY: program and licence live until the call is over.
    let program = unsafe { bpf(BPF_PROG_LOAD, &load) }
        .map_err(|error| Trouble::Absent(format!("the pod may load no XDP program: {error}")))?;
    // SAFETY: it was opened just now and nobody else has it.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let packet = ground.udp(ground.ends(), 9999);
    let frame = ground.frame(ethertype_of(&packet), &packet);
    let length = u32::try_from(frame.len()).expect("a short frame");
    let device = craft::index_of(&ground.device).map_err(failed("find the device"))?;
    // struct xdp_md: data, its end, metadata, device, queue, device to leave by.
    let context = [0, length, 0, device, 0, 0_u32];
    let run = Run {
        program: program.as_raw_fd().unsigned_abs(),
        length_in: length,
        data_in: frame.as_ptr() as u64,
        repeat: FRAMES,
        context_length_in: u32::try_from(size_of_val(&context)).expect("a few words"),
        context_in: context.as_ptr() as u64,
        flags: BPF_F_TEST_XDP_LIVE_FRAMES,
        ..Run::default()
    };
    // SAFETY: frame and context live until the call is over; nothing is written back.
    unsafe { bpf(BPF_PROG_TEST_RUN, &run) }
        .map(drop)
        .map_err(failed("run an XDP program on frames"))
}

/// # Safety
/// The attribute must be as this command wants it, with addresses of memory of the lengths that it
/// says.
unsafe fn bpf<T>(command: libc::c_long, attribute: &T) -> io::Result<i32> {
    // SAFETY: the attribute is as long as is said; the rest is the caller's promise.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attribute),
            size_of::<T>(),
        )
    };
    match i32::try_from(done) {
        Ok(-1) | Err(_) => Err(io::Error::last_os_error()),
        Ok(result) => Ok(result),
    }
}
