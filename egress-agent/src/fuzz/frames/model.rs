//! What should become of a packet: the policy in words, and the pod's past as two lists.

use std::collections::HashMap;

use egress_common::limits::{
    FORGED_NS, FRAGMENT_NS, ICMP_IDLE_NS, OUT_IDLE_NS, TCP_CLOSED_NS, TCP_IDLE_NS, TCP_RESET_NS,
    TOUCH_NS, UDP_IDLE_NS,
};
use egress_common::maps::Endpoint;
use egress_common::{Outcome, Reason, Side, Verdict};

use super::policy::{DNS4, GATEWAY4, GATEWAY6};
use super::reading::{
    ICMP, ICMPV6, Ip, Part, Reading, SCTP, TCP, UDP, array, mapped, ports, read, u16_at,
};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Of ICMP: it would turn somebody's packets elsewhere.
const REDIRECT: u8 = 5;

const CLOSED_BY_POD: u8 = 1;
const CLOSED_BY_PEER: u8 = 2;
const RESET: u8 = 4;

/// Whether it is IPv6, protocol, peer, its port, the pod's.
type Flow = (bool, u8, [u8; 16], u16, u16);

/// Identification, destination, protocol (of IPv4).
type Datagram = ([u8; 4], [u8; 16], u8);

#[derive(Clone, Copy)]
struct Seen {
    at: u64,
    state: u8,
}

pub struct Model {
    side: Side,
    own4: [u8; 4],
    own6: [u8; 16],
    pub now: u64,
    from_outside: HashMap<Flow, Seen>,
    by_pod: HashMap<Flow, Seen>,
    fragments: HashMap<Datagram, (u64, Verdict)>,
    /// When the pod last sent in another's name, and it passed.
    forged: Option<u64>,
}

/// The policy of `support/policy.rs`, said again.
fn allowed(v6: bool, to: [u8; 16], proto: u8, port: u16) -> Option<Reason> {
    // An IPv4-mapped address in an IPv6 packet is no IPv4 address.
    if v6 && is_mapped(to) {
        return None;
    }
    let ported = matches!(proto, TCP | UDP | SCTP);
    let gateway = to == mapped(GATEWAY4) || to == GATEWAY6;
    if gateway {
        return (proto == TCP && port == 8443).then_some(Reason::Gateway);
    }
    if to == mapped(DNS4) {
        return (matches!(proto, TCP | UDP) && port == 53).then_some(Reason::Dns);
    }
    if to.starts_with(&mapped([10, 244, 0, 0])[..14]) || to.starts_with(&GATEWAY6[..8]) {
        return Some(Reason::Cluster);
    }
    let exception = to.starts_with(&mapped([192, 0, 2, 0])[..15]) && to[15] < 192;
    (exception && ported && proto == TCP && (80..=90).contains(&port)).then_some(Reason::Exception)
}

fn is_mapped(address: [u8; 16]) -> bool {
    address.starts_with(&mapped([0; 4])[..12])
}

fn opens(ip: &Ip<'_>) -> bool {
    match ip.proto {
        TCP => ip.kind & (SYN | ACK | RST) == SYN,
        UDP => true,
        SCTP => ip.kind == 1,
        ICMP => ip.kind == 8,
        ICMPV6 => ip.kind == 128,
        _ => false,
    }
}

fn closes(ip: &Ip<'_>, by: u8) -> u8 {
    if ip.proto != TCP {
        return 0;
    }
    let fin = if ip.kind & FIN == 0 { 0 } else { by };
    fin | if ip.kind & RST == 0 { 0 } else { RESET }
}

fn link_local(address: [u8; 16]) -> bool {
    address[0] == 0xfe && address[1] >> 6 == 2
}

impl Model {
    pub fn new(side: Side, endpoint: &Endpoint) -> Self {
        Self {
            side,
            own4: endpoint.v4_be,
            own6: endpoint.v6_be,
            now: 0,
            from_outside: HashMap::new(),
            by_pod: HashMap::new(),
            fragments: HashMap::new(),
            forged: None,
        }
    }

    /// The pod is another one now.
    pub fn forget(&mut self) {
        self.from_outside.clear();
        self.by_pod.clear();
        self.fragments.clear();
        self.forged = None;
    }

