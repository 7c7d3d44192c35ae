//! Packets and frames built by hand, and the sockets that take them.

use std::ffi::CString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};

const UDP: u8 = 17;
const SOURCE_PORT: u16 = 40_000;
/// `linux/sockios.h`, `linux/ethtool.h`.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// An IP packet with a UDP datagram, checksums and all. Ports in host byte order.
pub(crate) fn udp_packet(
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    payload: &[u8],
) -> Result<Vec<u8>> {
    let length = u16::try_from(8 + payload.len()).context("a payload that fits in a packet")?;
    let mut udp = Vec::new();
    for field in [SOURCE_PORT, port, length, 0] {
        udp.extend(field.to_be_bytes());
    }
    udp.extend(payload);
    let mut packet;
    let mut pseudo;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet = vec![0x45, 0];
            packet.extend((20 + length).to_be_bytes());
            packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = checksum(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            pseudo = packet[12..20].to_vec();
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet = vec![0x60, 0, 0, 0];
            packet.extend(length.to_be_bytes());
            packet.extend([UDP, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            pseudo = packet[8..40].to_vec();
        }
        _ => bail!("{source} and {destination} are of different families"),
    }
    pseudo.extend(u32::from(length).to_be_bytes());
    pseudo.extend([0, 0, 0, UDP]);
    pseudo.extend(&udp);
    // Zero means "no checksum" in UDP.
    let sum = match checksum(&pseudo) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    packet.extend(udp);
    Ok(packet)
}

/// The Internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("it was folded")
}

/// An Ethernet frame around an IP packet, with a VLAN tag if one is given.
pub(crate) fn ethernet_frame(
    to: [u8; 6],
    from: [u8; 6],
    vlan: Option<u16>,
    packet: &[u8],
) -> Vec<u8> {
    let mut frame = [to, from].concat();
    if let Some(vlan) = vlan {
        frame.extend([0x81, 0x00]);
        frame.extend(vlan.to_be_bytes());
    }
    let version = packet.first().map_or(0, |byte| byte >> 4);
    frame.extend(if version == 6 {
        [0x86, 0xdd]
    } else {
        [0x08, 0x00]
    });
    frame.extend(packet);
    frame
}

/// Sends an IP packet with its own header.
pub(crate) fn send_raw(packet: &[u8], destination: IpAddr) -> Result<()> {
    let family = if destination.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let socket =
        socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW).context("cannot open a raw socket")?;
    let address: nix::sys::socket::SockaddrStorage = SocketAddr::new(destination, 0).into();
    nix::sys::socket::sendto(
        socket.as_raw_fd(),
        packet,
        &address,
        nix::sys::socket::MsgFlags::empty(),
    )
    .context("cannot send from a raw socket")?;
    Ok(())
}

/// Has a device of this namespace receive in bulk (GRO), or not, as `ethtool -K` does.
pub(crate) fn receive_offload(device: &str, on: bool) -> io::Result<()> {
    set_feature(device, ETHTOOL_SGRO, on)
}

/// Has a device of this namespace write checksums itself, or the kernel before it hands it a packet.
pub(crate) fn checksum_offload(device: &str, on: bool) -> io::Result<()> {
    set_feature(device, ETHTOOL_STXCSUM, on)
}

fn set_feature(device: &str, command: u32, on: bool) -> io::Result<()> {
    // struct ethtool_value, behind struct ifreq's name.
    let mut value = [command, u32::from(on)];
    // SAFETY: plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    for (place, byte) in request.ifr_name[..15].iter_mut().zip(device.bytes()) {
        // Signed or not, by the architecture.
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: request and value are as the command wants them, and outlive the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends a frame on a device, past the IP stack.
pub(crate) fn send_frame(device: &str, frame: &[u8]) -> Result<()> {
    let socket = packet_socket(device)?;
    // SAFETY: the buffer is as long as is said.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    if sent == -1 {
        Err(io::Error::last_os_error()).context("cannot send a frame")
    } else {
        Ok(())
    }
}

/// A socket for the frames of a device; reading times out after a tenth of a second.
pub(crate) fn packet_socket(device: &str) -> Result<OwnedFd> {
    let protocol = u16::try_from(libc::ETH_P_ALL)
        .expect("an EtherType")
        .to_be();
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(protocol))
        .context("cannot open a packet socket")?;
    let name = CString::new(device).context("a device name")?;
    // SAFETY: the string ends with zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("no device {device}"));
    }
    // SAFETY: plain data, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("an address family");
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index).context("an interface index")?;
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("a small struct");
    // SAFETY: the address is of the family that the socket has, and as long as is said.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } == -1 {
        return Err(io::Error::last_os_error()).context("cannot bind a packet socket");
    }
    let timeout = nix::sys::time::TimeVal::new(0, 100_000);
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimeout, &timeout)
        .context("cannot set a timeout")?;
    Ok(socket)
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is involved.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was opened just now and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads a frame from a packet socket into the buffer; none if it is one that leaves by the device.
/// Where the socket has a timeout, `WouldBlock` says that nothing came.
pub(crate) fn receive<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
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
    Ok((from.sll_pkttype != libc::PACKET_OUTGOING).then_some(&buffer[..received]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_its_checksum_sums_to_zero() {
        let packet = udp_packet(
            "10.244.1.11".parse().unwrap(),
            "203.0.113.10".parse().unwrap(),
            9999,
            b"odd",
        )
        .unwrap();
        assert_eq!(checksum(&packet[..20]), 0);
        assert_eq!(packet.len(), 31);
    }

    #[test]
    fn families_are_not_mixed() {
        let result = udp_packet(
            "10.0.0.1".parse().unwrap(),
            "2001:db8::1".parse().unwrap(),
            1,
            b"",
        );
        assert!(result.is_err());
    }
}
