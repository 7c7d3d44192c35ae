//! Connections that stand already, from the kernel's connection tracking.
//!
//! A hook that is attached to a pod with connections has not seen who opened them. Conntrack has,
//! where it is in use.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Once;

use egress_common::flow::version;
use egress_common::maps::FlowKey;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::devices::ip_of;
use crate::netlink::{Channel, NFGENMSG, NetlinkError, attribute, attributes};

/// `linux/netfilter/nfnetlink.h`, `nfnetlink_conntrack.h`: subsystem and "get".
pub(super) const CT_GET: u16 = (1 << 8) | 1;
pub(super) const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
pub(super) const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMPV6_ID: u16 = 7;
const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
/// `linux/netfilter/nf_conntrack_common.h`.
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_DYING: u32 = 1 << 9;
/// `linux/netfilter/nf_conntrack_tcp.h`: from SYN-ACK seen to last ACK awaited.
const TCP_LIVE: std::ops::RangeInclusive<u8> = 2..=6;

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// ICMP and `ICMPv6` echo request.
const ECHO: u8 = 8;
const ECHO6: u8 = 128;

/// Addresses and ports of one direction, as its packets have them when they enter the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// Host byte order; 0 for protocols without ports. For an ICMP echo both are its identifier.
    pub src_port: u16,
    pub dst_port: u16,
    /// IP protocol number.
    pub proto: u8,
}

/// A tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As whoever opened it sends, before NAT.
    pub orig: Tuple,
    /// As the one who answers sends, before its NAT is undone.
    pub reply: Tuple,
    /// `TCP_CONNTRACK_*`; none for other protocols.
    pub tcp_state: Option<u8>,
    /// Bits of `IPS_*`.
    pub status: u32,
}

/// A connection as the hook on the pod's device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StandingFlow {
    pub peer: IpAddr,
    /// Host byte order; for an ICMP echo both are its identifier.
    pub peer_port: u16,
    pub pod_port: u16,
    /// IP protocol number.
    pub proto: u8,
}

impl StandingFlow {
    /// The flow as key of `sp_flows_in` or `sp_flows_out`.
    pub fn key(&self, slot: u32) -> FlowKey {
        let (peer, v6) = match self.peer {
            IpAddr::V4(peer) => (peer.to_ipv6_mapped(), false),
            IpAddr::V6(peer) => (peer, true),
        };
        FlowKey {
            slot,
            peer_be: peer.octets(),
            peer_port_be: self.peer_port.to_be_bytes(),
            pod_port_be: self.pod_port.to_be_bytes(),
            proto: self.proto,
            version: version(v6),
            pad: [0; 2],
        }
    }
}

/// The flows of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Opened by others: the pod's packets in them are replies.
    pub inbound: Vec<StandingFlow>,
    /// Opened by the pod. Whether it may go on is the policy's matter.
    pub outbound: Vec<StandingFlow>,
}

/// The connections that stood at one moment, by the address of the pod they belong to.
#[derive(Clone, Debug, Default)]
pub struct StandingFlows {
    by_address: HashMap<IpAddr, Adopted>,
}

impl StandingFlows {
    /// Reads conntrack of the network namespace that the calling thread is in. Where there is
    /// none or it may not be read, no flows are known, and a warning says so once: connections
    /// that others opened to a pod before it was held break then.
    pub fn read() -> Self {
        static WARNED: Once = Once::new();
        match dump() {
            Ok(entries) => Self::new(&entries),
            Err(error) => {
                WARNED.call_once(|| {
                    tracing::warn!(
                        event = "conntrack-unavailable", %error,
                        "connections that stand already can't be adopted; those opened from \
                         outside are cut when their pod is first held"
                    );
                });
                Self::default()
            }
        }
    }

    pub fn new(entries: &[Entry]) -> Self {
        let mut by_address: HashMap<IpAddr, Adopted> = HashMap::new();
        for entry in entries.iter().filter(|entry| stands(entry)) {
            if let Some((pod, flow)) = inbound(entry) {
                by_address.entry(pod).or_default().inbound.push(flow);
            }
            let (pod, flow) = outbound(entry);
            by_address.entry(pod).or_default().outbound.push(flow);
        }
        Self { by_address }
    }

