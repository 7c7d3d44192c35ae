use super::*;
use crate::netlink::push_attribute;

const UDP: u8 = 17;
const ESTABLISHED: u8 = 3;
const POD: &str = "10.0.1.5";

fn tuple(src: &str, src_port: u16, dst: &str, dst_port: u16, proto: u8) -> Tuple {
    Tuple {
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        src_port,
        dst_port,
        proto,
    }
}

fn tcp(orig: (&str, u16, &str, u16), reply: (&str, u16, &str, u16)) -> Entry {
    Entry {
        orig: tuple(orig.0, orig.1, orig.2, orig.3, TCP),
        reply: tuple(reply.0, reply.1, reply.2, reply.3, TCP),
        tcp_state: Some(ESTABLISHED),
        status: IPS_SEEN_REPLY,
    }
}

fn adopted(entries: &[Entry]) -> Adopted {
    StandingFlows::new(entries).adopt(Some(POD.parse().unwrap()), Some("fd00::5".parse().unwrap()))
}

fn flow(peer: &str, peer_port: u16, pod_port: u16, proto: u8) -> StandingFlow {
    StandingFlow {
        peer: peer.parse().unwrap(),
        peer_port,
        pod_port,
        proto,
    }
}

#[test]
fn a_client_of_a_node_port_is_seen_as_after_both_nats() {
    // 192.0.2.9 asked node port 30080; kube-proxy sends it to the pod as from the node.
    let entry = tcp(
        ("192.0.2.9", 51000, "172.16.0.2", 30080),
        (POD, 8080, "172.16.0.2", 40001),
    );
    let found = adopted(&[entry]);
    assert_eq!(found.inbound, [flow("172.16.0.2", 40001, 8080, TCP)]);
    assert_eq!(found.outbound, []);
}

#[test]
fn a_service_that_the_pod_asked_is_seen_as_before_nat() {
    let entry = tcp(
        (POD, 43210, "10.96.0.10", 443),
        ("10.0.2.7", 8443, POD, 43210),
    );
    let found = adopted(&[entry]);
    assert_eq!(found.outbound, [flow("10.96.0.10", 443, 43210, TCP)]);
    assert_eq!(found.inbound, []);
    // And the pod behind the Service has an inbound flow from the first pod.
    let behind = StandingFlows::new(&[entry]).adopt(Some("10.0.2.7".parse().unwrap()), None);
    assert_eq!(behind.inbound, [flow(POD, 43210, 8443, TCP)]);
}

#[test]
fn a_pod_behind_its_own_service_has_both() {
    let entry = tcp(
        (POD, 43210, "10.96.0.10", 443),
        (POD, 8443, "172.16.0.2", 40001),
    );
    let found = adopted(&[entry]);
    assert_eq!(found.inbound, [flow("172.16.0.2", 40001, 8443, TCP)]);
    assert_eq!(found.outbound, [flow("10.96.0.10", 443, 43210, TCP)]);

    let alone = tcp((POD, 43210, "10.96.0.10", 443), (POD, 8443, POD, 43210));
    assert_eq!(adopted(&[alone]).inbound, []);
}

#[test]
fn what_the_pod_opened_never_counts_as_opened_from_outside() {
    let out = tcp(
        (POD, 43210, "203.0.113.7", 443),
        ("203.0.113.7", 443, "172.16.0.2", 43210),
    );
    assert_eq!(adopted(&[out]).inbound, []);
    assert_eq!(
        adopted(&[out]).outbound,
        [flow("203.0.113.7", 443, 43210, TCP)]
    );
}

#[test]
fn what_nobody_answered_or_what_is_over_is_left() {
    let standing = tcp(
        ("192.0.2.9", 51000, POD, 8080),
        (POD, 8080, "192.0.2.9", 51000),
    );
    assert_eq!(adopted(&[standing]).inbound.len(), 1);
    let time_wait = 7;
    for gone in [
        Entry {
            status: 0,
            ..standing
        },
        Entry {
            status: IPS_SEEN_REPLY | IPS_DYING,
            ..standing
        },
        Entry {
            tcp_state: Some(time_wait),
            ..standing
        },
        Entry {
            tcp_state: None,
            ..standing
        },
    ] {
        assert_eq!(adopted(&[gone]), Adopted::default(), "{gone:?}");
    }
}

