//! Parsing: from bytes to what the decision needs, or to the reason why not.
//!
//! Every header is found by walking the ones before it; nothing is read at a fixed offset behind
//! a header of variable length. Lengths are checked against what the IP header says, not only
//! against the frame, so that nothing hides behind the end of a packet.

mod ip;
mod transport;
mod wire;

pub(crate) use transport::header_len;
pub use transport::quoted;
pub use wire::{Packet, Wire};

use crate::reason::Reason;
use ip::{ipv4, ipv6};
use wire::{Aligned4, ArpPacket, Frame4};

pub const ETH_LEN: usize = 14;
pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

const SCTP_INIT: u8 = 1;

/// An address of either family; IPv4 is IPv4-mapped. Words hold wire bytes.
pub type Address = [u32; 4];

/// Second-to-last word of an IPv4-mapped address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

pub const fn mapped(v4: u32) -> Address {
    [0, 0, MAPPED, v4]
}

/// An address as its 16 bytes.
#[inline(always)]
pub fn bytes(address: Address) -> [u8; 16] {
    let [a, b, c, d] = address;
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_ne_bytes(), b.to_ne_bytes());
    let ([c0, c1, c2, c3], [d0, d1, d2, d3]) = (c.to_ne_bytes(), d.to_ne_bytes());
    [
        a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3,
    ]
}

/// Where a packet stands among the fragments of its datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    #[default]
    Whole = 0,
    First = 1,
    Later = 2,
}

/// What the decision needs to know of a packet; as far as it was parsed, the rest is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Of ARP: the sender's protocol address.
    pub src: Address,
    pub dst: Address,
    /// Where the transport header begins.
    pub offset: u32,
    /// Identification, wire bytes; only of a fragment.
    pub id: u32,
    /// Network byte order; zero where the protocol has none. Of an ICMP echo: its identifier, in
    /// both.
    pub src_port_be: u16,
    pub dst_port_be: u16,
    /// Host byte order; 0 if there was none.
    pub ethertype: u16,
    /// Hop limit or time to live.
    pub hops: u8,
    /// Protocol above IP, behind all extension headers.
    pub proto: u8,
    /// TCP: the flags. ICMP: the type. SCTP: the type of the first chunk.
    pub flags: u8,
    /// ICMP: the code.
    pub code: u8,
    pub part: Part,
    pub v6: bool,
}

impl Headers {
    /// Whether this packet may open a flow: a TCP SYN, an SCTP INIT, an ICMP echo request, any UDP.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        match self.proto {
            TCP => self.flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN,
            UDP => true,
            SCTP => self.flags == SCTP_INIT,
            ICMP => self.flags == icmp::ECHO,
            ICMPV6 => self.flags == icmp::ECHO_V6,
            _ => false,
        }
    }

    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        self.part as u8 == Part::Later as u8
    }

    /// Changes nothing, given that `zero` is 0, but the kernel's verifier doesn't know that it is: it
    /// forgets which constants which path of the parser had left, and follows what comes next once
    /// instead of once per path. Without this the programs exceed its limit. The common path, a
    /// whole IPv4 packet, does without and is followed on its own.
    #[inline(always)]
    const fn forget_path(&mut self, zero: u8) {
        self.offset ^= zero as u32;
        self.id ^= zero as u32;
        self.proto ^= zero;
        self.flags ^= zero;
        self.hops ^= zero;
        self.ethertype ^= zero as u16;
        self.v6 = self.v6 as u8 ^ zero != 0;
        self.part = match self.part as u8 ^ zero {
            0 => Part::Whole,
            1 => Part::First,
            _ => Part::Later,
        };
    }

    #[inline(always)]
    const fn is_first_fragment(&self) -> bool {
        self.part as u8 == Part::First as u8
    }

    #[inline(always)]
    const fn at(&self) -> usize {
        self.offset as usize
    }
}

/// ICMP types (RFC 792, RFC 4443, RFC 4861, RFC 3810).
pub mod icmp {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const SOURCE_QUENCH: u8 = 4;
    pub const REDIRECT: u8 = 5;
    pub const ECHO: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER: u8 = 12;