    /// The reason for which a frame of the pod passes; none if it must not.
    pub fn expects(&mut self, frame: &[u8]) -> Option<Reason> {
        let ip = match read(self.side, frame)? {
            Reading::Arp { sender } => {
                return (sender == [0; 4] || sender == self.own4).then_some(Reason::Arp);
            }
            Reading::Ip(ip) => ip,
        };
        let own = matches!(self.side, Side::Cgroup) || self.is_own(ip.v6, ip.src);
        if matches!(self.side, Side::Device)
            && ip.v6
            && ip.proto == ICMPV6
            && ip.part != Part::Later
            && let Some(decided) = self.neighbour(&ip, own)
        {
            return decided;
        }
        if !own {
            return None;
        }
        if ip.part == Part::Later {
            let (at, verdict) = self.fragments.get(&fragment(&ip))?;
            let passes = *verdict == Verdict::Pass && self.now - at <= FRAGMENT_NS;
            return passes.then_some(Reason::Fragment);
        }
        let icmp = matches!((ip.proto, ip.v6), (ICMP, false) | (ICMPV6, true));
        if !icmp && !matches!(ip.proto, TCP | UDP | SCTP) {
            return None;
        }
        if icmp && !ip.v6 && ip.kind == REDIRECT {
            return None;
        }
        if icmp && is_error(&ip) {
            return self.about(&ip).then_some(Reason::IcmpError);
        }
        let port = if icmp { 0 } else { ip.dst_port };
        let by_rule = allowed(ip.v6, ip.dst, ip.proto, port);
        if matches!(by_rule, Some(Reason::Gateway | Reason::Dns)) {
            return by_rule;
        }
        let answers = match ip.proto {
            ICMP => ip.kind == 0,
            ICMPV6 => matches!(ip.kind, 129 | 136),
            UDP => true,
            _ => !opens(&ip),
        };
        let reply = answers && self.open(&(ip.v6, ip.proto, ip.dst, ip.dst_port, ip.src_port));
        if reply { Some(Reason::Reply) } else { by_rule }
    }

    fn is_own(&self, v6: bool, address: [u8; 16]) -> bool {
        if v6 {
            address == self.own6 && address != [0; 16]
        } else {
            address == mapped(self.own4) && self.own4 != [0; 4]
        }
    }

    /// Whether a frame, which ended for this reason, is in the name of somebody beyond the pod's link.
    fn is_forged(&self, frame: &[u8], reason: Reason) -> bool {
        let (v6, src) = match read(self.side, frame) {
            Some(Reading::Ip(ip)) => (ip.v6, ip.src),
            // It was read until the transport header.
            None if reason == Reason::FragmentTiny => match frame[12] {
                8 => (false, mapped(array(frame, 26).expect("an IPv4 header"))),
                _ => (true, array(frame, 22).expect("an IPv6 header")),
            },
            _ => return false,
        };
        let local = v6 && (src == [0; 16] || link_local(src)) || src == mapped([0; 4]);
        !local && !self.is_own(v6, src)
    }

    /// Neighbour discovery and listener reports; none for what policy decides about.
    #[allow(clippy::option_option, reason = "decided, and how")]
    fn neighbour(&self, ip: &Ip<'_>, own: bool) -> Option<Option<Reason>> {
        let discovery = matches!(ip.kind, 133 | 135 | 136);
        let report = matches!(ip.kind, 131 | 132 | 143);
        if matches!(ip.kind, 130 | 134 | 137) {
            return Some(None);
        }
        if !discovery && !report {
            return None;
        }
        let bare = ip.src == [0; 16];
        if ip.part != Part::Whole || !(bare || own || link_local(ip.src)) {
            return Some(None);
        }
        if ip.kind == 136 {
            let target = array(ip.body, 8)?;
            if !link_local(target) && target != self.own6 {
                return Some(None);
            }
        }
        let on_link = link_local(ip.dst) || ip.dst[..2] == [0xff, 2];
        if on_link && ip.hops == if discovery { 255 } else { 1 } {
            return Some(Some(Reason::Neighbour));
        }
        (report || bare || link_local(ip.src)).then_some(None)
    }

    /// Whether what an ICMP error quotes was sent to the pod in a flow that it may have.
    fn about(&self, ip: &Ip<'_>) -> bool {
        let quoted = || {
            let packet = ip.body.get(8..)?;
            let (src, dst, proto, header) = if ip.v6 {
                let fixed = packet.get(..40)?;
                (fixed[0] >> 4 == 6).then_some(())?;
                (array(fixed, 8)?, array(fixed, 24)?, fixed[6], 40)
            } else {
                let fixed = packet.get(..20)?;
                let length = usize::from(fixed[0] & 0xf) * 4;
                let position = u16_at(fixed, 6)? & 0x1fff;
                (fixed[0] >> 4 == 4 && length >= 20 && position == 0).then_some(())?;
                let ends = (mapped(array(fixed, 12)?), mapped(array(fixed, 16)?));
                (ends.0, ends.1, fixed[9], length)
            };
            let body = packet.get(header..)?.get(..8)?;
            let known = match proto {
                TCP | UDP | SCTP => true,
                ICMP => matches!(body[0], 0 | 8),
                ICMPV6 => matches!(body[0], 128 | 129),
                _ => false,
            };
            known.then_some((src, dst, proto, ports(proto, body)))
        };
        let Some((src, dst, proto, (src_port, dst_port))) = quoted() else {
            return false;
        };
        let icmp = matches!(proto, ICMP | ICMPV6);
        let rule = allowed(ip.v6, src, proto, if icmp { 0 } else { src_port });
        src == ip.dst
            && dst == ip.src
            && (rule.is_some() || self.open(&(ip.v6, proto, src, src_port, dst_port)))
    }

