//! A kernel in memory, and which packets of which pod it lets go: by the decision that the real
//! programs share, over entries that were written one operation at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use egress_agent::compile::{DesiredState, Policy};
use egress_agent::datapath::{CgroupHook, Direction, LinkState, Observed};
use egress_agent::reconcile::{Executor, Op};
use egress_common::maps::{Endpoint, ExactKey4, ExactKey6, NO_WAYS, PrefixKey4, PrefixKey6};
use egress_common::memory::{Bytes, MemoryTables, POLICY_BITS};
use egress_common::packet::Headers;
use egress_common::{Side, Verdict, decide};

/// What a pod is on its node, whatever objects say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Body {
    pub uid: String,
    pub cgroup: u64,
    pub ifindex: u32,
    pub ips: (Ipv4Addr, Ipv6Addr),
}

/// How a packet leaves its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Through the pod's IP stack.
    Stack,
    /// By a packet socket, past everything in the pod.
    Raw,
}

/// Packets that are let go: by whom, which way, where to.
pub type Passing = BTreeSet<(String, Way, SocketAddr)>;

/// Called after each operation.
pub type Check = Box<dyn FnMut(&Memory, &Op)>;

/// What the kernel holds.
#[derive(Default)]
pub struct Memory {
    pub state: Observed,
    tables: MemoryTables,
    /// Devices that there are.
    alive: BTreeSet<u32>,
    /// Operations that still work; the one after them fails, as do all until there are some again.
    pub left: Option<u32>,
    pub check: Option<Check>,
}

impl Memory {
    /// Devices come and go by themselves.
    pub fn set_alive(&mut self, alive: BTreeSet<u32>) {
        for ((ifindex, _), link) in &mut self.state.links {
            if !alive.contains(ifindex) {
                *link = LinkState::Gone;
            }
        }
        for ways in self.state.ways.values_mut() {
            ways.retain(|ifindex| alive.contains(ifindex));
        }
        self.alive = alive;
    }

    /// Of packets from each body to each of these, those that are let go.
    pub fn passing(&self, bodies: &[Body], to: &[SocketAddr]) -> Passing {
        let mut passing = Passing::new();
        for body in bodies {
            for &to in to {
                let packet = syn(body, to);
                for way in [Way::Stack, Way::Raw] {
                    if self.lets(body, way, to, &packet) {
                        passing.insert((body.uid.clone(), way, to));
                    }
                }
            }
        }
        passing
    }

    fn lets(&self, body: &Body, way: Way, to: SocketAddr, packet: &[u8]) -> bool {
        let gate = self.state.cgroup_links.contains_key(&CgroupHook::Egress);
        if way == Way::Stack && gate {
            let lets = match self.state.cgroups.get(&body.cgroup) {
                None => false,
                Some(endpoint) => {
                    self.stand(endpoint) || self.decides(Side::Cgroup, endpoint, packet)
                }
            };
            if !lets {
                return false;
            }
        }
        let endpoint = match self.state.link(body.ifindex, Direction::Ingress) {
            Some(LinkState::BySender) => match self.state.cgroups.get(&body.cgroup) {
                Some(endpoint) => endpoint,
                None => return false,
            },
            Some(link) if link.stands() => match self.state.devices.get(&body.ifindex) {
                Some(endpoint) => endpoint,
                None => return true,
            },
            _ => return true,
        };
        let ethertype: u16 = if to.is_ipv4() { 0x0800 } else { 0x86dd };
        let mut frame = vec![0x02; 12];
        frame.extend(ethertype.to_be_bytes());
        frame.extend(packet);
        self.decides(Side::Device, endpoint, &frame)
    }

    /// Whether the cgroup hook lets all packets of this pod go.
    fn stand(&self, endpoint: &Endpoint) -> bool {
        let ways = self.state.ways.get(&endpoint.slot).map_or(0, Vec::len);
        match endpoint.passes_with() {
            NO_WAYS => true,
            wanted => wanted > 0 && ways >= wanted as usize,
        }
    }

    fn decides(&self, side: Side, endpoint: &Endpoint, packet: &[u8]) -> bool {
        let mut headers = Headers::default();
        // Each packet is the first of its flow.
        self.tables.flows_out.borrow_mut().clear();
        let packet = Bytes(packet);
        let outcome = decide::from_pod(side, &packet, endpoint, &self.tables, &mut headers);
        matches!(outcome.verdict, Verdict::Pass | Verdict::Audit)
    }

    fn write_policy(&mut self, number: u32, policy: &Policy) {
        let policy_be = number.to_be_bytes();
        for ((addr, port, proto), rule) in &policy.exact4 {
            let key = ExactKey4 {
                policy: number,
                addr_be: addr.octets(),
                port_be: port.to_be_bytes(),
                proto: *proto,
                pad: 0,
            };
            self.tables.exact4.insert(key, *rule);
        }
        for ((addr, port, proto), rule) in &policy.exact6 {
            let key = ExactKey6 {
                policy: number,
                addr_be: addr.octets(),
                port_be: port.to_be_bytes(),
                proto: *proto,
                pad: 0,
            };
            self.tables.exact6.insert(key, *rule);
        }
        for (net, rule) in &policy.prefix4 {
            let addr_be = net.network().octets();
            let key = PrefixKey4 { policy_be, addr_be };
            let bits = POLICY_BITS + u32::from(net.prefix_len());
            self.tables.prefix4.insert((key, bits), *rule);
        }
        for (net, rule) in &policy.prefix6 {
            let addr_be = net.network().octets();
            let key = PrefixKey6 { policy_be, addr_be };
            let bits = POLICY_BITS + u32::from(net.prefix_len());
            self.tables.prefix6.insert((key, bits), *rule);
        }
    }

