//! Frames and pages that the kernel takes without copying them first, and frames for it to cut.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use egress_common::Reason::NotAllowed;
use nix::sys::socket::{MsgFlags, send};

use super::sockets::{family, set_number, storage};
use super::{pod, uring};
use crate::case::{BOTH, Case, Group::Sockets, Trouble, failed};
use crate::craft::{self, Shared, ethertype_of, protocol};
use crate::ground::Ground;

pub(super) const CASES: [Case; 5] = [
    pod(
        (45, Sockets),
        "AF_XDP: frames from a ring, in copy mode",
        BOTH,
        &[NotAllowed],
        by_xsk,
    ),
    pod(
        (46, Sockets),
        "packet socket with a ring of frames (PACKET_TX_RING)",
        BOTH,
        &[NotAllowed],
        by_ring,
    ),
    pod(
        (47, Sockets),
        "packet socket with a super-frame of TCP (PACKET_VNET_HDR, GSO)",
        BOTH,
        &[NotAllowed],
        super_frame,
    ),
    pod(
        (48, Sockets),
        "UDP send by io_uring without a copy (SEND_ZC)",
        BOTH,
        &[NotAllowed],
        uring::send_zc,
    ),
    pod(
        (49, Sockets),
        "splice and sendfile into a UDP socket",
        BOTH,
        &[NotAllowed],
        spliced,
    ),
];

fn frame(ground: &Ground) -> Vec<u8> {
    let packet = ground.udp(ground.ends(), 9999);
    ground.frame(ethertype_of(&packet), &packet)
}

/// `linux/socket.h`, `linux/if_xdp.h`.
const AF_XDP: i32 = 44;
const SOL_XDP: i32 = 283;
/// Of one frame in the memory, and of each ring.
const CHUNK: usize = 4096;
const ENTRIES: u32 = 2;
/// How long the transmit ring may be, all in all.
const RING: usize = 4096;

/// The device must be one that has no room for the socket's own pages, as a veth: the kernel then
/// copies each frame into a packet and hands it to the driver, past the queueing.
fn by_xsk(ground: &Ground) -> Result<(), Trouble> {
    let socket = craft::socket(AF_XDP, libc::SOCK_RAW, 0).map_err(absent("AF_XDP"))?;
    let frames = [frame(ground), frame(ground)];
    let memory = Shared::new(frames.len() * CHUNK).map_err(failed("get memory"))?;
    for (at, frame) in frames.iter().enumerate() {
        memory.write(at * CHUNK, frame);
    }
    // struct xdp_umem_reg: address, length, size of a chunk, headroom, flags and what else there is.
    let chunk = number(CHUNK);
    let mut umem = memory.address().to_ne_bytes().to_vec();
    umem.extend(u64::from(number(frames.len() * CHUNK)).to_ne_bytes());
    umem.extend([chunk, 0, 0, 0].map(u32::to_ne_bytes).concat());
    let set = |option, value: &[u8]| {
        // SAFETY: the one address is of the memory above. The socket, which was opened before it, may
        // outlive it by some moments; the kernel has its pages for itself until then.
        unsafe { craft::set_option(&socket, (SOL_XDP, option), value) }
            .map_err(failed("set up the AF_XDP socket"))
    };
    set(libc::XDP_UMEM_REG, &umem)?;
    // Nothing is received, but the kernel wants to be able to.
    for ring in [
        libc::XDP_UMEM_FILL_RING,
        libc::XDP_UMEM_COMPLETION_RING,
        libc::XDP_TX_RING,
    ] {
        set(ring, &ENTRIES.to_ne_bytes())?;
    }
    // struct xdp_mmap_offsets: of each ring (receive, transmit, …) producer, consumer, descriptors, flags.
    let mut offsets = [0; 4 * 4 * 8];
    let option = (SOL_XDP, libc::XDP_MMAP_OFFSETS);
    craft::get_option(&socket, option, &mut offsets).map_err(failed("look for the rings"))?;
    let offset = |field: usize| {
        let at = (4 + field) * 8;
        let bytes = offsets[at..at + 8].try_into().expect("eight bytes");
        usize::try_from(u64::from_ne_bytes(bytes)).expect("a small offset")
    };
    let (producer, descriptors) = (offset(0), offset(2));
    let ring =
        Shared::of(&socket, RING, libc::XDP_PGOFF_TX_RING).map_err(failed("map the ring"))?;
    // struct sockaddr_xdp: family, flags, device, queue, another socket's memory.
    let mut address = u16::try_from(AF_XDP)
        .expect("a family")
        .to_ne_bytes()
        .to_vec();
    address.extend(libc::XDP_COPY.to_ne_bytes());
    let index = craft::index_of(&ground.device).map_err(failed("find the device"))?;
    address.extend([index, 0, 0].map(u32::to_ne_bytes).concat());
    craft::bind(&socket, &address).map_err(failed("bind the AF_XDP socket"))?;
    for (at, frame) in frames.iter().enumerate() {
        // struct xdp_desc: where in the memory, length, options.
        let mut descriptor = u64::from(number(at * CHUNK)).to_ne_bytes().to_vec();
        descriptor.extend([number(frame.len()), 0].map(u32::to_ne_bytes).concat());
        ring.write(descriptors + at * descriptor.len(), &descriptor);
    }
    ring.publish(producer, ENTRIES);
    // What is in the ring is sent within the call.
    send(socket.as_raw_fd(), &[], MsgFlags::MSG_DONTWAIT)
        .map(drop)
        .map_err(|error| failed("send what is in the ring")(error.into()))
}

