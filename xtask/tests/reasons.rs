//! Every reason of the decision, with real packets from a real pod: each is counted as what it is,
//! and what must not get out doesn't.

mod support;

mod needs_root {
    use std::collections::BTreeSet;
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::thread::sleep;
    use std::time::Duration;

    use egress_common::Reason;
    use serde_json::json;
    use xtask::node::{PodSpec, plan};

    use super::support::frames::{ARP, IPV4, IPV6, arp, ipv4, ipv6, send, syn, udp};
    use super::support::{Cluster, GATEWAY_SERVICE, RATINGS_SERVICE, skipped};

    /// Frames of a case; each is sent this often.
    const TIMES: usize = 3;
    /// What the pod's own stack may do beside a case.
    const NOISE: [Reason; 2] = [Reason::Arp, Reason::Neighbour];

    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const ICMP: u8 = 1;
    const ICMPV6: u8 = 58;

    struct Case {
        reason: Reason,
        frames: Vec<(u16, Vec<u8>)>,
        /// Counted beside the reason itself: what came before.
        also: Option<Reason>,
    }

    fn case(reason: Reason, frames: Vec<(u16, Vec<u8>)>) -> Case {
        Case {
            reason,
            frames,
            also: None,
        }
    }

    #[allow(clippy::too_many_lines, reason = "a table")]
    fn cases() -> Vec<Case> {
        let own = plan::pod(11);
        let (own4, own6) = (own.v4.octets(), own.v6.octets());
        let to4 = |dst: std::net::Ipv4Addr| (own4, dst.octets());
        let to6 = |dst: std::net::Ipv6Addr| (own6, dst.octets());
        let (outside4, outside6) = (to4(plan::OUTSIDE.v4), to6(plan::OUTSIDE.v6));
        let (ratings4, ratings6) = (to4(plan::pod(12).v4), to6(plan::pod(12).v6));
        let gateway = plan::pod(20);
        let service = plan::service(GATEWAY_SERVICE);
        let dns = plan::service(plan::DNS);
        let plain4 = |ends, proto, payload: &[u8]| (IPV4, ipv4(ends, proto, 0, &[], payload));
        let plain6 = |ends, proto, payload: &[u8]| (IPV6, ipv6(ends, proto, 64, payload));
        let secret = udp(9999, b"secret");
        // An ICMP error about a packet that nobody has sent.
        let about4 = ipv4((outside4.1, own4), UDP, 0, &[], &udp(9, b""));
        let error4 = [vec![3, 3, 0, 0, 0, 0, 0, 0], about4].concat();
        let about6 = ipv6((outside6.1, own6), UDP, 64, &udp(9, b""));
        let error6 = [vec![1, 4, 0, 0, 0, 0, 0, 0], about6].concat();
        let loose_route = [131, 7, 4, 203, 0, 113, 10, 0];
        let routing = [vec![UDP, 0, 0, 1, 0, 0, 0, 0], secret.clone()].concat();
        let options = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
        let chain = options(60).repeat(8);
        let part6 = |next: u8, place: u16, payload: &[u8]| {
            let [hi, lo] = place.to_be_bytes();
            [&[next, 0, hi, lo, 0, 0, 0, 7], payload].concat()
        };
        let advert = [vec![134, 0, 0, 0, 64, 0, 0, 0], vec![0; 8]].concat();
        let all_nodes: std::net::Ipv6Addr = "ff02::1".parse().expect("an address");
        let solicit = [vec![133, 0, 0, 0, 0, 0, 0, 0]].concat();
        let all_routers: std::net::Ipv6Addr = "ff02::2".parse().expect("an address");

        vec![
            case(Reason::Arp, vec![(ARP, arp(own4))]),
            case(
                Reason::ArpSpoofed,
                vec![(ARP, arp(plan::pod(12).v4.octets()))],
            ),
            case(
                Reason::Neighbour,
                vec![(IPV6, ipv6(to6(all_routers), ICMPV6, 255, &solicit))],
            ),
            case(
                Reason::NeighbourForged,
                vec![(IPV6, ipv6(to6(all_nodes), ICMPV6, 255, &advert))],
            ),
            case(
                Reason::NotIp,
                vec![(0x8847, vec![0, 1, 1, 64, 0x45, 0, 0, 20])],
            ),
            case(
                Reason::Vlan,
                vec![(
                    0x8100,
                    [vec![0, 5, 8, 0], plain4(outside4, UDP, &secret).1].concat(),
                )],
            ),
            case(
                Reason::Malformed,
                vec![
                    (IPV4, plain4(outside4, UDP, &secret).1[..24].to_vec()),
                    (IPV6, plain6(outside6, UDP, &secret).1[..44].to_vec()),
                ],
            ),
            case(
                Reason::Spoofed,
                vec![
                    plain4((plan::pod(12).v4.octets(), outside4.1), UDP, &secret),
                    plain6((plan::pod(12).v6.octets(), outside6.1), UDP, &secret),
                ],
            ),
            case(
                Reason::SourceRoute,
                vec![
                    (IPV4, ipv4(outside4, UDP, 0, &loose_route, &secret)),
                    plain6(outside6, 43, &routing),
                ],
            ),
            case(
                Reason::ExtensionHeader,
                vec![plain6(outside6, 60, &[chain, secret.clone()].concat())],
            ),
            case(
                Reason::Protocol,
                vec![plain4(outside4, 47, &[0; 8]), plain6(outside6, 47, &[0; 8])],
            ),
            case(
                Reason::FragmentTiny,
                vec![
                    (IPV4, ipv4(outside4, TCP, 0x2000, &[], &syn(80)[..8])),
                    plain6(outside6, 44, &part6(TCP, 1, &syn(80)[..8])),
                ],
            ),
            case(
                Reason::FragmentUnknown,
                vec![
                    (IPV4, ipv4(outside4, UDP, 0x0010, &[], b"secret..")),
                    plain6(outside6, 44, &part6(UDP, 0x80, b"secret..")),
                ],
            ),
            Case {
                reason: Reason::Fragment,
                frames: vec![
                    (
                        IPV4,
                        ipv4(ratings4, UDP, 0x2000, &[], &udp(9080, b"12345678")),
                    ),
                    (IPV4, ipv4(ratings4, UDP, 0x0002, &[], b"12345678")),
                    // Behind whatever transport header there is.
                    plain6(
                        ratings6,
                        44,
                        &part6(UDP, 1, &udp(9080, b"1234567812345678")),
                    ),
                    plain6(ratings6, 44, &part6(UDP, 0x18, b"12345678")),
                ],
                also: Some(Reason::Cluster),
            },
            case(
                Reason::IcmpErrorUnrelated,
                vec![
                    plain4(outside4, ICMP, &error4),
                    plain6(outside6, ICMPV6, &error6),
                ],
            ),
            case(
                Reason::Gateway,
                vec![
                    plain4(to4(service.v4), TCP, &syn(443)),
                    plain6(to6(service.v6), TCP, &syn(443)),
                    plain4(to4(gateway.v4), TCP, &syn(8443)),
                ],
            ),
            case(
                Reason::GatewayPort,
                vec![
                    plain4(to4(gateway.v4), TCP, &syn(15_000)),
                    plain6(to6(gateway.v6), TCP, &syn(15_000)),
                    plain4(to4(gateway.v4), UDP, &udp(8443, b"")),
                ],
            ),
            case(
                Reason::Cluster,
                vec![
                    plain4(ratings4, TCP, &syn(9080)),
                    plain6(ratings6, TCP, &syn(9080)),
                    plain4(to4(plan::service(RATINGS_SERVICE).v4), TCP, &syn(9080)),
                ],
            ),
            case(
                Reason::Dns,
                vec![
                    plain4(to4(dns.v4), UDP, &udp(53, b"q")),
                    plain6(to6(dns.v6), UDP, &udp(53, b"q")),
                ],
            ),
            case(
                Reason::Exception,
                vec![plain4(to4([198, 51, 100, 7].into()), UDP, &udp(80, b""))],
            ),
            case(
                Reason::Excepted,
                vec![plain4(to4([198, 51, 100, 200].into()), UDP, &udp(80, b""))],
            ),
            case(
                Reason::NotAllowed,
                vec![
                    plain4(outside4, UDP, &secret),
                    plain6(outside6, UDP, &secret),
                    plain4(outside4, TCP, &syn(80)),
                    plain4(to4([198, 51, 100, 7].into()), UDP, &udp(91, b"")),
                    plain4(to4([169, 254, 169, 254].into()), TCP, &syn(80)),
                    plain4(to4([8, 8, 8, 8].into()), UDP, &udp(53, b"q")),
                ],
            ),
        ]
    }

