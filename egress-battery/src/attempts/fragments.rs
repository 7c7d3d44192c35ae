//! Fragments in every order, overlapping, tiny, and in another's name.

use egress_common::Reason::{ExtensionHeader, FragmentTiny, FragmentUnknown, NotAllowed, Protocol};

use super::{pod, sockets};
use crate::case::{BOTH, Case, Group::Fragments, Need, Trouble, V6, failed};
use crate::craft::{self, Ends, protocol};
use crate::ground::Ground;

pub(super) const CASES: [Case; 15] = [
    pod(
        (100, Fragments),
        "fragments in order",
        BOTH,
        &[NotAllowed, FragmentUnknown],
        |g| g.send_ip(&three(g, protocol::UDP)),
    ),
    pod(
        (101, Fragments),
        "fragments in reverse",
        BOTH,
        &[NotAllowed, FragmentUnknown],
        |g| {
            let mut parts = three(g, protocol::UDP);
            parts.reverse();
            g.send_ip(&parts)
        },
    ),
    pod(
        (102, Fragments),
        "fragments in every other order, each twice",
        BOTH,
        &[NotAllowed, FragmentUnknown],
        |g| {
            let [a, b, c] = three(g, protocol::UDP);
            for order in [[&a, &c, &b], [&b, &a, &c], [&b, &c, &a], [&c, &a, &b]] {
                let twice: Vec<_> = order
                    .iter()
                    .flat_map(|part| [(*part).clone(), (*part).clone()])
                    .collect();
                g.send_ip(&twice)?;
            }
            Ok(())
        },
    ),
    pod(
        (103, Fragments),
        "a later fragment alone",
        BOTH,
        &[FragmentUnknown, NotAllowed],
        |g| {
            g.send_ip(&[craft::fragment(
                g.ends(),
                protocol::UDP,
                7,
                (64, false),
                &pad(g.token()),
            )])
        },
    ),
    pod(
        (104, Fragments),
        "a later fragment that writes over the TCP header",
        BOTH,
        &[FragmentTiny, NotAllowed],
        |g| {
            let segment = pad(&craft::tcp(g.ends(), (g.port(), 9999), 2, g.token()));
            g.send_ip(&[
                craft::fragment(g.ends(), protocol::TCP, 8, (0, true), &segment),
                craft::fragment(g.ends(), protocol::TCP, 8, (8, false), &segment[8..]),
            ])
        },
    ),
    pod(
        (105, Fragments),
        "fragments whose data overlap",
        BOTH,
        &[NotAllowed, FragmentUnknown],
        |g| {
            let [a, b, c] = three(g, protocol::UDP);
            let over = craft::fragment(g.ends(), protocol::UDP, ID, (24, true), &pad(g.token()));
            g.send_ip(&[a, over.clone(), b, over, c])
        },
    ),
    pod(
        (106, Fragments),
        "a first fragment without its whole TCP header",
        BOTH,
        &[FragmentTiny, NotAllowed, FragmentUnknown],
        |g| {
            let segment = pad(&craft::tcp(g.ends(), (g.port(), 9999), 2, g.token()));
            g.send_ip(&[
                craft::fragment(g.ends(), protocol::TCP, 9, (0, true), &segment[..8]),
                craft::fragment(g.ends(), protocol::TCP, 9, (24, false), &segment[24..]),
            ])
        },
    ),
    pod(
        (107, Fragments),
        "the kernel's own fragments of a long datagram",
        BOTH,
        &[NotAllowed, FragmentUnknown],
        |g| {
            let long = craft::udp(g.ends(), (g.port(), 9999), &g.token().repeat(400));
            let socket =
                craft::socket(sockets::family(g), libc::SOCK_RAW, i32::from(protocol::UDP))
                    .map_err(failed("open a raw socket"))?;
            let to = sockets::storage((g.order.aim, 0).into());
            nix::sys::socket::sendto(
                std::os::fd::AsRawFd::as_raw_fd(&socket),
                &long,
                &to,
                nix::sys::socket::MsgFlags::empty(),
            )
            .map(drop)
            .map_err(|error| failed("send a long datagram")(error.into()))
        },
    ),
    pod(
        (108, Fragments),
        "an atomic fragment: offset 0 and no more to come",
        V6,
        &[NotAllowed],
        |g| {
            let datagram = craft::udp(g.ends(), (g.port(), 9999), g.token());
            g.send_ip(&[craft::fragment(
                g.ends(),
                protocol::UDP,
                10,
                (0, false),
                &datagram,
            )])
        },
    ),
    pod(
        (109, Fragments),
        "a fragment header in a fragment",
        V6,
        &[ExtensionHeader, NotAllowed],
        |g| {
            let datagram = craft::udp(g.ends(), (g.port(), 9999), g.token());
            let inner = [&[protocol::UDP, 0, 0, 1, 0, 0, 0, 12][..], &datagram].concat();
            g.send_ip(&[craft::fragment(g.ends(), 44, 11, (0, true), &pad(&inner))])
        },
    ),
    pod(
        (110, Fragments),
        "ICMP echo in fragments",
        BOTH,
        &[NotAllowed, FragmentUnknown],
        |g| {
            let kind = if g.is_v6() { 128 } else { 8 };
            let number = if g.is_v6() {
                protocol::ICMPV6
            } else {
                protocol::ICMP
            };
            let head = [&[kind, 0, 0, 0, 0, 1, 0, 1][..], &pad(g.token())].concat();
            g.send_ip(&[
                craft::fragment(g.ends(), number, 13, (0, true), &head),
                craft::fragment(g.ends(), number, 13, (24, false), &pad(g.token())),
            ])
        },
    ),
    pod(
        (111, Fragments),
        "a last fragment beyond 64 KiB",
        BOTH,
        &[FragmentUnknown, NotAllowed],
        |g| {
            g.send_ip(&[craft::fragment(
                g.ends(),
                protocol::UDP,
                14,
                (0xfff8, false),
                &pad(g.token()),
            )])
        },
    ),
    pod(
        (112, Fragments),
        "GRE in fragments",
        BOTH,
        &[Protocol, FragmentUnknown, NotAllowed],
        |g| g.send_ip(&three(g, 47)),
    ),
    pod(
        (113, Fragments),
        "a later fragment with the number of an allowed one to the resolver",
        BOTH,
        &[FragmentUnknown, NotAllowed],
        borrowed,
    )
    .with(&[Need::Dns]),
    pod(
        (114, Fragments),
        "a later fragment in another pod's name",
        BOTH,
        &[egress_common::Reason::Spoofed],
        |g| {
            let other = g
                .order
                .other
                .ok_or_else(|| Trouble::Absent("no other pod".to_owned()))?;
            let ends = crate::ground::ends(other, g.order.aim);
            g.send_ip(&[craft::fragment(
                ends,
                protocol::UDP,
                7,
                (64, false),
                &pad(g.token()),
            )])
        },
    )
    .with(&[Need::OtherPod]),
];

