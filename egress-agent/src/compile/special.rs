//! Addresses that a broader CIDR never opens; only a CIDR that lies inside them does.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const fn v4(octets: [u8; 4], len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from_octets(octets), len))
}

const fn v6(segments: [u16; 8], len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_segments(segments), len))
}

/// The ranges, each with what it is.
///
/// IPv6 addresses that carry an IPv4 address (mapped, compatible, NAT64, 6to4, Teredo) are here
/// because a translator on the way makes another destination of them, which the CIDRs of IPv4 were
/// meant to decide. A cluster that does use NAT64 names its `64:ff9b::` range in a CIDR of its own.
pub(super) const SPECIAL: &[(IpNet, &str)] = &[
    (v4([0, 0, 0, 0], 8), "this host (0.0.0.0/8)"),
    (v4([127, 0, 0, 0], 8), "loopback (127.0.0.0/8)"),
    (
        v4([169, 254, 0, 0], 16),
        "link-local and instance metadata (169.254.0.0/16)",
    ),
    (
        v4([100, 100, 100, 200], 32),
        "instance metadata (100.100.100.200)",
    ),
    (
        v4([168, 63, 129, 16], 32),
        "platform address of the cloud (168.63.129.16)",
    ),
    (v4([192, 0, 0, 192], 32), "instance metadata (192.0.0.192)"),
    (v4([224, 0, 0, 0], 4), "multicast (224.0.0.0/4)"),
    (v4([255, 255, 255, 255], 32), "broadcast (255.255.255.255)"),
    // `::1` and `::` are in here too.
    (
        v6([0, 0, 0, 0, 0, 0, 0, 0], 96),
        "IPv4-compatible IPv6 (::/96)",
    ),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback (::1)"),
    (
        v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96),
        "IPv4-mapped IPv6 (::ffff:0:0/96)",
    ),
    (
        v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96),
        "NAT64 (64:ff9b::/96)",
    ),
    (
        v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
        "NAT64 (64:ff9b:1::/48)",
    ),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), "Teredo (2001::/32)"),
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "6to4 (2002::/16)"),
    (
        v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
        "link-local (fe80::/10)",
    ),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast (ff00::/8)"),
    (
        v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
        "instance metadata (fd00:ec2::254)",
    ),
    (
        v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
        "instance metadata (fd20:ce::254)",
    ),
];

/// Whether the address is in one of the ranges.
pub(super) fn is_special(ip: std::net::IpAddr) -> bool {
    SPECIAL.iter().any(|(net, _)| net.contains(&ip))
}