    #[test]
    fn each_packet_ends_for_its_reason() {
        if skipped("needs_root::each_packet_ends_for_its_reason") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let mut agent = cluster.agent(true);
        let slot = cluster.slot(&cluster.web);
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();
        let mut seen = BTreeSet::new();
        for case in cases() {
            let before = cluster.counters();
            for _ in 0..TIMES {
                send(&cluster.web, &case.frames);
            }
            let after = cluster.counters();
            let counted = |reason: Reason| {
                let key = (slot, reason.as_str().to_owned());
                after.get(&key).unwrap_or(&0) - before.get(&key).unwrap_or(&0)
            };
            let sent = u64::try_from(case.frames.len() * TIMES).expect("few");
            let expected = if case.also.is_some() { sent / 2 } else { sent };
            for reason in Reason::ALL {
                let n = counted(*reason);
                if *reason == case.reason || Some(*reason) == case.also {
                    assert!(
                        n >= expected,
                        "{:?}: {n} of {expected} counted",
                        case.reason
                    );
                    assert!(n == expected || NOISE.contains(reason), "{reason:?}: {n}");
                } else {
                    assert!(
                        n == 0 || NOISE.contains(reason),
                        "{:?}: {n} {reason:?}",
                        case.reason
                    );
                }
            }
            seen.insert(case.reason);
        }
        let out: Vec<_> = wire
            .since(mark)
            .into_iter()
            .filter(|packet| packet.contains("secret"))
            .collect();
        assert!(out.is_empty(), "got out: {out:?}");

        replies(&cluster, slot, &mut seen);
        unknown_pods(&cluster, &mut seen);
        let rest = [
            // Not counted as such: pods that nobody holds have no hook, and these two pass before
            // anything is counted.
            Reason::NotHeld,
            Reason::Loopback,
            Reason::Covered,
            // Needs tables of 100,000 entries full with what is in use.
            Reason::TableFull,
        ];
        for reason in Reason::ALL {
            assert_ne!(seen.contains(reason), rest.contains(reason), "{reason:?}");
        }

        host_network(&cluster, &mut agent);
        audit(&cluster, &mut agent, slot);
        reject(&cluster, &mut agent);
    }

