//! Connections that the node's NAT leads elsewhere than they were addressed to, and their end.
//!
//! NAT is decided once, with a connection's first packet, and stays: a Service that led out of the cluster
//! then, and leads to a pod now, is open to new connections, and the old one still goes out.
#![forbid(unsafe_code)]

use netlink_packet_core::NLA_F_NESTED;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::conntrack::{CT_GET, CTA_STATUS, CTA_TUPLE_ORIG, Entry, parse};
use crate::netlink::{Channel, NFGENMSG, NetlinkError, attribute, push_attribute};

/// `linux/netfilter/nfnetlink.h`, `nfnetlink_conntrack.h`: subsystem and "delete".
const CT_DELETE: u16 = (1 << 8) | 2;
const CTA_ZONE: u16 = 18;
const CTA_STATUS_MASK: u16 = 26;
/// `linux/netfilter/nf_conntrack_common.h`.
const IPS_DST_NAT: u32 = 1 << 5;

/// A tracked connection, and how the kernel is told which it is.
struct Tracked {
    entry: Entry,
    /// Its original tuple, and its zone if it is in one, as the kernel writes them.
    tuple: Vec<u8>,
    zone: Option<Vec<u8>>,
}

/// Ends the diverted connections for which this holds; their next packet begins a new one, by the NAT of
/// now. Returns how many it ended.
///
/// # Errors
/// Needs `CAP_NET_ADMIN`, and conntrack's netlink interface in the kernel.
pub fn cut(ends: impl Fn(&Entry) -> bool) -> Result<u64, NetlinkError> {
    let mut channel = Channel::open(NETLINK_NETFILTER)?;
    let mut count = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).expect("address families are small");
        let mut request = vec![family, 0, 0, 0];
        for kind in [CTA_STATUS, CTA_STATUS_MASK] {
            push_attribute(&mut request, kind, &IPS_DST_NAT.to_be_bytes());
        }
        let all = channel.dump("list tracked connections", CT_GET, &request, read)?;
        for tracked in all.iter().filter(|it| is_diverted(&it.entry)) {
            if !ends(&tracked.entry) {
                continue;
            }
            let mut order = vec![family, 0, 0, 0];
            let kind = CTA_TUPLE_ORIG | NLA_F_NESTED;
            push_attribute(&mut order, kind, &tracked.tuple);
            if let Some(zone) = &tracked.zone {
                push_attribute(&mut order, CTA_ZONE, zone);
            }
            match channel.ask("end a tracked connection", CT_DELETE, &order) {
                Ok(_) => count += 1,
                // It has ended by itself.
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(count)
}

/// Whoever answers is not whom it was addressed to.
fn is_diverted(entry: &Entry) -> bool {
    (entry.orig.dst, entry.orig.dst_port) != (entry.reply.src, entry.reply.src_port)
}

fn read(payload: &[u8]) -> Option<Tracked> {
    let raw = |kind| attribute(payload, NFGENMSG, kind).map(<[u8]>::to_vec);
    Some(Tracked {
        entry: parse(payload)?,
        tuple: raw(CTA_TUPLE_ORIG)?,
        zone: raw(CTA_ZONE),
    })
}