    pub const UNREACHABLE_V6: u8 = 1;
    pub const PARAMETER_V6: u8 = 4;
    pub const ECHO_V6: u8 = 128;
    pub const ECHO_REPLY_V6: u8 = 129;
    pub const LISTENER_QUERY: u8 = 130;
    pub const LISTENER_REPORT: u8 = 131;
    pub const LISTENER_DONE: u8 = 132;
    pub const ROUTER_SOLICIT: u8 = 133;
    pub const ROUTER_ADVERT: u8 = 134;
    pub const NEIGHBOUR_SOLICIT: u8 = 135;
    pub const NEIGHBOUR_ADVERT: u8 = 136;
    pub const REDIRECT_V6: u8 = 137;
    pub const LISTENER_REPORT_2: u8 = 143;
}

/// What a packet turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Arp,
    Ip,
    /// It can't pass, whatever the rules.
    Bad(Reason),
}

/// Parses an Ethernet frame into `headers`, which must be [`Headers::default`]. `zero` is 0, see
/// [`Headers::forget_path`].
#[inline(always)]
pub fn frame<P: Packet>(packet: &P, headers: &mut Headers, zero: u8) -> Found {
    if packet.vlan_offloaded() {
        headers.ethertype = ETHERTYPE_VLAN;
        return Found::Bad(Reason::Vlan);
    }
    // From two bytes before the EtherType, so that the IP header is aligned.
    if let Some(head) = packet.load::<Frame4>(ETH_LEN - 4) {
        headers.ethertype = u16::from_be(head.ethertype_be);
        if headers.ethertype == ETHERTYPE_IPV4 {
            return found(ipv4(packet, ETH_LEN, &head.ip, headers, zero));
        }
    } else {
        match packet.load::<u16>(ETH_LEN - 2) {
            Some(ethertype_be) => headers.ethertype = u16::from_be(ethertype_be),
            None => return Found::Bad(Reason::Malformed),
        }
    }
    match headers.ethertype {
        ETHERTYPE_IPV4 => Found::Bad(Reason::Malformed),
        ETHERTYPE_IPV6 => found(ipv6(packet, ETH_LEN, headers, zero)),
        ETHERTYPE_ARP => match arp(packet, headers) {
            None => Found::Arp,
            Some(reason) => Found::Bad(reason),
        },
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Found::Bad(Reason::Vlan),
        _ => Found::Bad(Reason::NotIp),
    }
}

/// Parses a packet that begins with its IP header, as the cgroup hook has it, into `headers`,
/// which must be [`Headers::default`]. `zero` as for [`frame`].
#[inline(always)]
pub fn network<P: Packet>(packet: &P, headers: &mut Headers, zero: u8) -> Found {
    let Some(header) = packet.load::<Aligned4>(0) else {
        return Found::Bad(Reason::Malformed);
    };
    match header.words[0].to_ne_bytes()[0] >> 4 {
        4 => {
            headers.ethertype = ETHERTYPE_IPV4;
            found(ipv4(packet, 0, &header, headers, zero))
        }
        6 => {
            headers.ethertype = ETHERTYPE_IPV6;
            found(ipv6(packet, 0, headers, zero))
        }
        _ => Found::Bad(Reason::NotIp),
    }
}

#[inline(always)]
const fn found(failed: Option<Reason>) -> Found {
    match failed {
        None => Found::Ip,
        Some(reason) => Found::Bad(reason),
    }
}

// The parsing functions below return what is wrong, if anything: `Option<Reason>` is one byte, and
// a BPF function returns one register.

#[inline(never)]
fn arp<P: Packet>(packet: &P, headers: &mut Headers) -> Option<Reason> {
    let Some(arp) = packet.load::<ArpPacket>(ETH_LEN) else {
        return Some(Reason::Malformed);
    };
    // Ethernet, IPv4, lengths 6 and 4.
    if u16::from_be(arp.hardware_be) != 1
        || u16::from_be(arp.protocol_be) != ETHERTYPE_IPV4
        || u16::from_be(arp.lengths) != 0x0604
    {
        return Some(Reason::ArpSpoofed);
    }
    let [a, b] = arp.sender_ip;
    let ([a0, a1], [b0, b1]) = (a.to_ne_bytes(), b.to_ne_bytes());
    headers.src = mapped(u32::from_ne_bytes([a0, a1, b0, b1]));
    None
}
