//! Flows: what was opened from outside a pod, so that its replies pass, and what was opened by the
//! pod, so that an answer to that is not mistaken for something opened from outside.

use crate::limits::{
    FORGED_NS, ICMP_IDLE_NS, OUT_IDLE_NS, TCP_CLOSED_NS, TCP_IDLE_NS, TCP_RESET_NS, TOUCH_NS,
    UDP_IDLE_NS,
};
use crate::maps::{Endpoint, FLOW_PAD, Flow, FlowKey, network4, network6, pair, short_pair};
use crate::packet::{Address, Headers, ICMP, ICMPV6, TCP, TCP_FIN, TCP_RST, UDP, bytes, icmp};
use crate::tables::{Full, Tables};

/// The pod has sent a FIN.
pub const CLOSED_BY_POD: u32 = 1;
/// The other end has sent a FIN.
pub const CLOSED_BY_PEER: u32 = 2;
/// Either end has sent a RST.
pub const RESET: u32 = 4;

/// Version of IP, as keys have it.
#[inline(always)]
pub const fn version(v6: bool) -> u8 {
    4 | (v6 as u8) << 1
}

/// Key of the flow between the pod and a peer; ports in network byte order.
#[inline(always)]
pub fn key(
    slot: u32,
    (v6, proto): (bool, u8),
    peer: Address,
    peer_port_be: u16,
    pod_port_be: u16,
) -> FlowKey {
    let [a, b, c, d] = peer;
    FlowKey::from_words([
        slot,
        a,
        b,
        c,
        d,
        pair(peer_port_be, pod_port_be),
        short_pair(proto, version(v6)),
    ])
}

/// Whether a TCP flow was reset, or closed by both ends.
#[inline(always)]
const fn is_over(state: u32) -> bool {
    let both = CLOSED_BY_POD | CLOSED_BY_PEER;
    state & RESET != 0 || state & both == both
}

/// How long a flow opened from outside stands without a packet. Nanoseconds.
const fn idle_ns(proto: u8, state: u32) -> u64 {
    match proto {
        TCP if state & RESET != 0 => TCP_RESET_NS,
        TCP if is_over(state) => TCP_CLOSED_NS,
        UDP => UDP_IDLE_NS,
        ICMP | ICMPV6 => ICMP_IDLE_NS,
        _ => TCP_IDLE_NS,
    }
}

/// Whether the flow is this pod's, and not over.
#[inline(always)]
fn stands(flow: &Flow, endpoint: &Endpoint, now_ns: u64, idle_ns: u64) -> bool {
    flow.seen_ns >= endpoint.since_ns && now_ns.saturating_sub(flow.seen_ns) <= idle_ns
}

/// What a TCP packet does to the state of its flow.
#[inline(always)]
const fn closing(headers: &Headers, fin: u32) -> u32 {
    if headers.proto != TCP {
        return 0;
    }
    let mut state = 0;
    if headers.flags & TCP_FIN != 0 {
        state |= fin;
    }
    if headers.flags & TCP_RST != 0 {
        state |= RESET;
    }
    state
}

/// Whether a packet of the pod with these ends would be in a flow that was opened from outside.
#[inline(always)]
pub fn opened_from_outside<T: Tables>(tables: &T, endpoint: &Endpoint, headers: &Headers) -> bool {
    let key = key(
        endpoint.slot,
        (headers.v6, headers.proto),
        headers.dst,
        headers.dst_port_be,
        headers.src_port_be,
    );
    match tables.flow_in(&key) {
        Some(flow) => stands(
            &flow,
            endpoint,
            tables.now_ns(),
            idle_ns(key.proto, flow.state),
        ),
        None => false,
    }
}

/// Number of the network of an address.
#[inline(always)]
pub fn network(v6: bool, address: Address) -> usize {
    if v6 {
        network6(bytes(address))
    } else {
        network4(address[3].to_ne_bytes())
    }
}