    /// What a pod with these addresses takes over; sorted.
    pub fn adopt(&self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Adopted {
        let mut all = Adopted::default();
        let addresses = v4.map(IpAddr::from).into_iter().chain(v6.map(IpAddr::from));
        for flows in addresses.filter_map(|address| self.by_address.get(&address)) {
            all.inbound.extend(&flows.inbound);
            all.outbound.extend(&flows.outbound);
        }
        for flows in [&mut all.inbound, &mut all.outbound] {
            flows.sort_unstable();
            flows.dedup();
        }
        all
    }
}

/// Both sides have spoken, and neither has said that it is over. A packet that a pod once sent
/// with a foreign source address, which nobody answered, must not make a flow "from outside".
fn stands(entry: &Entry) -> bool {
    entry.status & IPS_SEEN_REPLY != 0
        && entry.status & IPS_DYING == 0
        && entry
            .tcp_state
            .is_none_or(|state| TCP_LIVE.contains(&state))
        && (entry.orig.proto != TCP || entry.tcp_state.is_some())
}

/// Whoever answers may be a pod; it answers to the address that it sees, which is the opener's
/// after NAT: the node's, if it masquerades. So the reply tuple is what the device hook sees.
///
/// None if the pod answers itself. With another address in between (its own Service, masqueraded)
/// it is a flow like others, and the hook would have learned it as such.
fn inbound(entry: &Entry) -> Option<(IpAddr, StandingFlow)> {
    let Tuple {
        src,
        dst,
        src_port,
        dst_port,
        proto,
    } = entry.reply;
    let flow = StandingFlow {
        peer: dst,
        peer_port: dst_port,
        pod_port: src_port,
        proto,
    };
    (src != dst).then_some((src, flow))
}

/// Whoever opened it sees the address it asked for, before NAT: the original tuple.
fn outbound(entry: &Entry) -> (IpAddr, StandingFlow) {
    let Tuple {
        src,
        dst,
        src_port,
        dst_port,
        proto,
    } = entry.orig;
    (
        src,
        StandingFlow {
            peer: dst,
            peer_port: dst_port,
            pod_port: src_port,
            proto,
        },
    )
}

/// All connections of both families.
///
/// # Errors
/// Needs `CAP_NET_ADMIN`, and conntrack's netlink interface in the kernel.
pub fn dump() -> Result<Vec<Entry>, NetlinkError> {
    let mut channel = Channel::open(NETLINK_NETFILTER)?;
    let mut entries = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).expect("address families are small");
        let request = [family, 0, 0, 0];
        entries.extend(channel.dump("list tracked connections", CT_GET, &request, parse)?);
    }
    Ok(entries)
}

pub(super) fn parse(payload: &[u8]) -> Option<Entry> {
    let (mut orig, mut reply, mut tcp_state, mut status) = (None, None, None, 0);
    for (kind, value) in attributes(payload, NFGENMSG) {
        match kind {
            CTA_TUPLE_ORIG => orig = parse_tuple(value),
            CTA_TUPLE_REPLY => reply = parse_tuple(value),
            CTA_STATUS => status = u32::from_be_bytes(value.try_into().ok()?),
            CTA_PROTOINFO => {
                tcp_state = attribute(value, 0, CTA_PROTOINFO_TCP)
                    .and_then(|tcp| attribute(tcp, 0, CTA_PROTOINFO_TCP_STATE))
                    .and_then(|state| state.first().copied());
            }
            _ => {}
        }
    }
    Some(Entry {
        orig: orig?,
        reply: reply?,
        tcp_state,
        status,
    })
}

/// None for ICMP other than echo too: it opens no flow.
fn parse_tuple(value: &[u8]) -> Option<Tuple> {
    let (mut src, mut dst) = (None, None);
    for (kind, value) in attributes(attribute(value, 0, CTA_TUPLE_IP)?, 0) {
        match kind {
            CTA_IP_V4_SRC | CTA_IP_V6_SRC => src = ip_of(value),
            CTA_IP_V4_DST | CTA_IP_V6_DST => dst = ip_of(value),
            _ => {}
        }
    }
    let part = attribute(value, 0, CTA_TUPLE_PROTO)?;
    let byte = |kind| attribute(part, 0, kind).and_then(|value| value.first().copied());
    let short = |kind| {
        attribute(part, 0, kind)?
            .try_into()
            .ok()
            .map(u16::from_be_bytes)
    };
    let proto = byte(CTA_PROTO_NUM)?;
    let echo = |id, kind, request: u8| {
        // A request's answer has type 0 for ICMP, 129 for ICMPv6.
        let answer = if request == ECHO { 0 } else { request + 1 };
        byte(kind)
            .filter(|kind| [request, answer].contains(kind))
            .and_then(|_| short(id))
    };
    let (src_port, dst_port) = match proto {
        ICMP => echo(CTA_PROTO_ICMP_ID, CTA_PROTO_ICMP_TYPE, ECHO).map(|id| (id, id))?,
        ICMPV6 => echo(CTA_PROTO_ICMPV6_ID, CTA_PROTO_ICMPV6_TYPE, ECHO6).map(|id| (id, id))?,
        _ => (
            short(CTA_PROTO_SRC_PORT).unwrap_or(0),
            short(CTA_PROTO_DST_PORT).unwrap_or(0),
        ),
    };
    Some(Tuple {
        src: src?,
        dst: dst?,
        src_port,
        dst_port,
        proto,
    })
}

#[cfg(test)]
#[path = "conntrack_tests.rs"]
mod tests;