    /// Connections from outside are answered, and so are datagrams, by an error too.
    fn replies(cluster: &Cluster, slot: u64, seen: &mut BTreeSet<Reason>) {
        for ip in plan::pod(11).all() {
            let before = cluster.counters();
            let listener = cluster
                .web
                .netns()
                .within(move || Ok(TcpListener::bind(SocketAddr::new(ip, 7000))?))
                .expect("listen in the pod");
            let client = cluster.node.outside().within(move || {
                let wait = Duration::from_secs(5);
                Ok(TcpStream::connect_timeout(
                    &SocketAddr::new(ip, 7000),
                    wait,
                )?)
            });
            client.expect("a client outside is answered");
            drop(listener);
            let refused = cluster.node.outside().within(move || {
                let any = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                socket.connect(SocketAddr::new(ip, 7001))?;
                socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                socket.send(b"anybody there?")?;
                Ok(socket.recv(&mut [0; 8]).map_err(|error| error.kind()))
            });
            let refused = refused.expect("a socket outside");
            assert_eq!(refused, Err(std::io::ErrorKind::ConnectionRefused), "{ip}");
            let after = cluster.counters();
            for reason in [Reason::Reply, Reason::IcmpError] {
                let key = (slot, reason.as_str().to_owned());
                assert!(after.get(&key) > before.get(&key), "{reason:?} by {ip}");
                seen.insert(reason);
            }
        }
    }

    /// A pod that no object tells of meets the closed gate, and is let out when one does.
    fn unknown_pods(cluster: &Cluster, seen: &mut BTreeSet<Reason>) {
        let spec = PodSpec::new("other", "stranger", 40);
        let pod = cluster.node.pod(&spec).expect("a pod");
        let key = (0, Reason::UnknownPod.as_str().to_owned());
        let before = cluster.counters().get(&key).copied().unwrap_or(0);
        for ip in plan::OUTSIDE.all() {
            let to = SocketAddr::new(ip, plan::OUTSIDE_HTTP).to_string();
            let answer = pod
                .probe(&["tcp", "--to", &to, "--timeout-ms", "300"])
                .expect("a probe");
            assert!(
                !answer.answered(),
                "an unknown pod reached {ip}: {answer:?}"
            );
        }
        assert!(cluster.counters()[&key] > before);
        seen.insert(Reason::UnknownPod);

        cluster
            .state
            .apply(&xtask::node::objects::pod(&spec))
            .expect("an object");
        let to = SocketAddr::new(plan::pod(12).v4.into(), 9).to_string();
        for _ in 0..100 {
            let answer = pod
                .probe(&["tcp", "--to", &to, "--timeout-ms", "300"])
                .expect("a probe");
            // Nobody listens there: to be refused is to be heard.
            if answer.outcome == "refused" {
                return;
            }
            sleep(Duration::from_millis(50));
        }
        panic!("a pod that is known by now is still cut off");
    }