/// A packet from the pod: false if it is no reply in a flow that was opened from outside, told
/// without looking for the flow.
#[inline(always)]
pub fn may_be_reply<T: Tables>(tables: &T, endpoint: &Endpoint, headers: &Headers) -> bool {
    let kind = match headers.proto {
        ICMP => headers.flags == icmp::ECHO_REPLY,
        ICMPV6 => matches!(headers.flags, icmp::ECHO_REPLY_V6 | icmp::NEIGHBOUR_ADVERT),
        UDP => true,
        _ => !headers.opens(),
    };
    kind && tables.inbound(endpoint.slot, network(headers.v6, headers.dst))
}

/// A packet from the pod that [`may_be_reply`]: is it a reply in a flow that was opened from outside?
#[inline(never)]
pub fn is_reply<T: Tables>(tables: &T, endpoint: &Endpoint, headers: &Headers) -> bool {
    let key = key(
        endpoint.slot,
        (headers.v6, headers.proto),
        headers.dst,
        headers.dst_port_be,
        headers.src_port_be,
    );
    let Some(mut flow) = tables.flow_in(&key) else {
        return false;
    };
    let now_ns = tables.now_ns();
    if !stands(&flow, endpoint, now_ns, idle_ns(headers.proto, flow.state)) {
        return false;
    }
    let state = flow.state | closing(headers, CLOSED_BY_POD);
    // What is over ends, however much the pod still sends.
    let goes_on = !is_over(flow.state) && now_ns.saturating_sub(flow.seen_ns) > TOUCH_NS;
    if state != flow.state || goes_on {
        flow = Flow {
            seen_ns: now_ns,
            state,
            pad: [0; FLOW_PAD],
        };
        // An entry that is not written anew ends earlier: closed, not open.
        let _ = tables.set_flow_in(&key, &flow);
    }
    true
}

/// A packet of TCP, UDP or SCTP that [`Headers::opens`] passed, not as a reply: remembers that the
/// pod opened this flow.
#[inline(never)]
pub fn remember_opened_by_pod<T: Tables>(
    tables: &T,
    endpoint: &Endpoint,
    headers: &Headers,
) -> Result<(), Full> {
    let key = key(
        endpoint.slot,
        (headers.v6, headers.proto),
        headers.dst,
        headers.dst_port_be,
        headers.src_port_be,
    );
    touch_out(tables, endpoint, &key, true)
}

/// Key under which [`remember_forged`] remembers: no flow's, for no flow has this protocol.
#[inline(always)]
fn forged_key(slot: u32) -> FlowKey {
    key(slot, (false, 0), [0; 4], 0, 0)
}

/// A packet in another's name has passed, because its pod is only audited. The node may bring it back to
/// the pod, from whatever address and port translation leaves, and it must not open a flow then.
#[inline(never)]
pub fn remember_forged<T: Tables>(tables: &T, endpoint: &Endpoint) -> Result<(), Full> {
    touch_out(tables, endpoint, &forged_key(endpoint.slot), true)
}

#[inline(always)]
fn has_forged<T: Tables>(tables: &T, endpoint: &Endpoint, now_ns: u64) -> bool {
    match tables.flow_out(&forged_key(endpoint.slot)) {
        Some(flow) => stands(&flow, endpoint, now_ns, FORGED_NS),
        None => false,
    }
}

