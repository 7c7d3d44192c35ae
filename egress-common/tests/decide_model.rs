//! `decide()` against a naive model: random rules, and a random history of packets from and to a
//! pod, with the clock and the mode changing in between. The model knows no bytes, no tables and
//! no flows; it looks at the whole history each time.

use egress_common::maps::{
    Endpoint, ExactKey4, ExactRule, MODE_AUDIT, MODE_ENFORCE, NO_RULE, PortRange, PrefixKey4,
    PrefixRule, network4,
};
use egress_common::memory::{Bytes, MemoryTables, POLICY_BITS};
use egress_common::packet::Headers;
use egress_common::{Reason, Side, Verdict, decide, limits};
use proptest::prelude::*;

const POLICY: u32 = 3;
const OWN: [u8; 4] = [10, 0, 0, 1];
const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_000 * SECOND;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Syn,
    Ack,
    Udp,
    Echo,
    EchoReply,
    Gre,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Whole,
    First,
    Later,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The pod sends; `own` source or another's.
    Send {
        kind: Kind,
        peer: [u8; 4],
        port: u16,
        pod_port: u16,
        own: bool,
        part: Part,
        id: u8,
    },
    /// Somebody sends to the pod.
    Receive {
        kind: Kind,
        peer: [u8; 4],
        port: u16,
        pod_port: u16,
    },
    Wait {
        seconds: u64,
    },
    Mode {
        audit: bool,
    },
}

/// A rule in words: these addresses, this protocol (0 is any), these ports.
#[derive(Clone, Debug)]
struct Prefix {
    addr: [u8; 4],
    bits: u32,
    proto: u8,
    first: u16,
    last: u16,
}

#[derive(Clone, Debug)]
struct Rules {
    exact: Vec<([u8; 4], u16, u8)>,
    prefixes: Vec<Prefix>,
}

fn addr() -> impl Strategy<Value = [u8; 4]> {
    (0..2_u8, 0..2_u8).prop_map(|(a, b)| [192, 0, a, b])
}

fn port() -> impl Strategy<Value = u16> {
    prop::sample::select(vec![53_u16, 80])
}

fn kind() -> impl Strategy<Value = Kind> {
    use Kind::{Ack, Echo, EchoReply, Gre, Syn, Udp};
    prop::sample::select(vec![Syn, Ack, Ack, Udp, Udp, Echo, EchoReply, Gre])
}

fn step() -> impl Strategy<Value = Step> {
    let part = prop::sample::select(vec![
        Part::Whole,
        Part::Whole,
        Part::Whole,
        Part::Whole,
        Part::First,
        Part::Later,
    ]);
    let send = (
        kind(),
        addr(),
        port(),
        1..3_u16,
        prop::bool::weighted(0.9),
        part,
        0..2_u8,
    )
        .prop_map(|(kind, peer, port, pod_port, own, part, id)| Step::Send {
            kind,
            peer,
            port,
            pod_port,
            own,
            part,
            id,
        });
    let receive =
        (kind(), addr(), port(), 1..2_u16).prop_map(|(kind, peer, port, pod_port)| Step::Receive {
            kind,
            peer,
            port,
            pod_port,
        });
    let seconds = prop::sample::select(vec![0_u64, 5, 20, 29, 31, 100, 179, 181, 301]);
    prop_oneof![
        6 => send,
        3 => receive,
        1 => seconds.prop_map(|seconds| Step::Wait { seconds }),
        1 => any::<bool>().prop_map(|audit| Step::Mode { audit }),
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    let exact = prop::collection::vec((addr(), port(), prop::sample::select(vec![6_u8, 17])), 0..4);
    let prefix = (
        addr(),
        22..=32_u32,
        prop::sample::select(vec![0_u8, 6, 17]),
        port(),
        port(),
    )
        .prop_map(|(addr, bits, proto, a, b)| {
            let (first, last) = if proto == 0 {
                (0, u16::MAX)
            } else {
                (a.min(b), a.max(b))
            };
            Prefix {
                addr,
                bits,
                proto,
                first,
                last,
            }
        });
    (exact, prop::collection::vec(prefix, 0..4))
        .prop_map(|(exact, prefixes)| Rules { exact, prefixes })
}

const fn proto(kind: Kind) -> u8 {
    match kind {
        Kind::Syn | Kind::Ack => 6,
        Kind::Udp => 17,
        Kind::Echo | Kind::EchoReply => 1,
        Kind::Gre => 47,
    }
}

fn contains(prefix: &Prefix, addr: [u8; 4]) -> bool {
    let shift = 32 - prefix.bits;
    u32::from_be_bytes(prefix.addr) >> shift == u32::from_be_bytes(addr) >> shift
}

/// What happened, as the model remembers it.
#[derive(Clone, Copy)]
struct Past {
    step: Step,
    at: u64,
    /// For packets that the pod sent: how it ended.
    end: Option<(Verdict, Reason)>,
}

struct Model<'a> {
    rules: &'a Rules,
    past: Vec<Past>,
}

