//! Generated Ethernet frames, well-formed and broken, for tests of the decision.
//!
//! Addresses, ports and fragment ids come from small pools, so that frames meet the same rules,
//! flows and fragments again and again.

use crate::packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP, ICMPV6, SCTP, TCP, UDP};

/// A small generator of numbers (splitmix64): the same seed gives the same frames everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n - 1`.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the remainder fits where `n` came from"
    )]
    pub const fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// True `percent` times out of 100.
    pub const fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub const fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// Where frames come from and go to. Ports in host byte order.
#[derive(Clone, Debug)]
pub struct Pools {
    /// The pod's own addresses.
    pub own4: [u8; 4],
    pub own6: [u8; 16],
    /// Other ends.
    pub peers4: Vec<[u8; 4]>,
    pub peers6: Vec<[u8; 16]>,
    pub ports: Vec<u16>,
}

const PROTOCOLS: [u8; 14] = [
    TCP, TCP, TCP, TCP, UDP, UDP, UDP, ICMP, ICMPV6, SCTP, 4, 41, 47, 50,
];
const TCP_FLAGS: [u8; 8] = [0x02, 0x10, 0x12, 0x18, 0x11, 0x04, 0x14, 0x00];
/// Hop-by-hop, destination options, fragment, routing, authentication, mobility, no next header.
const EXTENSIONS: [u8; 9] = [60, 60, 0, 44, 44, 43, 51, 135, 59];
const ICMP_TYPES: [u8; 10] = [0, 3, 3, 4, 5, 8, 8, 11, 12, 13];
const ICMPV6_TYPES: [u8; 16] = [
    1, 2, 3, 4, 128, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 143,
];

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    FromPod,
    ToPod,
}

impl Pools {
    /// A frame from the pod or to it. Every third one or so is damaged.
    pub fn frame(&self, random: &mut Random, direction: Direction) -> Vec<u8> {
        let tagged = if random.chance(30) {
            0x8100
        } else {
            ETHERTYPE_IPV4
        };
        let labelled = if random.chance(30) {
            0x8847
        } else {
            ETHERTYPE_IPV6
        };
        let ethertype = *random.pick(&[
            ETHERTYPE_IPV4,
            ETHERTYPE_IPV4,
            ETHERTYPE_IPV4,
            ETHERTYPE_IPV4,
            ETHERTYPE_IPV6,
            ETHERTYPE_IPV6,
            ETHERTYPE_IPV6,
            ETHERTYPE_ARP,
            tagged,
            labelled,
        ]);
        let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        frame.extend(ethertype.to_be_bytes());
        match ethertype {
            ETHERTYPE_IPV4 => self.ipv4(random, direction, &mut frame),
            ETHERTYPE_IPV6 => self.ipv6(random, direction, &mut frame),
            ETHERTYPE_ARP => self.arp(random, &mut frame),
            _ => {
                frame.extend([0, 5, 0x08, 0]);
                self.ipv4(random, direction, &mut frame);
            }
        }
        if random.chance(30) {
            damage(random, &mut frame);
        }
        frame
    }

    fn ends4(&self, random: &mut Random, direction: Direction) -> ([u8; 4], [u8; 4]) {
        let own = if random.chance(93) {
            self.own4
        } else {
            *random.pick(&self.peers4)
        };
        let peer = *random.pick(&self.peers4);
        match direction {
            Direction::FromPod => (own, peer),
            Direction::ToPod => (peer, own),
        }
    }

    fn ends6(&self, random: &mut Random, direction: Direction) -> ([u8; 16], [u8; 16]) {
        let mut own = if random.chance(93) {
            self.own6
        } else {
            *random.pick(&self.peers6)
        };
        if random.chance(5) {
            own = *random.pick(&[link_local(7), [0; 16]]);
        }
        let peer = if random.chance(10) {
            *random.pick(&[link_local(1), multicast(1), multicast(2)])
        } else {
            *random.pick(&self.peers6)
        };
        match direction {
            Direction::FromPod => (own, peer),
            Direction::ToPod => (peer, own),
        }
    }