/// `struct tpacket2_hdr` is 32 bytes, and the frame follows.
const HEADER: usize = 32;
const SLOT: usize = 2048;
/// `linux/if_packet.h`.
const TP_STATUS_SEND_REQUEST: u32 = 1;

fn by_ring(ground: &Ground) -> Result<(), Trouble> {
    let socket =
        craft::bound(&ground.device, libc::SOCK_RAW, 0).map_err(failed("open a packet socket"))?;
    let version = i32::try_from(libc::tpacket_versions::TPACKET_V2 as u32).expect("two");
    set_number(&socket, libc::SOL_PACKET, libc::PACKET_VERSION, version)?;
    // struct tpacket_req: size and number of blocks, size and number of frames.
    let sizes = [number(2 * SLOT), 1, number(SLOT), 2].map(u32::to_ne_bytes);
    let option = (libc::SOL_PACKET, libc::PACKET_TX_RING);
    // SAFETY: numbers are no addresses.
    unsafe { craft::set_option(&socket, option, &sizes.concat()) }
        .map_err(absent("PACKET_TX_RING"))?;
    let ring = Shared::of(&socket, 2 * SLOT, 0).map_err(failed("map the ring"))?;
    for start in [0, SLOT] {
        let frame = frame(ground);
        ring.write(start + HEADER, &frame);
        ring.write(start + 4, &number(frame.len()).to_ne_bytes());
        ring.publish(start, TP_STATUS_SEND_REQUEST);
    }
    send(socket.as_raw_fd(), &[], MsgFlags::empty())
        .map(drop)
        .map_err(|error| failed("send what is in the ring")(error.into()))
}

/// `struct virtio_net_hdr`, `linux/virtio_net.h`.
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const SEGMENT: u16 = 1000;

/// A veth takes it whole, and so does the host's side.
fn super_frame(ground: &Ground) -> Result<(), Trouble> {
    let socket =
        craft::bound(&ground.device, libc::SOCK_RAW, 0).map_err(failed("open a packet socket"))?;
    set_number(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    let ends = ground.ends();
    let payload = ground
        .token()
        .repeat(4 * usize::from(SEGMENT) / ground.token().len());
    // PSH and ACK: a SYN is not cut.
    let mut segment = craft::tcp(ends, (ground.port(), 80), 0x18, &payload);
    let sum = craft::partial_sum(ends, protocol::TCP, segment.len());
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    let packet = craft::packet(ends, protocol::TCP, &segment);
    let (kind, start) = if ground.is_v6() {
        (GSO_TCPV6, 14 + 40)
    } else {
        (GSO_TCPV4, 14 + 20)
    };
    let mut bytes = vec![NEEDS_CSUM, kind];
    // Length of the headers, of a segment's data; where sums begin, and where in there the sum is.
    for field in [start + 20, SEGMENT, start, 16] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(ground.frame(ethertype_of(&packet), &packet));
    send(socket.as_raw_fd(), &bytes, MsgFlags::empty())
        .map(drop)
        .map_err(|error| failed("send a super-frame")(error.into()))
}

/// The pages of a pipe and of a file become the packet's.
fn spliced(ground: &Ground) -> Result<(), Trouble> {
    let socket =
        craft::socket(family(ground), libc::SOCK_DGRAM, 0).map_err(failed("open a socket"))?;
    let to = storage(SocketAddr::new(ground.order.aim, 9999));
    nix::sys::socket::connect(socket.as_raw_fd(), &to)
        .map_err(|error| failed("connect")(error.into()))?;
    let (from, mut into) = io::pipe().map_err(failed("make a pipe"))?;
    into.write_all(ground.token())
        .map_err(failed("write into a pipe"))?;
    let (pipe, length) = (OwnedFd::from(from), ground.token().len());
    // SAFETY: without offsets no pointer is involved; the descriptors are open.
    let sent = unsafe {
        libc::splice(
            pipe.as_raw_fd(),
            std::ptr::null_mut(),
            socket.as_raw_fd(),
            std::ptr::null_mut(),
            length,
            0,
        )
    };
    told(sent, "splice into a socket")?;
    // SAFETY: the name ends with zero.
    let file = unsafe { libc::memfd_create(c"sallyport".as_ptr(), libc::MFD_CLOEXEC) };
    told(file as isize, "make a file in memory")?;
    // SAFETY: it was opened just now and nobody else has it.
    let mut file = unsafe { std::fs::File::from_raw_fd(file) };
    file.write_all(ground.token())
        .map_err(failed("write into a file"))?;
    let mut start = 0;
    // SAFETY: the offset outlives the call; the descriptors are open.
    let sent =
        unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut start, length) };
    told(sent, "send a file")
}

fn told(result: isize, doing: &'static str) -> Result<(), Trouble> {
    if result == -1 {
        Err(failed(doing)(io::Error::last_os_error()))
    } else {
        Ok(())
    }
}

/// What a kernel is built without, or a pod may not have.
fn absent(what: &'static str) -> impl FnOnce(io::Error) -> Trouble {
    move |error| Trouble::Absent(format!("the kernel has no {what} for this pod: {error}"))
}

fn number(value: usize) -> u32 {
    u32::try_from(value).expect("a small number")
}