    fn open(&self, flow: &Flow) -> bool {
        self.from_outside
            .get(flow)
            .is_some_and(|seen| self.now - seen.at <= idle(flow.1, seen.state))
    }

    /// A frame to the pod.
    pub fn received(&mut self, frame: &[u8]) {
        let Some(Reading::Ip(ip)) = read(self.side, frame) else {
            return;
        };
        if ip.part == Part::Later {
            return;
        }
        let flow = (ip.v6, ip.proto, ip.src, ip.src_port, ip.dst_port);
        let opens = opens(&ip) || (ip.proto == ICMPV6 && ip.kind == 135);
        let closes = closes(&ip, CLOSED_BY_PEER);
        if !opens && closes == 0 {
            return;
        }
        if self.open(&flow) {
            let state = if opens && ip.proto == TCP {
                0
            } else {
                self.from_outside[&flow].state | closes
            };
            touch(&mut self.from_outside, flow, state, self.now);
        } else if opens {
            let out_idle = if ip.proto == UDP {
                OUT_IDLE_NS
            } else {
                TCP_IDLE_NS
            };
            let begun = self.by_pod.get(&flow);
            if begun.is_some_and(|seen| self.now - seen.at <= out_idle) {
                touch(&mut self.by_pod, flow, 0, self.now);
            } else if self.forged.is_none_or(|at| self.now - at > FORGED_NS) {
                let seen = Seen {
                    at: self.now,
                    state: 0,
                };
                self.from_outside.insert(flow, seen);
            }
        }
    }

    /// A frame of the pod, and what became of it.
    pub fn sent(&mut self, frame: &[u8], outcome: Outcome) {
        if matches!(self.side, Side::Device)
            && outcome.verdict == Verdict::Audit
            && self.is_forged(frame, outcome.reason)
            && self.forged.is_none_or(|at| self.now - at > TOUCH_NS)
        {
            self.forged = Some(self.now);
        }
        let Some(Reading::Ip(ip)) = read(self.side, frame) else {
            return;
        };
        let flow = (ip.v6, ip.proto, ip.dst, ip.dst_port, ip.src_port);
        if outcome.reason == Reason::Reply {
            let known = self.from_outside[&flow].state;
            let state = known | closes(&ip, CLOSED_BY_POD);
            if state != known || !is_over(known) {
                touch(&mut self.from_outside, flow, state, self.now);
            }
        }
        if ip.part == Part::Later || !matches!(outcome.verdict, Verdict::Pass | Verdict::Audit) {
            return;
        }
        if ip.part == Part::First {
            let known = (self.now, outcome.verdict);
            self.fragments.insert(fragment(&ip), known);
        }
        let ported = matches!(ip.proto, TCP | UDP | SCTP);
        if ported && opens(&ip) && outcome.reason != Reason::Reply {
            touch(&mut self.by_pod, flow, 0, self.now);
        }
    }
}

fn fragment(ip: &Ip<'_>) -> Datagram {
    (ip.id, ip.dst, if ip.v6 { 0 } else { ip.proto })
}

fn is_error(ip: &Ip<'_>) -> bool {
    if ip.v6 {
        (1..=4).contains(&ip.kind)
    } else {
        matches!(ip.kind, 3 | 4 | 11 | 12)
    }
}

fn is_over(state: u8) -> bool {
    let both = CLOSED_BY_POD | CLOSED_BY_PEER;
    state & RESET != 0 || state & both == both
}

fn idle(proto: u8, state: u8) -> u64 {
    match proto {
        TCP if state & RESET != 0 => TCP_RESET_NS,
        TCP if is_over(state) => TCP_CLOSED_NS,
        UDP => UDP_IDLE_NS,
        ICMP | ICMPV6 => ICMP_IDLE_NS,
        _ => TCP_IDLE_NS,
    }
}

/// Times are written once a second at most, unless the state changes.
fn touch(flows: &mut HashMap<Flow, Seen>, flow: Flow, state: u8, now: u64) {
    let known = flows.get(&flow);
    if known.is_none_or(|seen| seen.state != state || now - seen.at > TOUCH_NS) {
        flows.insert(flow, Seen { at: now, state });
    }
}
