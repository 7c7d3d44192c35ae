//! Packets whose headers the sender writes, and the sockets that take them.

mod ip;
mod shared;
mod socket;

pub(crate) use ip::partial_sum;
pub use ip::{Ends, V4, checksum, echo, error, fragment, icmp, packet, quoting, sum_in, tcp, udp};
pub(crate) use shared::Shared;
pub(crate) use socket::{bind, bound, ethertype_of, get_option, index_of, set_option};
pub use socket::{frame, packet_socket, receive, send_cooked, send_frames, send_raw, socket};

/// IP protocol numbers.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// Numbers of what is in an Ethernet frame.
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const VLAN: u16 = 0x8100;
    pub const IPV6: u16 = 0x86dd;
    pub const QINQ: u16 = 0x88a8;
}