/// The three things that tell a flow, for a model that looks only at IPv4.
type Flow = (u8, [u8; 4], u16, u16);

fn flow(kind: Kind, peer: [u8; 4], port: u16, pod_port: u16) -> Flow {
    // Of an echo only its identifier counts, and it is the pod's port here.
    let port = if proto(kind) == 1 { pod_port } else { port };
    (proto(kind), peer, port, pod_port)
}

impl Model<'_> {
    /// Whether a flow that was opened from outside stands at `now`, told from the whole past.
    fn open_from_outside(&self, wanted: Flow, now: u64) -> bool {
        let idle = match wanted.0 {
            17 => limits::UDP_IDLE_NS,
            1 => limits::ICMP_IDLE_NS,
            _ => limits::TCP_IDLE_NS,
        };
        let mut inbound: Option<u64> = None;
        let mut outbound: Option<u64> = None;
        let out_idle = if wanted.0 == 17 {
            limits::OUT_IDLE_NS
        } else {
            limits::TCP_IDLE_NS
        };
        let mut forged: Option<u64> = None;
        for past in &self.past {
            let at = past.at;
            if past.end == Some((Verdict::Audit, Reason::Spoofed)) {
                touch(&mut forged, at);
            }
            let in_stands = inbound.is_some_and(|seen| at - seen <= idle);
            let out_stands = outbound.is_some_and(|seen| at - seen <= out_idle);
            match past.step {
                Step::Receive {
                    kind,
                    peer,
                    port,
                    pod_port,
                } if flow(kind, peer, port, pod_port) == wanted
                    && matches!(kind, Kind::Syn | Kind::Udp | Kind::Echo) =>
                {
                    if in_stands {
                        touch(&mut inbound, at);
                    } else if out_stands && kind != Kind::Echo {
                        touch(&mut outbound, at);
                    } else if forged.is_none_or(|seen| at - seen > limits::FORGED_NS) {
                        inbound = Some(at);
                    }
                }
                Step::Send {
                    kind,
                    peer,
                    port,
                    pod_port,
                    part,
                    ..
                } if flow(kind, peer, port, pod_port) == wanted && part != Part::Later => {
                    match past.end {
                        Some((_, Reason::Reply)) => touch(&mut inbound, at),
                        Some((Verdict::Pass | Verdict::Audit, _))
                            if matches!(kind, Kind::Syn | Kind::Udp) =>
                        {
                            touch(&mut outbound, at);
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        inbound.is_some_and(|seen| now - seen <= idle)
    }

    fn reason(&self, sent: Step, now: u64) -> Reason {
        let Step::Send {
            kind,
            peer,
            port,
            pod_port,
            own,
            part,
            id,
        } = sent
        else {
            unreachable!("only packets from the pod are judged")
        };
        if !own {
            return Reason::Spoofed;
        }
        if part == Part::Later {
            return self.later(proto(kind), peer, id, now);
        }
        if kind == Kind::Gre {
            return Reason::Protocol;
        }
        if self.rules.exact.contains(&(peer, port, proto(kind))) {
            return Reason::Gateway;
        }
        let may_reply = !matches!(kind, Kind::Syn | Kind::Echo);
        if may_reply && self.open_from_outside(flow(kind, peer, port, pod_port), now) {
            return Reason::Reply;
        }
        let port = if proto(kind) == 1 { 0 } else { port };
        let longest = self
            .rules
            .prefixes
            .iter()
            .filter(|prefix| contains(prefix, peer))
            .map(|prefix| prefix.bits)
            .max();
        let allowed = self.rules.prefixes.iter().any(|prefix| {
            Some(prefix.bits) == longest
                && contains(prefix, peer)
                && (prefix.proto == 0 || prefix.proto == proto(kind))
                && (prefix.first..=prefix.last).contains(&port)
        });
        if allowed {
            Reason::Cluster
        } else {
            Reason::NotAllowed
        }
    }

    /// The latest first fragment that was let through counts.
    fn later(&self, wanted: u8, dst: [u8; 4], wanted_id: u8, now: u64) -> Reason {
        let first = self
            .past
            .iter()
            .rev()
            .find_map(|past| match (past.step, past.end) {
                (
                    Step::Send {
                        kind,
                        peer,
                        part: Part::First,
                        id,
                        ..
                    },
                    Some((verdict @ (Verdict::Pass | Verdict::Audit), _)),
                ) if proto(kind) == wanted && peer == dst && id == wanted_id => {
                    Some((verdict, past.at))
                }
                _ => None,
            });
        match first {
            Some((verdict, at)) if now - at <= limits::FRAGMENT_NS => match verdict {
                Verdict::Pass => Reason::Fragment,
                _ => Reason::NotAllowed,
            },
            _ => Reason::FragmentUnknown,
        }
    }
}

/// Times are written at most once a second.
fn touch(seen: &mut Option<u64>, at: u64) {
    if seen.is_none_or(|seen| at - seen > limits::TOUCH_NS) {
        *seen = Some(at);
    }
}

fn frame(kind: Kind, ends: ([u8; 4], [u8; 4]), ports: (u16, u16), part: Part, id: u8) -> Vec<u8> {
    let mut body = Vec::new();
    if part == Part::Later {
        body.extend([0; 32]);
    } else {
        match kind {
            Kind::Syn | Kind::Ack => {
                body.extend(ports.0.to_be_bytes());
                body.extend(ports.1.to_be_bytes());
                body.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50]);
                body.push(if kind == Kind::Syn { 2 } else { 16 });
                body.extend([0; 6]);
            }
            Kind::Udp => {
                body.extend(ports.0.to_be_bytes());
                body.extend(ports.1.to_be_bytes());
                body.extend([0, 8, 0, 0]);
            }
            Kind::Echo | Kind::EchoReply => {
                // The identifier is the pod's port.
                body.extend([if kind == Kind::Echo { 8 } else { 0 }, 0, 0, 0]);
                body.extend(ports.1.to_be_bytes());
                body.extend([0; 2]);
            }
            Kind::Gre => body.extend([0; 8]),
        }
    }
    let (offset, more) = match part {
        Part::Whole => (0, 0),
        Part::First => (0, 0x20),
        Part::Later => (4, 0),
    };
    let total = u16::try_from(20 + body.len()).expect("small");
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0, 0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, id, more, offset, 64, proto(kind), 0, 0]);
    frame.extend(ends.0);
    frame.extend(ends.1);
    frame.extend(body);
    frame
}