    /// A pod of the node's own network is held at the cgroup hook.
    fn host_network(cluster: &Cluster, agent: &mut super::support::Agent) {
        let spec = PodSpec::new("bookinfo", "hostly", 50).host_network();
        let pod = cluster.node.pod(&spec).expect("a pod");
        let object = xtask::node::objects::pod(&spec);
        agent.declare(cluster, || cluster.state.apply(&object).expect("an object"));
        let slot = cluster.slot(&pod);
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();
        for ip in plan::OUTSIDE.all() {
            let to = SocketAddr::new(ip, plan::OUTSIDE_UDP).to_string();
            let probe = [
                "udp",
                "--to",
                &to,
                "--payload",
                "by the node",
                "--timeout-ms",
                "300",
            ];
            let answer = pod.probe(&probe).expect("a probe");
            assert!(!answer.answered(), "{answer:?}");
            let to = SocketAddr::new(ip, plan::OUTSIDE_HTTP).to_string();
            let answer = pod
                .probe(&["tcp", "--to", &to, "--timeout-ms", "300"])
                .expect("a probe");
            assert!(!answer.answered(), "{answer:?}");
        }
        for ip in plan::pod(12).all() {
            let to = SocketAddr::new(ip, 9).to_string();
            let answer = pod
                .probe(&["tcp", "--to", &to, "--timeout-ms", "2000"])
                .expect("a probe");
            assert_eq!(answer.outcome, "refused", "a pod is reached: {answer:?}");
        }
        let out = wire.since(mark);
        assert!(
            !out.iter().any(|packet| packet.contains("by the node")),
            "{out:?}"
        );
        let counters = cluster.counters();
        for reason in [Reason::NotAllowed, Reason::Cluster] {
            assert!(
                counters.contains_key(&(slot, reason.as_str().to_owned())),
                "{reason:?}"
            );
        }
    }

    /// Under Audit the same packets go out, and are counted all the same.
    fn audit(cluster: &Cluster, agent: &mut super::support::Agent, slot: u64) {
        agent.declare(cluster, || cluster.lockdown("Audit", &json!({})));
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();
        let key = (slot, Reason::NotAllowed.as_str().to_owned());
        let before = cluster.counters()[&key];
        let own = plan::pod(11);
        let body = udp(9999, b"seen under audit");
        let frames = [
            (
                IPV4,
                ipv4(
                    (own.v4.octets(), plan::OUTSIDE.v4.octets()),
                    UDP,
                    0,
                    &[],
                    &body,
                ),
            ),
            (
                IPV6,
                ipv6((own.v6.octets(), plan::OUTSIDE.v6.octets()), UDP, 64, &body),
            ),
        ];
        // IPv6 wants a checksum at the far end, but the wire is before that.
        send(&cluster.web, &frames);
        let out = wire.since(mark);
        let out: Vec<_> = out
            .iter()
            .filter(|it| it.contains("seen under audit"))
            .collect();
        assert_eq!(out.len(), 2, "{out:?}");
        assert_eq!(cluster.counters()[&key] - before, 2);
    }

    /// `onDeny: Reject` answers at once, in both families.
    fn reject(cluster: &Cluster, agent: &mut super::support::Agent) {
        agent.declare(cluster, || {
            cluster.lockdown("Enforce", &json!({ "onDeny": "Reject" }));
        });
        for ip in plan::OUTSIDE.all() {
            let to = SocketAddr::new(ip, plan::OUTSIDE_HTTP).to_string();
            let answer = cluster
                .web
                .probe(&["tcp", "--to", &to, "--timeout-ms", "5000"]);
            let answer = answer.expect("a probe");
            assert!(!answer.answered(), "{answer:?}");
            assert_ne!(
                answer.outcome, "timeout",
                "{ip} is answered at once: {answer:?}"
            );
            // The kernel only notes an error that comes while `connect` still holds the socket; then
            // the answer to the first retransmission, a second later, ends it.
            assert!(answer.milliseconds < 2500, "{answer:?}");
        }
    }
}