#[test]
fn both_families_and_udp_are_adopted_once() {
    let entry = Entry {
        orig: tuple("fd00::9", 5000, "fd00::5", 53, UDP),
        reply: tuple("fd00::5", 53, "fd00::9", 5000, UDP),
        tcp_state: None,
        status: IPS_SEEN_REPLY,
    };
    assert_eq!(
        adopted(&[entry, entry]).inbound,
        [flow("fd00::9", 5000, 53, UDP)]
    );
}

#[test]
fn keys_are_in_network_byte_order_with_mapped_addresses() {
    let key = flow("192.0.2.9", 0x1234, 80, TCP).key(7);
    let mut peer = [0; 16];
    peer[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 9]);
    assert_eq!(
        key,
        FlowKey {
            slot: 7,
            peer_be: peer,
            peer_port_be: [0x12, 0x34],
            pod_port_be: [0, 80],
            proto: TCP,
            version: 4,
            pad: [0; 2],
        }
    );
}

fn nest(kind: u16, parts: &[(u16, &[u8])]) -> Vec<u8> {
    let mut inner = Vec::new();
    for (kind, value) in parts {
        push_attribute(&mut inner, *kind, value);
    }
    let mut outer = Vec::new();
    push_attribute(&mut outer, kind | 0x8000, &inner);
    outer
}

/// An answer as the kernel writes it.
fn answer(ip: [&[u8]; 2], proto: &[(u16, &[u8])]) -> Vec<u8> {
    let four = ip[0].len() == 4;
    let kinds = if four {
        [CTA_IP_V4_SRC, CTA_IP_V4_DST]
    } else {
        [CTA_IP_V6_SRC, CTA_IP_V6_DST]
    };
    let tuple = |kind, src, dst| {
        let mut inner = nest(CTA_TUPLE_IP, &[(kinds[0], src), (kinds[1], dst)]);
        inner.extend(nest(CTA_TUPLE_PROTO, proto));
        let mut outer = Vec::new();
        push_attribute(&mut outer, kind | 0x8000, &inner);
        outer
    };
    let mut payload = vec![2, 0, 0, 0];
    payload.extend(tuple(CTA_TUPLE_ORIG, ip[0], ip[1]));
    payload.extend(tuple(CTA_TUPLE_REPLY, ip[1], ip[0]));
    push_attribute(&mut payload, CTA_STATUS, &0x0e_u32.to_be_bytes());
    let state = nest(CTA_PROTOINFO_TCP, &[(CTA_PROTOINFO_TCP_STATE, &[3])]);
    push_attribute(&mut payload, CTA_PROTOINFO | 0x8000, &state);
    payload
}

#[test]
fn a_tcp_entry_is_read() {
    let ports: &[(u16, &[u8])] = &[
        (CTA_PROTO_NUM, &[6]),
        (CTA_PROTO_SRC_PORT, &[0x12, 0x34]),
        (CTA_PROTO_DST_PORT, &[0, 80]),
    ];
    let payload = answer([&[10, 0, 1, 5], &[192, 0, 2, 9]], ports);
    let found = parse(&payload).unwrap();
    assert_eq!(found.orig, tuple(POD, 0x1234, "192.0.2.9", 80, TCP));
    assert_eq!(found.reply.src, found.orig.dst);
    assert_eq!((found.tcp_state, found.status), (Some(ESTABLISHED), 0x0e));
    for length in 0..payload.len() - 20 {
        parse(&payload[..length]);
    }
}

#[test]
fn only_an_echo_is_a_flow_of_icmp() {
    let id: &[u8] = &[0xab, 0xcd];
    let ip: [&[u8]; 2] = [&[0xfd; 16], &[0xfe; 16]];
    let echo: &[(u16, &[u8])] = &[
        (CTA_PROTO_NUM, &[58]),
        (CTA_PROTO_ICMPV6_ID, id),
        (CTA_PROTO_ICMPV6_TYPE, &[128]),
    ];
    let found = parse(&answer(ip, echo)).unwrap();
    assert_eq!((found.orig.src_port, found.orig.dst_port), (0xabcd, 0xabcd));
    let timestamp: &[(u16, &[u8])] = &[
        (CTA_PROTO_NUM, &[1]),
        (CTA_PROTO_ICMP_ID, id),
        (CTA_PROTO_ICMP_TYPE, &[13]),
    ];
    assert_eq!(parse(&answer([&[10; 4], &[11; 4]], timestamp)), None);
}
