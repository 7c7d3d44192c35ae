//! The checksum that a packet leaves to be written: by the kernel when it takes the packet apart or the
//! device can't, else by the device. Where to is the sender's word, and a packet socket's may be any place.
#![forbid(unsafe_code)]

use crate::packet::{ETHERTYPE_ARP, Headers, ICMP, ICMPV6, SCTP, TCP, UDP, header_len};

/// A checksum that is still to be written. Offsets count from the first byte of the packet, as that of
/// [`crate::packet::Packet::load`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwritten {
    /// From here on it is summed up, to the end of the packet.
    pub start: u32,
    /// Two bytes are written here.
    pub at: u32,
}

impl Unwritten {
    /// Whether what this packet was judged by stays as it is: the checksum is that of its own transport
    /// header, or of something behind (the packet in a tunnel of the pod's own).
    #[inline(always)]
    pub const fn spares(self, headers: &Headers) -> bool {
        if headers.ethertype == ETHERTYPE_ARP {
            return false;
        }
        let field = match headers.proto {
            TCP => 16,
            UDP => 6,
            SCTP => 8,
            // Of these all is judged, and no kernel leaves their checksum to be written.
            ICMP | ICMPV6 if !headers.is_later_fragment() => return false,
            _ => 0,
        };
        if headers.is_later_fragment() {
            return self.at >= headers.offset;
        }
        (field != 0 && self.start == headers.offset && self.at == headers.offset + field)
            || self.at >= headers.offset + header_len(headers.proto) as u32
    }
}

/// Name of the kernel programs' global that holds a [`SkbFields`].
pub const SKB_FIELDS: &str = "SP_SKB_FIELDS";

/// Bytes of a `struct sk_buff` that the kernel programs read at once where they read it by helper.
pub const SKB_REGION: usize = 64;

/// The kernel's function (kfunc) that makes the socket buffer of a context; Linux has it since 6.2.
pub const KERNEL_CONTEXT: &str = "bpf_cast_to_kern_ctx";

/// The helper that the kernel programs are built to call for [`KERNEL_CONTEXT`]: no kernel has it. Its
/// number in the running kernel's BTF, which takes its place, is known to user space when it loads them.
pub const KERNEL_CONTEXT_CALL: u32 = 0x5359_0001;

/// Where the running kernel has the fields of a `struct sk_buff`, in words as the programs read them.
/// User space takes it from the kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkbFields {
    /// Where the bytes that are read begin; the places below are within these.
    pub region: u32,
    /// Of the byte that has `ip_summed`, and how far to the left of its lowest bit it stands.
    pub ip_summed: u32,
    pub ip_summed_shift: u32,
    pub csum_start: u32,
    pub csum_offset: u32,
    pub mac_header: u32,
}

impl SkbFields {
    /// Of no kernel: nothing can be read there, and no packet passes.
    pub const UNKNOWN: Self = Self {
        region: u32::MAX,
        ip_summed: 0,
        ip_summed_shift: 0,
        csum_start: 0,
        csum_offset: 0,
        mac_header: 0,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Part;

    /// Behind the headers of Ethernet and IPv4.
    const HERE: u32 = 34;

    const fn headers(proto: u8, part: Part) -> Headers {
        Headers {
            src: [0; 4],
            dst: [0; 4],
            offset: HERE,
            id: 0,
            src_port_be: 0,
            dst_port_be: 0,
            ethertype: 0x0800,
            hops: 64,
            proto,
            flags: 0,
            code: 0,
            part,
            v6: false,
        }
    }

    /// The places, counted from the transport header, at which something may be written when the sum
    /// begins there.
    fn spared(proto: u8, part: Part) -> Vec<i64> {
        let headers = headers(proto, part);
        let places = (0..100).filter(|at| {
            let (start, at) = (HERE.min(*at), *at);
            Unwritten { start, at }.spares(&headers)
        });
        places.map(|at| i64::from(at) - i64::from(HERE)).collect()
    }

    #[test]
    fn only_the_checksum_and_what_is_behind_the_header_may_be_written() {
        for (proto, field, end) in [(TCP, 16, 20), (UDP, 6, 8), (SCTP, 8, 13)] {
            for part in [Part::Whole, Part::First] {
                let behind = end..100 - i64::from(HERE);
                let expected: Vec<_> = std::iter::once(field).chain(behind).collect();
                assert_eq!(spared(proto, part), expected, "{proto} {part:?}");
            }
        }
    }

    #[test]
    fn nothing_of_an_icmp_message_may_be_written() {
        for proto in [ICMP, ICMPV6] {
            assert_eq!(spared(proto, Part::Whole), [], "{proto}");
            assert_eq!(spared(proto, Part::First), [], "{proto}");
        }
    }

    #[test]
    fn nothing_of_arp_may_be_written() {
        let arp = Headers {
            ethertype: ETHERTYPE_ARP,
            ..Headers::default()
        };
        assert!((0..100).all(|at| !Unwritten { start: 0, at }.spares(&arp)));
    }

    #[test]
    fn of_other_protocols_and_later_fragments_only_ip_is_judged() {
        let all: Vec<_> = (0..100 - i64::from(HERE)).collect();
        assert_eq!(spared(47, Part::Whole), all);
        for proto in [TCP, UDP, SCTP, ICMP, ICMPV6, 47] {
            assert_eq!(spared(proto, Part::Later), all, "{proto}");
        }
    }

    #[test]
    fn a_sum_that_begins_elsewhere_is_not_of_this_header() {
        let at = HERE + 16;
        for start in [0, 14, HERE - 2, HERE + 2, at] {
            assert!(!Unwritten { start, at }.spares(&headers(TCP, Part::Whole)));
        }
    }
}