fn tables(rules: &Rules) -> MemoryTables {
    let mut tables = MemoryTables::default();
    for (addr_be, port, proto) in &rules.exact {
        let key = ExactKey4 {
            policy: POLICY,
            addr_be: *addr_be,
            port_be: port.to_be_bytes(),
            proto: *proto,
            pad: 0,
        };
        tables.exact4.insert(
            key,
            ExactRule {
                rule: 0,
                reason: Reason::Gateway as u8,
                pad: 0,
            },
        );
    }
    for prefix in &rules.prefixes {
        let shift = 32 - prefix.bits;
        let addr_be = (u32::from_be_bytes(prefix.addr) >> shift << shift).to_be_bytes();
        let key = (
            PrefixKey4 {
                policy_be: POLICY.to_be_bytes(),
                addr_be,
            },
            POLICY_BITS + prefix.bits,
        );
        let nothing = PortRange {
            first: 0,
            last: 0,
            rule: 0,
            proto: 0,
            reason: 0,
        };
        let rule = tables.prefix4.entry(key).or_insert(PrefixRule {
            count: 0,
            deny: Reason::NotAllowed as u8,
            deny_rule: NO_RULE,
            ranges: [nothing; limits::MAX_RANGES],
        });
        rule.ranges[usize::from(rule.count)] = PortRange {
            first: prefix.first,
            last: prefix.last,
            rule: 0,
            proto: prefix.proto,
            reason: Reason::Cluster as u8,
        };
        rule.count += 1;
    }
    tables
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn decides_as_the_model_does(
        rules in rules(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let tables = tables(&rules);
        let mut model = Model { rules: &rules, past: Vec::new() };
        let mut endpoint = Endpoint {
            slot: 1,
            policy: POLICY,
            v4_be: OWN,
            exact_networks: rules.exact.iter().fold(0, |all, (addr, ..)| all | 1 << network4(*addr)),
            ..Endpoint::nobodys(MODE_ENFORCE)
        };
        let mut now = START;
        for step in steps {
            tables.now_ns.set(now);
            let mut end = None;
            match step {
                Step::Wait { seconds } => now += seconds * SECOND,
                Step::Mode { audit } => {
                    endpoint.mode = if audit { MODE_AUDIT } else { MODE_ENFORCE };
                }
                Step::Receive { kind, peer, port, pod_port } => {
                    let frame = frame(kind, (peer, OWN), (port, pod_port), Part::Whole, 0);
                    decide::to_pod(Side::Device, &Bytes(&frame), &endpoint, &tables);
                }
                Step::Send { kind, peer, port, pod_port, own, part, id } => {
                    let src = if own { OWN } else { [10, 0, 0, 2] };
                    // An echo has its identifier where `frame` puts the second port.
                    let ports = if proto(kind) == 1 { (port, pod_port) } else { (pod_port, port) };
                    let frame = frame(kind, (src, peer), ports, part, id);
                    let mut headers = Headers::default();
                    let outcome = decide::from_pod(
                        Side::Device, &Bytes(&frame), &endpoint, &tables, &mut headers,
                    );
                    let expected = model.reason(step, now);
                    prop_assert_eq!(outcome.reason, expected, "{:?} in {:?}", step, rules);
                    let passes = expected.passes();
                    let verdict = match (passes, endpoint.mode) {
                        (true, _) => Verdict::Pass,
                        (false, MODE_AUDIT) => Verdict::Audit,
                        (false, _) => Verdict::Drop,
                    };
                    prop_assert_eq!(outcome.verdict, verdict);
                    end = Some((outcome.verdict, outcome.reason));
                }
            }
            model.past.push(Past { step, at: now, end });
        }
    }
}