const ID: u16 = 0x5a12;

/// To a multiple of eight bytes.
fn pad(part: &[u8]) -> Vec<u8> {
    let mut part = part.to_vec();
    part.resize(part.len().next_multiple_of(8), 0);
    part
}

/// A datagram in three parts, the token in each.
fn three(ground: &Ground, number: u8) -> [Vec<u8>; 3] {
    let ends = ground.ends();
    let whole = craft::udp(
        ends,
        (ground.port(), 9999),
        &[&pad(ground.token())[..]; 5].concat(),
    );
    let part = |from: usize, to: usize, more: bool| {
        let position = u16::try_from(from).expect("a short datagram");
        craft::fragment(ends, number, ID, (position, more), &whole[from..to])
    };
    [
        part(0, 40, true),
        part(40, 64, true),
        part(64, whole.len(), false),
    ]
}

/// The first fragment goes where it may, and is not told from others' here.
fn borrowed(ground: &Ground) -> Result<(), Trouble> {
    let dns = ground
        .order
        .dns
        .ok_or_else(|| Trouble::Absent("no resolver".to_owned()))?;
    let allowed: Ends = ground.ends_to(dns.ip());
    let query = craft::udp(allowed, (ground.port(), dns.port()), &[0; 56]);
    ground.send_ip(&[
        craft::fragment(allowed, protocol::UDP, 15, (0, true), &query),
        craft::fragment(
            ground.ends(),
            protocol::UDP,
            15,
            (64, false),
            &pad(ground.token()),
        ),
    ])
}
