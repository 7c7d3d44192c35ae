//! Bytes of the kernel's netlink.

use super::conntrack::{self, StandingFlows};
use super::devices::{parse_address, parse_link};
use crate::netlink::read_datagram;

/// As a datagram, and as the payload of each kind of message.
pub(crate) fn run(bytes: &[u8]) {
    let _ = read_datagram("fuzz", bytes, 1, |_, payload| payloads(payload));
    payloads(bytes);
}

fn payloads(payload: &[u8]) {
    let _ = parse_address(payload);
    if let Some(link) = parse_link(payload) {
        assert_ne!(link.ifindex, 0, "no device has this number");
    }
    if let Some(entry) = conntrack::parse(payload) {
        let flows = StandingFlows::new(&[entry]);
        for address in [
            entry.orig.src,
            entry.orig.dst,
            entry.reply.src,
            entry.reply.dst,
        ] {
            let (v4, v6) = match address {
                std::net::IpAddr::V4(v4) => (Some(v4), None),
                std::net::IpAddr::V6(v6) => (None, Some(v6)),
            };
            let adopted = flows.adopt(v4, v6);
            for flow in adopted.inbound.iter().chain(&adopted.outbound) {
                assert_eq!(flow.key(1).proto, flow.proto);
            }
        }
    }
}
