//! Parsing: from bytes to what the decision needs, or to the reason why not.
//!
//! Every header is found by walking the ones before it; nothing is read at a fixed offset behind
//! a header of variable length. Lengths are checked against what the IP header says, not only
//! against the frame, so that nothing hides behind the end of a packet.

use crate::limits::MAX_EXTENSION_HEADERS;
use crate::reason::Reason;

/// A packet as the hook has it.
#[allow(clippy::len_without_is_empty, reason = "there are no empty packets")]
pub trait Packet {
    /// The bytes at `offset`, as they are on the wire; `None` if the packet ends before.
    fn load<T: Wire>(&self, offset: usize) -> Option<T>;
    /// Length in bytes, with the Ethernet header where the hook sees one.
    fn len(&self) -> usize;
    /// Whether the packet carries a VLAN tag beside its bytes (offloaded).
    fn vlan_offloaded(&self) -> bool;
}

/// Types that any bytes are a valid value of.
///
/// # Safety
/// `repr(C)` or an integer or an array of them, without padding, and valid for every bit pattern.
pub unsafe trait Wire: Copy {}

macro_rules! wire {
    ($($ty:ty = $size:literal),+ $(,)?) => { $(
        const _: () = assert!(core::mem::size_of::<$ty>() == $size);
        // SAFETY: only integers and arrays of them; the size shows that there is no padding.
        unsafe impl Wire for $ty {}
    )+ };
}

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

/// IPv4 option numbers of the two source routes (RFC 791).
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;

/// IPv4 header without options. Numbers are in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv4Header {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len_be: u16,
    pub id_be: u16,
    pub fragment_be: u16,
    pub ttl: u8,
    pub proto: u8,
    pub checksum: u16,
    pub src: [u8; 4],
    pub dst: [u8; 4],
}

/// Tail of the Ethernet header and the IPv4 header behind it, aligned as on the wire.
#[repr(C)]
#[derive(Clone, Copy)]
struct Frame4 {
    source_mac_tail: u16,
    ethertype_be: u16,
    ip: Aligned4,
}

/// [`Ipv4Header`] as five words, so that the BPF target copies words and not bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Aligned4 {
    words: [u32; 5],
}

/// IPv6 header as ten words; see [`Aligned4`].
#[repr(C)]
#[derive(Clone, Copy)]
struct Aligned6 {
    words: [u32; 10],
}

wire! {
    Frame4 = 24, Aligned4 = 20, Aligned6 = 40, ArpPacket = 28, u8 = 1, u16 = 2, u32 = 4,
    [u32; 2] = 8, [u32; 3] = 12, [u32; 4] = 16, [u32; 5] = 20,
}

