//! Frames by hand, and a socket that takes them.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use xtask::node::Pod;

/// The pod's frames go to the host side of its device, which has this address.
const HOST: [u8; 6] = [0xee; 6];

pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;

/// Sends frames from inside the pod, past its IP stack. Each is an EtherType and what follows it.
pub fn send(pod: &Pod, frames: &[(u16, Vec<u8>)]) {
    let frames = frames.to_vec();
    pod.netns()
        .within(move || {
            let mac = std::fs::read_to_string("/sys/class/net/eth0/address");
            let socket = packet_socket("eth0")?;
            // /sys may show another namespace's devices; the source address does not matter then.
            let own = mac
                .ok()
                .and_then(|text| parse(&text))
                .unwrap_or([2, 0, 0, 0, 0, 9]);
            for (ethertype, body) in frames {
                let mut frame = [HOST, own].concat();
                frame.extend(ethertype.to_be_bytes());
                frame.extend(body);
                // SAFETY: the buffer is as long as is said.
                let sent = unsafe {
                    libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0)
                };
                if sent == -1 {
                    return Err(io::Error::last_os_error().into());
                }
            }
            Ok(())
        })
        .expect("send frames");
}

fn parse(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .trim()
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    bytes?.try_into().ok()
}

fn packet_socket(device: &str) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is involved.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was opened just now and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let name = std::ffi::CString::new(device).expect("a device name");
    // SAFETY: plain data, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("an address family");
    // SAFETY: the string ends with zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    address.sll_ifindex = i32::try_from(index).expect("an interface index");
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("a small struct");
    // SAFETY: the address is of the family that the socket has, and as long as is said.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Ones' complement checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).expect("folded")).to_be_bytes()
}

/// An IPv4 packet. `fragment` is the field with flags and offset, `id` 7.
pub fn ipv4(
    ends: ([u8; 4], [u8; 4]),
    proto: u8,
    fragment: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let header = 20 + options.len();
    let total = u16::try_from(header + payload.len()).expect("small");
    let mut packet = vec![0x40 | u8::try_from(header / 4).expect("small"), 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 7]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, proto, 0, 0]);
    packet.extend(ends.0);
    packet.extend(ends.1);
    packet.extend(options);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(payload);
    packet
}

/// An IPv6 packet; `next` is the number of what `payload` begins with.
pub fn ipv6(ends: ([u8; 16], [u8; 16]), next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).expect("small").to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(ends.0);
    packet.extend(ends.1);
    packet.extend(payload);
    packet
}

/// A UDP datagram without a checksum.
pub fn udp(to: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = 40_000_u16.to_be_bytes().to_vec();
    datagram.extend(to.to_be_bytes());
    datagram.extend(
        u16::try_from(8 + payload.len())
            .expect("small")
            .to_be_bytes(),
    );
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// A TCP SYN.
pub fn syn(to: u16) -> Vec<u8> {
    let mut segment = 40_001_u16.to_be_bytes().to_vec();
    segment.extend(to.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    segment
}

/// ARP reply that claims an address.
pub fn arp(sender: [u8; 4]) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 9];
    arp.extend(sender);
    arp.extend([0; 6]);
    arp.extend([169, 254, 1, 1]);
    arp
}
