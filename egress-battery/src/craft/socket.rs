//! Raw and packet sockets.

use std::ffi::CString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::ethertype;

/// A socket that is closed with its process's next program.
pub fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is involved.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was opened just now and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an option of any layout: a number, or a structure of the kernel's, as its bytes.
///
/// # Safety
/// Addresses in the value must be of memory that the kernel may use as the option says, and that
/// lives as long as the kernel does so.
pub(crate) unsafe fn set_option(
    socket: &OwnedFd,
    (level, option): (i32, i32),
    value: &[u8],
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the value is as long as is said; what is in it is the caller's promise.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value.as_ptr().cast(),
            length,
        )
    };
    if done == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Reads an option into the value, which some options take a question from.
pub(crate) fn get_option(
    socket: &OwnedFd,
    (level, option): (i32, i32),
    value: &mut [u8],
) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the value is as long as is said.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Binds to an address of any family, as its bytes.
pub(crate) fn bind(socket: &OwnedFd, address: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(address.len()).map_err(io::Error::other)?;
    // SAFETY: the address is as long as is said; the kernel looks at its family by itself.
    if unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr().cast(), length) } == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Index of a device of this namespace.
pub(crate) fn index_of(device: &str) -> io::Result<u32> {
    let name = CString::new(device)?;
    // SAFETY: the string ends with zero.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// An Ethernet frame.
pub fn frame(to: [u8; 6], from: [u8; 6], ethertype: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend(ethertype.to_be_bytes());
    frame.extend(body);
    frame
}

/// Sends an IP packet with its own header.
pub fn send_raw(packet: &[u8], destination: IpAddr) -> io::Result<()> {
    let family = if destination.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let socket = socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    let address: nix::sys::socket::SockaddrStorage = SocketAddr::new(destination, 0).into();
    let flags = nix::sys::socket::MsgFlags::empty();
    nix::sys::socket::sendto(socket.as_raw_fd(), packet, &address, flags)?;
    Ok(())
}

/// Sends frames on a device, past the IP stack.
pub fn send_frames(device: &str, frames: &[Vec<u8>]) -> io::Result<()> {
    // A socket that reads nothing: it would be handed each frame of the device.
    let socket = bound(device, libc::SOCK_RAW, 0)?;
    for frame in frames {
        nix::sys::socket::send(
            socket.as_raw_fd(),
            frame,
            nix::sys::socket::MsgFlags::empty(),
        )?;
    }
    Ok(())
}

/// Sends an IP packet on a device; the kernel writes the link header, to this neighbour.
pub fn send_cooked(device: &str, to: [u8; 6], packet: &[u8]) -> io::Result<()> {
    let socket = bound(device, libc::SOCK_DGRAM, 0)?;
    let to = link_address(device, ethertype_of(packet), Some(to))?;
    let length = libc::socklen_t::try_from(size_of_val(&to)).expect("a small struct");
    // SAFETY: packet and address are ours and as long as is said.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    if sent == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A socket for the frames of a device, or of all devices without one; reading times out after a
/// tenth of a second.
pub fn packet_socket(device: Option<&str>) -> io::Result<OwnedFd> {
    let all = u16::try_from(libc::ETH_P_ALL).expect("an EtherType");
    let socket = match device {
        Some(device) => bound(device, libc::SOCK_RAW, all)?,
        None => socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(all.to_be()))?,
    };
    let timeout = nix::sys::time::TimeVal::new(0, 100_000);
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimeout, &timeout)?;
    Ok(socket)
}

/// A packet socket of this kind on a device; protocol 0 reads nothing.
pub(crate) fn bound(device: &str, kind: i32, protocol: u16) -> io::Result<OwnedFd> {
    let socket = socket(libc::AF_PACKET, kind, i32::from(protocol.to_be()))?;
    let address = link_address(device, protocol, None)?;
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("a small struct");
    // SAFETY: the address is of the family that the socket has, and as long as is said.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// A link address on a device, towards a neighbour if one is given.
fn link_address(device: &str, protocol: u16, to: Option<[u8; 6]>) -> io::Result<libc::sockaddr_ll> {
    let index = index_of(device)?;
    // SAFETY: plain data, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("an address family");
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    if let Some(to) = to {
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&to);
    }
    Ok(address)
}

/// Reads a frame from a packet socket into the buffer, and tells the index of its device and
/// whether it was leaving by it. Where the socket has a timeout, `WouldBlock` says that nothing came.
pub fn receive<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> io::Result<(u32, bool, &'a [u8])> {
    // SAFETY: the address is plain data, for which all zeroes is a value.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&from)).expect("a small struct");
    // SAFETY: the buffer and the address are ours and as long as is said.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            (&raw mut from).cast(),
            &raw mut length,
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    let device = u32::try_from(from.sll_ifindex).unwrap_or(0);
    let leaving = from.sll_pkttype == libc::PACKET_OUTGOING;
    Ok((device, leaving, &buffer[..received]))
}

/// The EtherType of an IP packet.
pub(crate) fn ethertype_of(packet: &[u8]) -> u16 {
    match packet.first().map_or(0, |byte| byte >> 4) {
        6 => ethertype::IPV6,
        _ => ethertype::IPV4,
    }
}
