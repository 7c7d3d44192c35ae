//! ICMP errors follow the flow that they are about.

use super::End;
use super::rules::{exact, prefix};
use crate::flow;
use crate::maps::Endpoint;
use crate::packet::{self, Headers, Packet, icmp};
use crate::reason::Reason;
use crate::tables::Tables;

/// An ICMP error passes if it is about a flow that the pod may have; `NONE` if this is no error.
#[inline(never)]
pub(super) fn icmp_error<P: Packet, T: Tables>(
    packet: &P,
    headers: &Headers,
    endpoint: &Endpoint,
    tables: &T,
) -> End {
    let error = if headers.v6 {
        matches!(headers.flags, icmp::UNREACHABLE_V6..=icmp::PARAMETER_V6)
    } else {
        match headers.flags {
            icmp::REDIRECT => return End::bare(Reason::NeighbourForged),
            icmp::UNREACHABLE | icmp::SOURCE_QUENCH | icmp::TIME_EXCEEDED | icmp::PARAMETER => true,
            _ => false,
        }
    };
    if !error {
        return End::NONE;
    }
    let mut quoted = Headers::default();
    // It goes back to the sender of a packet to the pod, and to nobody else.
    if !packet::quoted(packet, headers, &mut quoted)
        || quoted.src != headers.dst
        || quoted.dst != headers.src
    {
        return End::bare(Reason::IcmpErrorUnrelated);
    }
    // As the pod would answer what is quoted.
    (quoted.src, quoted.dst) = (quoted.dst, quoted.src);
    (quoted.src_port_be, quoted.dst_port_be) = (quoted.dst_port_be, quoted.src_port_be);
    if flow::opened_from_outside(tables, endpoint, &quoted) {
        return End::bare(Reason::IcmpError);
    }
    if let Some(rule) = exact(&quoted, endpoint, tables) {
        return End::new(Reason::IcmpError, rule.rule);
    }
    let end = prefix(&quoted, endpoint.policy, tables);
    if end.reason().passes() {
        End::new(Reason::IcmpError, end.rule())
    } else {
        End::bare(Reason::IcmpErrorUnrelated)
    }
}
