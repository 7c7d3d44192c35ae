//! The parts of the decision as global functions, which the verifier looks at one by one: see
//! `egress_common::decide::parts`.
//!
//! Of what their arguments point to it knows the size and nothing else, and that one may be null. A
//! null never comes, and would be dropped.
#![allow(
    improper_ctypes_definitions,
    reason = "both sides of these calls are compiled here, and only addresses cross"
)]

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::sk_buff::SkBuff;
use egress_common::Reason;
use egress_common::decide::parts::{Parts, judge, parse};
use egress_common::decide::{End, Side};
use egress_common::maps::Endpoint;
use egress_common::packet::{Found, Headers};
use egress_common::tables::Tables;

use crate::maps::KernelTables;
use crate::skb::Skb;

impl Parts for Skb<'_> {
    #[inline(always)]
    fn parse(&self, side: Side, headers: &mut Headers, _zero: u8) -> Found {
        Found::from_bits(match side {
            Side::Device => sp_parse_frame(self.buffer.skb, headers),
            Side::Cgroup => sp_parse_network(self.buffer.skb, headers),
        })
    }

    #[inline(always)]
    fn judge<T: Tables>(
        &self,
        side: Side,
        headers: &Headers,
        endpoint: &Endpoint,
        _tables: &T,
    ) -> End {
        End::from_bits(match side {
            Side::Device => sp_judge_device(self.buffer.skb, headers, endpoint),
            Side::Cgroup => sp_judge_cgroup(self.buffer.skb, headers, endpoint),
        })
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sp_parse_frame(skb: *mut __sk_buff, headers: *mut Headers) -> u32 {
    parsed(Side::Device, skb, headers)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sp_parse_network(skb: *mut __sk_buff, headers: *mut Headers) -> u32 {
    parsed(Side::Cgroup, skb, headers)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sp_judge_device(
    skb: *mut __sk_buff,
    headers: *const Headers,
    endpoint: *const Endpoint,
) -> u32 {
    judged(Side::Device, skb, headers, endpoint)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sp_judge_cgroup(
    skb: *mut __sk_buff,
    headers: *const Headers,
    endpoint: *const Endpoint,
) -> u32 {
    judged(Side::Cgroup, skb, headers, endpoint)
}

#[inline(always)]
fn parsed(side: Side, skb: *mut __sk_buff, headers: *mut Headers) -> u32 {
    // SAFETY: null, or a reference at the caller's.
    let found = match unsafe { headers.as_mut() } {
        // Nothing is known of headers that are behind a pointer: there is no path to forget.
        Some(headers) => parse(side, &Skb::new(&SkBuff { skb }), headers, 0),
        None => Found::Bad(Reason::Malformed),
    };
    found.to_bits()
}

#[inline(always)]
fn judged(
    side: Side,
    skb: *mut __sk_buff,
    headers: *const Headers,
    endpoint: *const Endpoint,
) -> u32 {
    // SAFETY: null, or references at the caller's.
    let end = match unsafe { (headers.as_ref(), endpoint.as_ref()) } {
        (Some(headers), Some(endpoint)) => {
            let buffer = SkBuff { skb };
            judge(side, &Skb::new(&buffer), headers, endpoint, &KernelTables)
        }
        _ => End::bare(Reason::Malformed),
    };
    end.to_bits()
}