    fn clear_policy(&mut self, number: u32) {
        let policy_be = number.to_be_bytes();
        self.tables.exact4.retain(|key, _| key.policy != number);
        self.tables.exact6.retain(|key, _| key.policy != number);
        let tables = &mut self.tables;
        tables
            .prefix4
            .retain(|(key, _), _| key.policy_be != policy_be);
        tables
            .prefix6
            .retain(|(key, _), _| key.policy_be != policy_be);
    }

    fn attach(&mut self, ifindex: u32, direction: Direction) -> Result<(), String> {
        if !self.alive.contains(&ifindex) {
            return Err(format!("there is no device {ifindex}"));
        }
        let links = &mut self.state.links;
        links.insert((ifindex, direction), LinkState::Good);
        Ok(())
    }

    fn carry_out(&mut self, op: &Op, desired: &DesiredState) -> Result<(), String> {
        let state = &mut self.state;
        match op {
            Op::SetConfig(config) => state.config = Some(*config),
            Op::SetPolicyInfo { number, info } => {
                state.policies.insert(*number, *info);
            }
            Op::WritePolicy { number, digest } | Op::MendPolicy { number, digest } => {
                let policy = desired.policies.get(digest).ok_or("no such policy")?;
                self.write_policy(*number, policy);
            }
            Op::ClearPolicy { number } => self.clear_policy(*number),
            Op::RemovePolicyInfo { number } => {
                state.policies.remove(number);
            }
            Op::ZeroCounters { .. }
            | Op::CutDiverted { .. }
            | Op::AdoptFlows { .. }
            | Op::Carry { .. }
            | Op::Fence { .. }
            | Op::LetBy { .. }
            | Op::RaiseFence { .. }
            | Op::LowerFence
            | Op::RemoveLayout { .. } => {}
            Op::SetPodInfo { slot, info } => {
                state.slots.insert(*slot, **info);
            }
            Op::RemovePodInfo { slot } => {
                state.slots.remove(slot);
            }
            Op::SetDevice { ifindex, endpoint } => {
                state.devices.insert(*ifindex, *endpoint);
            }
            Op::RemoveDevice { ifindex } => {
                state.devices.remove(ifindex);
            }
            Op::SetCgroup { cgroup, endpoint } => {
                state.cgroups.insert(*cgroup, *endpoint);
            }
            Op::RemoveCgroup { cgroup } => {
                state.cgroups.remove(cgroup);
            }
            Op::SetWays { slot, devices } => {
                state.ways.insert(*slot, devices.clone());
            }
            Op::AttachBySender { ifindex } => {
                self.attach(*ifindex, Direction::Ingress)?;
                let link = (*ifindex, Direction::Ingress);
                self.state.links.insert(link, LinkState::BySender);
            }
            Op::Attach { ifindex, direction } | Op::Swap { ifindex, direction } => {
                self.attach(*ifindex, *direction)?;
            }
            Op::Detach { ifindex, direction } => {
                state.links.remove(&(*ifindex, *direction));
            }
            Op::AttachCgroup(hook) | Op::SwapCgroup(hook) => {
                state.cgroup_links.insert(*hook, LinkState::Good);
            }
        }
        Ok(())
    }
}

impl Executor for Memory {
    type Error = String;

    fn observe(&mut self, _desired: &DesiredState) -> Result<Observed, String> {
        let mut observed = self.state.clone();
        let covered = |slot: &u32| {
            let mut entries = observed
                .cgroups
                .values()
                .filter(|entry| entry.slot == *slot);
            entries.any(|entry| ![0, NO_WAYS].contains(&entry.passes_with()))
        };
        let ways = self.state.ways.iter().filter(|(slot, _)| covered(slot));
        observed.ways = ways.map(|(slot, ways)| (*slot, ways.clone())).collect();
        Ok(observed)
    }

    fn execute(&mut self, op: &Op, desired: &DesiredState) -> Result<u64, String> {
        match &mut self.left {
            Some(0) => return Err("the agent is gone".to_owned()),
            Some(left) => *left -= 1,
            None => {}
        }
        self.carry_out(op, desired)?;
        if let Some(mut check) = self.check.take() {
            check(self, op);
            self.check = Some(check);
        }
        Ok(1)
    }
}

/// The first packet of a TCP connection, from its IP header on.
fn syn(from: &Body, to: SocketAddr) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(40_000_u16.to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    // Sequence and acknowledgement, five words of header, SYN, window, checksum, urgent pointer.
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let mut packet = match to.ip() {
        IpAddr::V4(to) => {
            let mut ip = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0];
            ip.extend(from.ips.0.octets());
            ip.extend(to.octets());
            ip
        }
        IpAddr::V6(to) => {
            let mut ip = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
            ip.extend(from.ips.1.octets());
            ip.extend(to.octets());
            ip
        }
    };
    packet.extend(tcp);
    packet
}

/// By UID, cgroup and device that it has for as long as it lives; no other gets them.
#[derive(Debug, Default)]
pub struct Births(BTreeMap<String, u32>);

impl Births {
    pub fn number(&mut self, uid: &str) -> u32 {
        let next = u32::try_from(self.0.len()).expect("few") + 10;
        *self.0.entry(uid.to_owned()).or_insert(next)
    }
}
