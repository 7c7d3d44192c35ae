//! System calls that are not made as such: the kernel makes them for us.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use nix::sys::socket::SockaddrLike as _;

use super::sockets::{family, storage};
use crate::case::{Trouble, failed};
use crate::craft::socket;
use crate::ground::Ground;

pub(super) fn connect(ground: &Ground) -> Result<(), Trouble> {
    let socket = socket(family(ground), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)
        .map_err(failed("open a socket"))?;
    let to = storage(SocketAddr::new(ground.order.aim, ground.port()));
    let entry = opcode::Connect::new(types::Fd(socket.as_raw_fd()), to.as_ptr(), to.len()).build();
    match submit(&entry)? {
        // It is under way.
        None | Some(0) => Ok(()),
        Some(error) if error == -libc::EINPROGRESS || error == -libc::EAGAIN => Ok(()),
        Some(error) => Err(failed("connect by io_uring")(io::Error::from_raw_os_error(
            -error,
        ))),
    }
}

pub(super) fn send(ground: &Ground) -> Result<(), Trouble> {
    let socket = socket(family(ground), libc::SOCK_DGRAM, 0).map_err(failed("open a socket"))?;
    let to = storage(SocketAddr::new(ground.order.aim, 9999));
    let payload = ground.token();
    let length = u32::try_from(payload.len()).expect("a token's length");
    let entry = opcode::Send::new(types::Fd(socket.as_raw_fd()), payload.as_ptr(), length)
        .dest_addr(to.as_ptr())
        .dest_addr_len(to.len())
        .build();
    match submit(&entry)? {
        Some(error) if error < 0 => Err(failed("send by io_uring")(io::Error::from_raw_os_error(
            -error,
        ))),
        _ => Ok(()),
    }
}

/// The pages that are given become the packet's, for as long as it is under way.
pub(super) fn send_zc(ground: &Ground) -> Result<(), Trouble> {
    let socket = socket(family(ground), libc::SOCK_DGRAM, 0).map_err(failed("open a socket"))?;
    let to = storage(SocketAddr::new(ground.order.aim, 9999));
    // Nobody knows when the last packet with it is gone; the process ends soon.
    let payload: &'static [u8] = ground.token().repeat(64).leak();
    let length = u32::try_from(payload.len()).expect("a few tokens' length");
    let entry = opcode::SendZc::new(types::Fd(socket.as_raw_fd()), payload.as_ptr(), length)
        .dest_addr(to.as_ptr())
        .dest_addr_len(to.len())
        .build();
    match submit(&entry)? {
        Some(error) if error == -libc::EINVAL => Err(Trouble::Absent(
            "the kernel's io_uring has no SEND_ZC".to_owned(),
        )),
        Some(error) if error < 0 => Err(failed("send by io_uring")(io::Error::from_raw_os_error(
            -error,
        ))),
        _ => Ok(()),
    }
}

/// How long a result is waited for: a connection that nobody answers has none for minutes.
const PATIENCE: Duration = Duration::from_millis(30);

/// Submits one entry; its result, if it has one at once.
fn submit(entry: &squeue::Entry) -> Result<Option<i32>, Trouble> {
    let mut ring = IoUring::new(2).map_err(failed("set up an io_uring"))?;
    // SAFETY: the socket outlives the ring. The kernel copies an address when it takes the entry, and
    // what is sent by UDP before it returns from the call below; what it does not copy is never freed.
    unsafe { ring.submission().push(entry) }.expect("the ring is empty");
    ring.submit().map_err(failed("submit to an io_uring"))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let result = ring.completion().next().map(|it| it.result());
        if result.is_some() || Instant::now() > deadline {
            return Ok(result);
        }
        sleep(Duration::from_millis(1));
    }
}