/// ARP for IPv4 over Ethernet (RFC 826).
#[repr(C)]
#[derive(Clone, Copy)]
struct ArpPacket {
    hardware_be: u16,
    protocol_be: u16,
    lengths: u16,
    operation_be: u16,
    sender_mac: [u16; 3],
    sender_ip: [u16; 2],
    target_mac: [u16; 3],
    target_ip: [u16; 2],
}

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
    match packet.load::<u8>(0) {
        Some(first) if first >> 4 == 4 => {
            headers.ethertype = ETHERTYPE_IPV4;
            match packet.load::<Aligned4>(0) {
                Some(header) => found(ipv4(packet, 0, &header, headers, zero)),
                None => Found::Bad(Reason::Malformed),
            }
        }
        Some(first) if first >> 4 == 6 => {
            headers.ethertype = ETHERTYPE_IPV6;
            found(ipv6(packet, 0, headers, zero))
        }
        Some(_) => Found::Bad(Reason::NotIp),
        None => Found::Bad(Reason::Malformed),
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

#[inline(always)]
fn ipv4<P: Packet>(
    packet: &P,
    start: usize,
    header: &Aligned4,
    headers: &mut Headers,
    zero: u8,
) -> Option<Reason> {
    let [first, second, third, src, dst] = header.words;
    let [version_ihl, _, len_hi, len_lo] = first.to_ne_bytes();
    let [_, _, frag_hi, frag_lo] = second.to_ne_bytes();
    let [hops, proto, _, _] = third.to_ne_bytes();

    let header_len = usize::from(version_ihl & 0x0f) * 4;
    let present = packet.len() - start;
    let total = match usize::from(u16::from_be_bytes([len_hi, len_lo])) {
        // A segmentation offload of over 64 KiB ("BIG TCP") has no room for its length.
        0 if present > usize::from(u16::MAX) => present,
        total => total,
    };
    if version_ihl >> 4 != 4 || header_len < 20 || total < header_len || total > present {
        return Some(Reason::Malformed);
    }
    if header_len > 20
        && let Some(reason) = options(packet, start + 20, start + header_len)
    {
        return Some(reason);
    }
    headers.src = mapped(src);
    headers.dst = mapped(dst);
    headers.hops = hops;
    headers.proto = proto;
    headers.offset = (start + header_len) as u32;
    let fragment = u16::from_be_bytes([frag_hi, frag_lo]);
    let position = usize::from(fragment & 0x1fff) * 8;
    if fragment & 0x3fff != 0 {
        headers.part = if position == 0 {
            Part::First
        } else {
            Part::Later
        };
        headers.id = second & u32::from_ne_bytes([0xff, 0xff, 0, 0]);
        let failed = transport(packet, headers, total - header_len, position);
        headers.forget_path(zero);
        return failed;
    }
    transport(packet, headers, total - header_len, 0)
}

/// Refuses source routes, and option lists that don't parse. Other options may pass.
#[inline(never)]
fn options<P: Packet>(packet: &P, start: usize, end: usize) -> Option<Reason> {
    // Bytes of the present option that are still to be passed over. Going byte by byte instead of
    // option by option keeps the position a constant for the verifier.
    let mut skip = 0;
    // At most 40 bytes of options.
    for at in start..start + 40 {
        if at >= end {
            break;
        }
        if skip > 0 {
            skip -= 1;
            continue;
        }
        // The length of an option that has one; behind the last option stands the payload.
        let Some(head) = packet.load::<u16>(at) else {
            return Some(Reason::Malformed);
        };
        match head.to_ne_bytes() {
            [0, _] => return None,
            [1, _] => {}
            [OPTION_LSRR | OPTION_SSRR, _] => return Some(Reason::SourceRoute),
            [_, len] if len >= 2 => skip = len - 1,
            _ => return Some(Reason::Malformed),
        }
    }
    if skip == 0 {
        None
    } else {
        Some(Reason::Malformed)
    }
}

#[inline(never)]
fn ipv6<P: Packet>(packet: &P, start: usize, headers: &mut Headers, zero: u8) -> Option<Reason> {
    let Some(header) = packet.load::<Aligned6>(start) else {
        return Some(Reason::Malformed);
    };
    let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = header.words;
    let [len_hi, len_lo, mut next, hops] = second.to_ne_bytes();
    let present = packet.len() - start;
    let payload = match usize::from(u16::from_be_bytes([len_hi, len_lo])) {
        // As for IPv4; such a packet never reaches a wire as it is.
        0 if present > usize::from(u16::MAX) => present - 40,
        payload => payload,
    };
    if first.to_ne_bytes()[0] >> 4 != 6 || payload > present - 40 {
        return Some(Reason::Malformed);
    }
    headers.v6 = true;
    headers.src = [s0, s1, s2, s3];
    headers.dst = [d0, d1, d2, d3];
    headers.hops = hops;

    let end = start + 40 + payload;
    let mut at = start + 40;
    let mut position = 0;
    for _ in 0..=MAX_EXTENSION_HEADERS {
        match next {
            // Hop-by-hop and destination options: length in units of 8 bytes, less the first.
            0 | 60 => {
                let Some(head) = packet.load::<u16>(at) else {
                    return Some(Reason::Malformed);
                };
                let [following, units] = head.to_ne_bytes();
                // Hop-by-hop options stand first or not at all (RFC 8200, 4.1).
                if next == 0 && at != start + 40 {
                    return Some(Reason::ExtensionHeader);
                }
                next = following;
                at += (usize::from(units) + 1) * 8;
            }
            44 => {
                if headers.is_first_fragment() {
                    return Some(Reason::ExtensionHeader);
                }
                let Some([head, id]) = packet.load::<[u32; 2]>(at) else {
                    return Some(Reason::Malformed);
                };
                let [following, _, frag_hi, frag_lo] = head.to_ne_bytes();
                let fragment = u16::from_be_bytes([frag_hi, frag_lo]);
                position = usize::from(fragment & 0xfff8);
                next = following;
                at += 8;
                headers.id = id;
                // Offset 0 and nothing to follow is a whole packet (RFC 6946).
                if position != 0 {
                    headers.part = Part::Later;
                    break;
                } else if fragment & 1 != 0 {
                    headers.part = Part::First;
                }
            }
            43 => return Some(Reason::SourceRoute),
            _ => break,
        }
        if at > end {
            return Some(Reason::Malformed);
        }
    }
    if at > end {
        return Some(Reason::Malformed);
    }
    // Options or fragments beyond the limit, mobility, HIP, shim6.
    if !headers.is_later_fragment() && matches!(next, 0 | 43 | 44 | 60 | 135 | 139 | 140) {
        return Some(Reason::ExtensionHeader);
    }
    headers.proto = next;
    headers.offset = at as u32;
    let failed = transport(packet, headers, end - at, position);
    headers.forget_path(zero);
    failed
}

/// Bytes of a transport header that must be there, in the first fragment too.
const fn header_len(proto: u8) -> usize {
    match proto {
        TCP => 20,
        UDP | ICMP | ICMPV6 => 8,
        // With the first chunk's type.
        SCTP => 13,
        _ => 0,
    }
}

/// Reads the transport header; `len` bytes of it belong to the packet.
#[inline(always)]
fn transport<P: Packet>(
    packet: &P,
    headers: &mut Headers,
    len: usize,
    position: usize,
) -> Option<Reason> {
    if headers.is_later_fragment() {
        // It would write over the header that the verdict of the first fragment rests on.
        return (position < header_len(headers.proto)).then_some(Reason::FragmentTiny);
    }
    if len < header_len(headers.proto) {
        return Some(if headers.is_first_fragment() {
            Reason::FragmentTiny
        } else {
            Reason::Malformed
        });
    }
    let at = headers.at();
    match headers.proto {
        TCP => {
            let Some([ports, _, _, fourth]) = packet.load::<[u32; 4]>(at) else {
                return Some(Reason::Malformed);
            };
            let [offset, flags, _, _] = fourth.to_ne_bytes();
            let tcp_len = usize::from(offset >> 4) * 4;
            if tcp_len < 20 || (tcp_len > len && !headers.is_first_fragment()) {
                return Some(Reason::Malformed);
            }
            set_ports(headers, ports);
            headers.flags = flags;
        }
        UDP => match packet.load::<u32>(at) {
            Some(ports) => set_ports(headers, ports),
            None => return Some(Reason::Malformed),
        },
        SCTP => {
            let (Some(ports), Some(chunk)) = (packet.load::<u32>(at), packet.load::<u8>(at + 12))
            else {
                return Some(Reason::Malformed);
            };
            set_ports(headers, ports);
            headers.flags = chunk;
        }
        ICMP | ICMPV6 => {
            let Some([head, rest]) = packet.load::<[u32; 2]>(at) else {
                return Some(Reason::Malformed);
            };
            let [kind, code, _, _] = head.to_ne_bytes();
            headers.flags = kind;
            headers.code = code;
            if is_echo(headers.proto, kind) {
                set_identifier(headers, rest);
            }
        }
        _ => {}
    }
    None
}

const fn is_echo(proto: u8, kind: u8) -> bool {
    match proto {
        ICMP => matches!(kind, icmp::ECHO | icmp::ECHO_REPLY),
        _ => matches!(kind, icmp::ECHO_V6 | icmp::ECHO_REPLY_V6),
    }
}

#[inline(always)]
const fn set_ports(headers: &mut Headers, ports: u32) {
    let [s0, s1, d0, d1] = ports.to_ne_bytes();
    headers.src_port_be = u16::from_ne_bytes([s0, s1]);
    headers.dst_port_be = u16::from_ne_bytes([d0, d1]);
}

#[inline(always)]
const fn set_identifier(headers: &mut Headers, rest: u32) {
    let [id_hi, id_lo, _, _] = rest.to_ne_bytes();
    headers.src_port_be = u16::from_ne_bytes([id_hi, id_lo]);
    headers.dst_port_be = headers.src_port_be;
}

/// Reads the packet that the ICMP error `about` quotes, that is, what somebody had sent to the pod,
/// into `headers`, which must be [`Headers::default`]. False if it is of another family, a later
/// fragment, has extension headers, or ends before its ports.
#[inline(always)]
pub fn quoted<P: Packet>(packet: &P, about: &Headers, headers: &mut Headers) -> bool {
    let start = about.at() + 8;
    let ports_at = if about.v6 {
        let Some(header) = packet.load::<Aligned6>(start) else {
            return false;
        };
        let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = header.words;
        if first.to_ne_bytes()[0] >> 4 != 6 {
            return false;
        }
        headers.src = [s0, s1, s2, s3];
        headers.dst = [d0, d1, d2, d3];
        headers.proto = second.to_ne_bytes()[2];
        start + 40
    } else {
        let Some(header) = packet.load::<Aligned4>(start) else {
            return false;
        };
        let [first, second, third, src, dst] = header.words;
        let version_ihl = first.to_ne_bytes()[0];
        let header_len = usize::from(version_ihl & 0x0f) * 4;
        let [_, _, frag_hi, frag_lo] = second.to_ne_bytes();
        if version_ihl >> 4 != 4 || header_len < 20 || (frag_hi & 0x1f) | frag_lo != 0 {
            return false;
        }
        headers.src = mapped(src);
        headers.dst = mapped(dst);
        headers.proto = third.to_ne_bytes()[1];
        start + header_len
    };
    headers.v6 = about.v6;
    let Some([head, rest]) = packet.load::<[u32; 2]>(ports_at) else {
        return false;
    };
    match headers.proto {
        TCP | UDP | SCTP => set_ports(headers, head),
        ICMP | ICMPV6 if is_echo(headers.proto, head.to_ne_bytes()[0]) => {
            set_identifier(headers, rest);
        }
        _ => return false,
    }
    true
}