    fn arp(&self, random: &mut Random, frame: &mut Vec<u8>) {
        frame.extend([0, 1, 8, 0, 6, 4, 0, if random.chance(50) { 1 } else { 2 }]);
        frame.extend([0x02, 0, 0, 0, 0, 2]);
        let sender = [self.own4, [0; 4], *random.pick(&self.peers4)];
        frame.extend(*random.pick(&sender));
        frame.extend([0; 6]);
        frame.extend(*random.pick(&self.peers4));
    }

    fn ipv4(&self, random: &mut Random, direction: Direction, frame: &mut Vec<u8>) {
        let (src, dst) = self.ends4(random, direction);
        let mut options = Vec::new();
        if random.chance(12) {
            for _ in 0..random.below(4) {
                match random.below(5) {
                    0 => options.push(1),
                    1 => options.extend([148, 4, 0, 0]),
                    2 => options.extend([7, 7, 4, 0, 0, 0, 0]),
                    3 => options.extend([131, 7, 4, 192, 0, 2, 1]),
                    _ => options.push(random.byte()),
                }
            }
            options.resize(options.len().div_ceil(4) * 4, 0);
            options.truncate(40);
        }
        let proto = *random.pick(&PROTOCOLS);
        let (position, more) = fragment(random);
        let payload = self.transport(random, proto, direction, (&src, &dst), position);
        let header_len = 20 + options.len();
        let total = u16::try_from(header_len + payload.len()).unwrap_or(u16::MAX);
        frame.push(0x40 | u8::try_from(header_len / 4).unwrap_or(15));
        frame.push(0);
        frame.extend(total.to_be_bytes());
        frame.extend([0, random.byte() & 3]);
        frame.extend(((position / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
        frame.extend([64, proto, 0, 0]);
        frame.extend(src);
        frame.extend(dst);
        frame.extend(options);
        frame.extend(payload);
    }

    fn ipv6(&self, random: &mut Random, direction: Direction, frame: &mut Vec<u8>) {
        let (src, dst) = self.ends6(random, direction);
        let proto = *random.pick(&PROTOCOLS);
        // Headers in front of the transport header, each with the number of the one before it.
        let mut chain: Vec<u8> = Vec::new();
        if random.chance(25) {
            let longest = if random.chance(20) { 9 } else { 3 };
            for _ in 0..=random.below(longest) {
                chain.push(*random.pick(&EXTENSIONS));
            }
        }
        let (position, more) = fragment(random);
        if position != 0 || more {
            chain.push(44);
        }
        let mut body = Vec::new();
        for (i, header) in chain.iter().enumerate() {
            let next = chain.get(i + 1).copied().unwrap_or(proto);
            if *header == 44 {
                let last = i + 1 == chain.len();
                let place = if last { position | u16::from(more) } else { 0 };
                body.extend([next, 0]);
                body.extend(place.to_be_bytes());
                body.extend([0, 0, 0, random.byte() & 3]);
            } else {
                let units = u8::from(random.chance(10));
                body.extend([next, units, 1, 4, 0, 0, 0, 0]);
                body.extend(vec![0; usize::from(units) * 8]);
            }
        }
        body.extend(self.transport(random, proto, direction, (&src, &dst), position));
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
        frame.push(chain.first().copied().unwrap_or(proto));
        frame.push(*random.pick(&[255, 255, 64, 1]));
        frame.extend(src);
        frame.extend(dst);
        frame.extend(body);
    }

    /// A transport header with a little payload; of a later fragment only payload.
    fn transport(
        &self,
        random: &mut Random,
        proto: u8,
        direction: Direction,
        ends: (&[u8], &[u8]),
        position: u16,
    ) -> Vec<u8> {
        if position != 0 {
            return vec![0xaa; 8 * (1 + random.below(4))];
        }
        let own_port = 40_000 + u16::from(random.byte() & 3);
        let peer_port = *random.pick(&self.ports);
        let (src, dst) = match direction {
            Direction::FromPod => (own_port, peer_port),
            Direction::ToPod => (peer_port, own_port),
        };
        let mut out = Vec::new();
        match proto {
            TCP => {
                out.extend(src.to_be_bytes());
                out.extend(dst.to_be_bytes());
                out.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50]);
                out.push(*random.pick(&TCP_FLAGS));
                out.extend([0xff, 0xff, 0, 0, 0, 0]);
            }
            UDP => {
                out.extend(src.to_be_bytes());
                out.extend(dst.to_be_bytes());
                out.extend([0, 12, 0, 0]);
            }
            SCTP => {
                out.extend(src.to_be_bytes());
                out.extend(dst.to_be_bytes());
                out.extend([0, 0, 0, 0, 0, 0, 0, 0]);
                out.extend([*random.pick(&[1, 0, 2, 3]), 0, 0, 4]);
            }
            ICMP | ICMPV6 => {
                let types: &[u8] = if proto == ICMP {
                    &ICMP_TYPES
                } else {
                    &ICMPV6_TYPES
                };
                out.extend([*random.pick(types), random.byte() & 3, 0, 0]);
                out.extend([0, random.byte() & 3, 0, 1]);
                if random.chance(80) {
                    self.quote(random, direction, ends, &mut out);
                } else if random.chance(50) {
                    out.extend(if random.chance(50) {
                        self.own6
                    } else {
                        link_local(9)
                    });
                }
            }
            _ => {}
        }
        out.extend(vec![0x55; random.below(24)]);
        out
    }

    /// The packet that an ICMP error is about: it went the other way.
    fn quote(
        &self,
        random: &mut Random,
        direction: Direction,
        (src, dst): (&[u8], &[u8]),
        out: &mut Vec<u8>,
    ) {
        let proto = *random.pick(&[TCP, UDP, SCTP, ICMP, ICMPV6, 47]);
        let dst = if random.chance(10) { src } else { dst };
        if src.len() == 4 {
            let fragment = if random.chance(5) { 9 } else { 0 };
            out.extend([0x45, 0, 0, 60, 0, 1, 0, fragment, 60, proto, 0, 0]);
        } else {
            out.extend([0x60, 0, 0, 0, 0, 20, proto, 60]);
        }
        out.extend(dst);
        out.extend(src);
        let own_port = 40_000 + u16::from(random.byte() & 3);
        let peer_port = *random.pick(&self.ports);
        let (from, to) = match direction {
            Direction::FromPod => (peer_port, own_port),
            Direction::ToPod => (own_port, peer_port),
        };
        if matches!(proto, ICMP | ICMPV6) {
            out.extend([
                *random.pick(&[8, 0, 128, 129]),
                0,
                0,
                0,
                0,
                random.byte() & 3,
                0,
                1,
            ]);
        } else {
            out.extend(from.to_be_bytes());
            out.extend(to.to_be_bytes());
            out.extend([0, 0, 0, 1]);
        }
    }
}

/// Position in bytes, and whether more follow.
fn fragment(random: &mut Random) -> (u16, bool) {
    match random.below(20) {
        0 => (0, true),
        1 => (8, random.chance(50)),
        2 => (*random.pick(&[16, 24, 1480, 65_528]), random.chance(50)),
        _ => (0, false),
    }
}

/// Cuts, lengthens or overwrites.
fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(4) {
        0 => {
            let len = 14 + random.below(frame.len() - 13);
            frame.truncate(len);
        }
        1 => frame.extend(vec![0; random.below(30)]),
        _ => {
            for _ in 0..=random.below(3) {
                // Behind the MAC addresses, where it matters.
                let at = 12 + random.below(frame.len() - 12);
                frame[at] = random.byte();
            }
        }
    }
}

const fn link_local(last: u8) -> [u8; 16] {
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

const fn multicast(last: u8) -> [u8; 16] {
    [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}