/// A packet to the pod: remembers the flow if it is opened from outside, and its end.
#[inline(always)]
pub fn to_pod<T: Tables>(tables: &T, endpoint: &Endpoint, headers: &Headers) {
    let solicits = headers.proto == ICMPV6 && headers.flags == icmp::NEIGHBOUR_SOLICIT;
    let opens = headers.opens() || solicits;
    let closes = closing(headers, CLOSED_BY_PEER);
    if !opens && closes == 0 {
        return;
    }
    let key = key(
        endpoint.slot,
        (headers.v6, headers.proto),
        headers.src,
        headers.src_port_be,
        headers.dst_port_be,
    );
    let now_ns = tables.now_ns();
    if let Some(flow) = tables.flow_in(&key)
        && stands(&flow, endpoint, now_ns, idle_ns(headers.proto, flow.state))
    {
        // A new SYN on the same ports opens the flow anew.
        let state = if opens && headers.proto == TCP {
            0
        } else {
            flow.state | closes
        };
        if state != flow.state || now_ns.saturating_sub(flow.seen_ns) > TOUCH_NS {
            // Not written: the flow ends earlier than it could. Closed, not open.
            let _ = tables.set_flow_in(
                &key,
                &Flow {
                    seen_ns: now_ns,
                    state,
                    pad: [0; FLOW_PAD],
                },
            );
        }
        return;
    }
    if !opens {
        return;
    }
    // An answer to what the pod itself has opened opens nothing.
    if !matches!(headers.proto, ICMP | ICMPV6) && out_stands(tables, endpoint, &key, now_ns) {
        let _ = touch_out(tables, endpoint, &key, false);
        return;
    }
    if has_forged(tables, endpoint, now_ns) {
        return;
    }
    tables.set_inbound(endpoint.slot, network(headers.v6, headers.src));
    // Not written: the reply is dropped. Closed, not open.
    let _ = tables.set_flow_in(
        &key,
        &Flow {
            seen_ns: now_ns,
            state: 0,
            pad: [0; FLOW_PAD],
        },
    );
}

const fn out_idle_ns(proto: u8) -> u64 {
    match proto {
        UDP => OUT_IDLE_NS,
        _ => TCP_IDLE_NS,
    }
}

#[inline(always)]
fn out_stands<T: Tables>(tables: &T, endpoint: &Endpoint, key: &FlowKey, now_ns: u64) -> bool {
    match tables.flow_out(key) {
        Some(flow) => stands(&flow, endpoint, now_ns, out_idle_ns(key.proto)),
        None => false,
    }
}

/// Writes the time of a flow opened by the pod, at most every `TOUCH_NS`.
#[inline(always)]
fn touch_out<T: Tables>(
    tables: &T,
    endpoint: &Endpoint,
    key: &FlowKey,
    create: bool,
) -> Result<(), Full> {
    let now_ns = tables.now_ns();
    let fresh = match tables.flow_out(key) {
        Some(flow) => {
            flow.seen_ns >= endpoint.since_ns && now_ns.saturating_sub(flow.seen_ns) <= TOUCH_NS
        }
        None => !create,
    };
    if fresh {
        return Ok(());
    }
    tables.set_flow_out(
        key,
        &Flow {
            seen_ns: now_ns,
            state: 0,
            pad: [0; FLOW_PAD],
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::MODE_ENFORCE;
    use crate::memory::MemoryTables;
    use crate::packet::mapped;

    #[test]
    fn an_ipv6_packet_to_a_mapped_address_is_no_reply_in_the_ipv4_flow() {
        let tables = MemoryTables::default();
        let endpoint = Endpoint {
            slot: 1,
            v4_be: [10, 244, 1, 2],
            ..Endpoint::nobodys(MODE_ENFORCE)
        };
        let client = mapped(u32::from_ne_bytes([192, 0, 2, 7]));
        let request = Headers {
            src: client,
            proto: UDP,
            src_port_be: 5000,
            dst_port_be: 53,
            ..Headers::default()
        };
        to_pod(&tables, &endpoint, &request);
        let reply = |v6| Headers {
            dst: client,
            proto: UDP,
            src_port_be: 53,
            dst_port_be: 5000,
            v6,
            ..Headers::default()
        };
        assert!(is_reply(&tables, &endpoint, &reply(false)));
        assert!(!is_reply(&tables, &endpoint, &reply(true)));
        assert!(opened_from_outside(&tables, &endpoint, &reply(false)));
        assert!(!opened_from_outside(&tables, &endpoint, &reply(true)));
    }
}
