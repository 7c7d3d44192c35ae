//! Addresses of the node in miniature. Every node has the same: each is a world of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Both {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Both {
    /// Both, IPv4 first.
    pub fn all(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// Name of the Node object.
pub const NODE_NAME: &str = "miniature";
/// The node's own addresses.
pub const NODE: Both = Both {
    v4: Ipv4Addr::new(192, 0, 2, 10),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10),
};
/// The router beyond the uplink.
pub const ROUTER: Both = Both {
    v4: Ipv4Addr::new(192, 0, 2, 1),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1),
};
/// The outside host, `httpbin.org`.
pub const OUTSIDE: Both = Both {
    v4: Ipv4Addr::new(203, 0, 113, 10),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10),
};
/// The pods' default gateway: link-local, answered by the host side of each veth (proxy ARP, and
/// its own `fe80::1`).
pub const POD_GATEWAY: Both = Both {
    v4: Ipv4Addr::new(169, 254, 1, 1),
    v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
};
/// Pod CIDRs of the node.
pub const POD_CIDRS: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

/// Addresses of the pod with this number (2 to 254).
pub const fn pod(number: u8) -> Both {
    Both {
        v4: Ipv4Addr::new(10, 244, 1, number),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, number as u16),
    }
}

/// `ClusterIP`s of the Service with this number.
pub const fn service(number: u8) -> Both {
    Both {
        v4: Ipv4Addr::new(10, 96, 0, number),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number as u16),
    }
}

/// Ports of the outside host: plain HTTP, TLS, and echo over UDP.
pub const OUTSIDE_HTTP: u16 = 80;
pub const OUTSIDE_HTTPS: u16 = 443;
pub const OUTSIDE_UDP: u16 = 9999;
/// Name of the outside host.
pub const OUTSIDE_NAME: &str = "httpbin.org";

/// Number of the cluster DNS's Service, as [`service`] takes it.
pub const DNS: u8 = 10;
