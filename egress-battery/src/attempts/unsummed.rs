//! Frames whose checksum is left to be written, by the kernel or by the device that they leave by, at a
//! place of the sender's choice: over what they were judged by.
//!
//! The token is in such a frame only once the two bytes are written, and behind the end of the packet,
//! where it is cut off on the way. So what comes out was judged as one thing and left as another.

use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use egress_common::Reason::{GatewayPort, Malformed};
use nix::sys::socket::MsgFlags;

use super::pod;
use super::sockets::set_number;
use crate::case::{BOTH, Case, Group::Sockets, Need, Trouble, failed};
use crate::craft::{self, ethertype_of};
use crate::ground::Ground;

pub(super) const CASES: [Case; 2] = [
    pod(
        (60, Sockets),
        "a checksum that is to be written over the destination port",
        BOTH,
        // Where the pod's device writes checksums itself, it is another port that is judged.
        &[Malformed, GatewayPort],
        over_the_port,
    )
    .with(&[Need::Gateway]),
    pod(
        (61, Sockets),
        "a checksum that is to be written over the destination address",
        BOTH,
        &[Malformed],
        over_the_address,
    )
    .with(&[Need::OtherPod]),
];

const TCP: usize = 20;
/// Of the urgent pointer in a TCP header, which nobody reads.
const URGENT: usize = 18;
/// More than fits into a path that is narrow, but not into one that is not.
const LARGE: usize = 1000;
const SYN: u8 = 2;

/// To a listener of the gateway, and then to another port of it.
fn over_the_port(ground: &Ground) -> Result<(), Trouble> {
    let Some(gateway) = ground.order.gateway else {
        return Err(Trouble::Absent("there is no gateway".to_owned()));
    };
    // From the source port on.
    rewritten(ground, gateway.ip(), gateway.port(), 0, 2)
}

/// To another pod, and then to whoever has an address like it. With IPv4 the header's own checksum is
/// right again only where the node fragments the packet.
fn over_the_address(ground: &Ground) -> Result<(), Trouble> {
    let Some(other) = ground.order.other else {
        return Err(Trouble::Absent("there is no other pod".to_owned()));
    };
    // The end of the address is right before the TCP header.
    rewritten(ground, other, ground.port(), -2, 0)
}

/// Sends a SYN in which the token begins at `token`, counted from the TCP header, but for the two bytes
/// that are to be written `into` it.
fn rewritten(
    ground: &Ground,
    to: IpAddr,
    port: u16,
    token: isize,
    into: usize,
) -> Result<(), Trouble> {
    let ends = ground.ends_to(to);
    let segment = craft::tcp(ends, (ground.port(), port), SYN, &[0; LARGE]);
    let packet = craft::packet(ends, craft::protocol::TCP, &segment);
    let mut frame = ground.frame(ethertype_of(&packet), &packet);
    let header = frame.len() - LARGE - TCP;
    let begin = header.strict_add_signed(token);
    let place = begin + into;
    for (at, byte) in (begin..).zip(ground.token()) {
        if at != place && at != place + 1 {
            frame[at] = *byte;
        }
    }
    let wanted = [ground.token()[into], ground.token()[into + 1]];
    sums_to(&mut frame, place, wanted, header + URGENT);
    frame.extend(ground.token());
    send(ground, &frame, place)
}

/// Has the checksum of all from `place` on be `wanted`, by the two bytes at `filler`. Both are as far from
/// each other as is even.
fn sums_to(frame: &mut [u8], place: usize, wanted: [u8; 2], filler: usize) {
    frame[filler..filler + 2].fill(0);
    let sum = i32::from(!craft::checksum(&frame[place..]));
    let fill = (i32::from(!u16::from_be_bytes(wanted)) - sum).rem_euclid(0xffff);
    let fill = u16::try_from(fill).expect("it is less than the divisor");
    frame[filler..filler + 2].copy_from_slice(&fill.to_be_bytes());
}

/// `linux/virtio_net.h`: the checksum is still to be written.
const NEEDS_CSUM: u8 = 1;

/// Sends a frame past the IP stack, with the checksum of what is from `place` on to be written there.
fn send(ground: &Ground, frame: &[u8], place: usize) -> Result<(), Trouble> {
    let place = u16::try_from(place).expect("a place in a frame");
    let socket =
        craft::bound(&ground.device, libc::SOCK_RAW, 0).map_err(failed("open a packet socket"))?;
    set_number(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    // `struct virtio_net_hdr`: flags, kind of segmentation, length of headers and of a segment, where
    // to begin, and how far from there to write.
    let mut message = vec![NEEDS_CSUM, 0, 0, 0, 0, 0];
    message.extend(place.to_ne_bytes());
    message.extend([0, 0]);
    message.extend(frame);
    nix::sys::socket::send(socket.as_raw_fd(), &message, MsgFlags::empty())
        .map(drop)
        .map_err(|error| failed("send")(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_what_was_wanted() {
        for wanted in [*b"sp", *b"0a", [0xff, 0xfe]] {
            for last in [0x00, 0x17, 0xff] {
                let mut frame = vec![0x11, 0x22, 0x33, 0x44, 0x20, 0xfb, 1, 2, 0x99, 0x98, last];
                sums_to(&mut frame, 4, wanted, 8);
                let sum = craft::checksum(&frame[4..]);
                assert_eq!(sum.to_be_bytes(), wanted, "{frame:02x?}");
            }
        }
    }
}
