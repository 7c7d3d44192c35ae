//! `onDeny: Reject`: the packet becomes the ICMP error that answers it, and goes back to the pod.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::helpers::{bpf_redirect, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use egress_common::Reason;
use egress_common::packet::{ETH_LEN, Headers, ICMP, ICMPV6, TCP, UDP};

/// Answers and drops; or only drops, where an answer would be wrong (RFC 1122, 3.2.2; RFC 4443,
/// 2.4) or the packet is too odd to be worth one.
#[inline(always)]
pub fn answer(ctx: &TcContext, ifindex: u32, reason: Reason, headers: &Headers) -> i32 {
    let plain = matches!(
        reason,
        Reason::NotAllowed | Reason::GatewayPort | Reason::Excepted
    ) && !headers.is_later_fragment();
    // Of TCP the whole header is quoted: the kernel cuts no packet before a checksum that is left
    // to the device.
    let sent = plain
        && match (headers.proto, headers.v6) {
            (TCP, false) => ipv4::<10>(ctx, headers),
            (UDP, false) => ipv4::<7>(ctx, headers),
            (TCP, true) => ipv6::<15>(ctx, headers),
            (UDP, true) => ipv6::<12>(ctx, headers),
            _ => false,
        };
    if sent {
        // SAFETY: plain numbers.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    } else {
        TC_ACT_SHOT
    }
}

/// Ones' complement sum of 16-bit words in wire order (RFC 1071), not yet folded.
#[inline(always)]
fn sum<const N: usize>(words: &[u32; N]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(word & 0xffff) + u64::from(word >> 16);
    }
    sum
}

#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) as u16)
}

/// A word of a header from its wire bytes.
const fn word(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

/// The addresses of the Ethernet header, swapped.
#[inline(always)]
fn swap_macs(ctx: &TcContext) -> Option<()> {
    let [d0, d1, d2, s0, s1, s2] = ctx.skb.load::<[u16; 6]>(0).ok()?;
    ctx.skb.store(0, &[s0, s1, s2, d0, d1, d2], 0).ok()
}

/// Cuts the packet to what is quoted and makes room for the new headers in front of it.
#[inline(always)]
fn make_room(ctx: &TcContext, quoted: u32, added: i32) -> Option<()> {
    // SAFETY: the context is valid for as long as the program runs.
    let cut = unsafe { bpf_skb_change_tail(ctx.as_ptr().cast(), ETH_LEN as u32 + quoted, 0) };
    if cut != 0 {
        return None;
    }
    ctx.skb.adjust_room(added, BPF_ADJ_ROOM_MAC, 0).ok()
}

/// Destination unreachable, communication administratively prohibited (RFC 1812, 5.2.7.1), with so
/// many words of what was sent.
#[inline(never)]
fn ipv4<const QUOTED: usize>(ctx: &TcContext, headers: &Headers) -> bool {
    answer_ipv4::<QUOTED>(ctx, headers).is_some()
}

#[inline(always)]
fn answer_ipv4<const QUOTED: usize>(ctx: &TcContext, headers: &Headers) -> Option<()> {
    // Options would have to be quoted whole; nobody sends them to hear of it.
    if headers.offset as usize != ETH_LEN + 20 {
        return None;
    }
    let quoted = ctx.skb.load::<[u32; QUOTED]>(ETH_LEN).ok()?;
    let (src, dst) = (quoted[4], quoted[3]);
    let [len_hi, len_lo] = (28 + 4 * QUOTED as u16).to_be_bytes();
    make_room(ctx, 4 * QUOTED as u32, 28)?;
    let mut head = [
        // Precedence "internetwork control".
        word([0x45, 0xc0, len_hi, len_lo]),
        0,
        word([64, ICMP, 0, 0]),
        src,
        dst,
    ];
    let [lo, hi] = fold(sum(&head)).to_ne_bytes();
    head[2] = word([64, ICMP, lo, hi]);
    let [lo, hi] = fold(sum(&quoted) + sum(&[word([3, 13, 0, 0])])).to_ne_bytes();
    ctx.skb.store(ETH_LEN, &head, 0).ok()?;
    let icmp = [word([3, 13, lo, hi]), 0];
    ctx.skb.store(ETH_LEN + 20, &icmp, 0).ok()?;
    swap_macs(ctx)
}

/// Destination unreachable, communication administratively prohibited (RFC 4443, 3.1), with so many
/// words of what was sent.
#[inline(never)]
fn ipv6<const QUOTED: usize>(ctx: &TcContext, headers: &Headers) -> bool {
    answer_ipv6::<QUOTED>(ctx, headers).is_some()
}

#[inline(always)]
fn answer_ipv6<const QUOTED: usize>(ctx: &TcContext, headers: &Headers) -> Option<()> {
    if headers.offset as usize != ETH_LEN + 40 || headers.dst[0].to_ne_bytes()[0] == 0xff {
        return None;
    }
    let quoted = ctx.skb.load::<[u32; QUOTED]>(ETH_LEN).ok()?;
    let (d0, d1, d2, d3) = (quoted[2], quoted[3], quoted[4], quoted[5]);
    let (s0, s1, s2, s3) = (quoted[6], quoted[7], quoted[8], quoted[9]);
    let [len_hi, len_lo] = (8 + 4 * QUOTED as u16).to_be_bytes();
    make_room(ctx, 4 * QUOTED as u32, 48)?;
    let head = [
        word([0x60, 0, 0, 0]),
        word([len_hi, len_lo, ICMPV6, 64]),
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ];
    let addresses = [s0, s1, s2, s3, d0, d1, d2, d3];
    let pseudo = [
        word([0, 0, len_hi, len_lo]),
        word([0, 0, 0, ICMPV6]),
        word([1, 1, 0, 0]),
    ];
    let [lo, hi] = fold(sum(&quoted) + sum(&addresses) + sum(&pseudo)).to_ne_bytes();
    ctx.skb.store(ETH_LEN, &head, 0).ok()?;
    let icmp = [word([1, 1, lo, hi]), 0];
    ctx.skb.store(ETH_LEN + 40, &icmp, 0).ok()?;
    swap_macs(ctx)
}
