//! Builds the tables of one policy, so that the kernel's rule holds: an exact entry wins, else
//! the longest prefix alone decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egress_common::limits::MAX_RANGES;
use egress_common::maps::{ExactRule, NO_RULE, PortRange, PrefixRule};
use egress_common::reason::Reason;
use ipnet::IpNet;

use super::desired::Policy;
use super::ports::{PortSet, UDP};
use super::special::SPECIAL;

/// A destination: address, port in host byte order, IP protocol number.
pub(super) type Target = (IpAddr, u16, u8);

/// Collects what is allowed and what is closed, then makes the tables.
#[derive(Debug, Default)]
pub(super) struct Tables {
    policy: Policy,
    rule_ids: BTreeMap<String, u16>,
    grants: Vec<Grant>,
    places: BTreeMap<IpNet, Place>,
    /// Destinations that lead somewhere else than their address says, with the rule to name.
    holes: BTreeMap<Target, String>,
    /// Gateway addresses: nothing but exact entries opens them.
    guards: BTreeSet<IpAddr>,
}

#[derive(Debug)]
struct Grant {
    ports: PortSet,
    /// It is a pod CIDR: addresses of nodes are not meant.
    pods: bool,
    /// Who to tell when it doesn't fit.
    owner: Owner,
}

/// Lockdown and field that a grant comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    pub lockdown: String,
    pub field: String,
}

impl Owner {
    pub fn rule(&self) -> String {
        format!("EgressLockdown/{} {}", self.lockdown, self.field)
    }
}

/// What begins at one prefix.
#[derive(Debug, Default)]
struct Place {
    special: Option<&'static str>,
    grants: Vec<usize>,
    /// Grants that don't reach in here, and the rule that says so.
    excepts: Vec<(usize, String)>,
    node: bool,
    gateway: Option<String>,
    /// (protocol, port) that are closed here, and the rule to name.
    holes: Vec<(u8, u16, String)>,
}

/// What is allowed at one prefix, all in all.
#[derive(Debug, Default)]
struct Outcome {
    active: Vec<usize>,
    deny: Option<(Reason, String)>,
}

/// What of a grant had to be left out of a prefix, because the kernel has no room for its ranges.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Overflow {
    pub owner: Owner,
    pub lost: Lost,
    pub net: IpNet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lost {
    /// All of it, for want of room beside other grants.
    ToGrants,
    /// This, for want of room beside the holes.
    ToHoles(Beside),
}

/// What is closed beside holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Beside {
    Udp,
    All,
}

impl Beside {
    /// What is said behind the rule that names a hole, of all that is closed for its sake.
    const fn rule(self) -> &'static str {
        match self {
            Self::Udp => ", and there is no room for UDP beside it",
            Self::All => ", and there is no room beside it",
        }
    }
}

impl Tables {
    /// Number of the rule with this text.
    pub fn rule(&mut self, text: &str) -> u16 {
        if let Some(id) = self.rule_ids.get(text) {
            return *id;
        }
        // 65,534 rules of one policy are out of reach, but a wrong name would be worse than none.
        let id = u16::try_from(self.policy.rules.len()).unwrap_or(NO_RULE);
        if id != NO_RULE {
            self.policy.rules.push(text.to_owned());
        }
        self.rule_ids.insert(text.to_owned(), id);
        id
    }

    /// This destination leads elsewhere (a Service takes its packets out of the cluster): nothing
    /// may open it. Must come before [`Tables::exact`].
    pub fn hole(&mut self, target: Target, rule: &str) {
        let (ip, port, proto) = target;
        let place = self.places.entry(IpNet::from(ip)).or_default();
        place.holes.push((proto, port, rule.to_owned()));
        self.holes.insert(target, rule.to_owned());
    }

    /// Nothing but exact entries opens this address.
    pub fn guard(&mut self, ip: IpAddr, rule: &str) {
        self.places
            .entry(IpNet::from(ip))
            .or_default()
            .gateway
            .get_or_insert(rule.to_owned());
        self.guards.insert(ip);
    }

    /// Addresses of nodes: pod CIDRs don't open them, wider or narrower ones.
    pub fn node(&mut self, net: IpNet) {
        self.places.entry(net).or_default().node = true;
    }

    /// Opens one destination. The first rule for it is the one that is named.
    pub fn exact(&mut self, target: Target, rule: &str, reason: Reason) {
        if self.holes.contains_key(&target) {
            return;
        }
        let value = ExactRule {
            rule: self.rule(rule),
            reason: reason as u8,
            pad: 0,
        };
        self.insert_exact(target, value);
    }

    /// As [`Tables::exact`], unless the address is a gateway's.
    pub fn exact_unguarded(&mut self, target: Target, rule: &str, reason: Reason) {
        if !self.guards.contains(&target.0) {
            self.exact(target, rule, reason);
        }
    }

    fn insert_exact(&mut self, (ip, port, proto): Target, value: ExactRule) {
        match ip {
            IpAddr::V4(ip) => self.policy.exact4.entry((ip, port, proto)).or_insert(value),
            IpAddr::V6(ip) => self.policy.exact6.entry((ip, port, proto)).or_insert(value),
        };
    }

    /// Opens a prefix; returns the grant's number for [`Tables::except`].
    pub fn grant(&mut self, net: IpNet, ports: PortSet, pods: bool, owner: Owner) -> usize {
        let id = self.grants.len();
        self.grants.push(Grant { ports, pods, owner });
        self.places.entry(net).or_default().grants.push(id);
        id
    }

    /// Keeps a grant out of a part of its prefix.
    pub fn except(&mut self, grant: usize, net: IpNet, rule: String) {
        self.places
            .entry(net)
            .or_default()
            .excepts
            .push((grant, rule));
    }

    /// Makes the tables. Grants that didn't fit somewhere are left out there, and named.
    pub fn build(mut self) -> (Policy, Vec<Overflow>) {
        for (net, what) in SPECIAL {
            self.places.entry(*net).or_default().special = Some(what);
        }
        let places = std::mem::take(&mut self.places);
        let mut overflows = Vec::new();
        // Sorted by address, then by length: whatever contains a prefix comes before it. The stack
        // holds the prefixes that contain the current one, each with the value that stands there.
        let mut stack: Vec<(IpNet, &Place, Option<PrefixRule>)> = Vec::new();
        for (net, place) in &places {
            while stack.last().is_some_and(|(outer, ..)| !outer.contains(net)) {
                stack.pop();
            }
            let inherited = stack.last().and_then(|(.., value)| *value);
            let layers = stack.iter().map(|(_, place, _)| *place).chain([place]);
            let outcome = overlay(layers, &self.grants);
            let value = self.value(*net, place, outcome, &mut overflows);
            if value != inherited
                && let Some(value) = value
            {
                self.insert_prefix(*net, value);
            }
            stack.push((*net, place, value.or(inherited)));
        }
        overflows.sort();
        overflows.dedup();
        (self.policy, overflows)
    }

    /// What the kernel finds at the prefix; none if nothing is allowed and nothing to be said.
    fn value(
        &mut self,
        net: IpNet,
        place: &Place,
        outcome: Outcome,
        overflows: &mut Vec<Overflow>,
    ) -> Option<PrefixRule> {
        let v6 = matches!(net, IpNet::V6(_));
        let mut deny = outcome.deny;
        if outcome.active.is_empty() && deny.is_none() {
            return None;
        }
        let mut set = PortSet::default();
        let mut owners = Vec::new();
        let mut left_out = |owner: &Owner, lost| {
            overflows.push(Overflow {
                owner: owner.clone(),
                lost,
                net,
            });
        };
        for id in outcome.active {
            let grant = &self.grants[id];
            let mut more = set.clone();
            more.extend(&grant.ports);
            if more.emit(v6).is_some() {
                set = more;
                owners.push(&grant.owner);
            } else {
                left_out(&grant.owner, Lost::ToGrants);
            }
        }
        if !set.is_empty() {
            for (proto, port, rule) in &place.holes {
                set.close(*proto, *port);
                deny.get_or_insert((Reason::Excepted, rule.clone()));
            }
        }
        // With more holes than there is room for UDP is closed, which overlays have in many pieces
        // already, and then the address is; a hole must not be.
        let mut lost = None;
        let ranges = set.emit(v6).or_else(|| {
            lost = Some(Beside::Udp);
            set.close_all(UDP);
            set.emit(v6)
        });
        let ranges = ranges.unwrap_or_else(|| {
            lost = Some(Beside::All);
            Vec::new()
        });
        if let Some(lost) = lost {
            for owner in owners {
                left_out(owner, Lost::ToHoles(lost));
            }
            if let Some((_, rule)) = &mut deny {
                rule.push_str(lost.rule());
            }
        }
        Some(self.prefix_rule(&ranges, deny))
    }

    fn prefix_rule(&mut self, ranges: &[PortRange], deny: Option<(Reason, String)>) -> PrefixRule {
        let (deny, deny_rule) = match deny {
            Some((reason, rule)) => (reason, self.rule(&rule)),
            None => (Reason::NotAllowed, NO_RULE),
        };
        let unused = PortRange {
            first: 0,
            last: 0,
            rule: 0,
            proto: 0,
            reason: 0,
        };
        let mut value = PrefixRule {
            count: u8::try_from(ranges.len()).expect("at most MAX_RANGES were emitted"),
            deny: deny as u8,
            deny_rule,
            ranges: [unused; MAX_RANGES],
        };
        value.ranges[..ranges.len()].copy_from_slice(ranges);
        value
    }

    /// Writes a prefix. Single ports of a whole address get an exact entry too: that table is the
    /// faster one, and it says the same.
    fn insert_prefix(&mut self, net: IpNet, value: PrefixRule) {
        if net.prefix_len() == net.max_prefix_len() {
            for range in &value.ranges[..usize::from(value.count)] {
                let has_ports = matches!(range.proto, 6 | 17 | 132);
                if has_ports && range.first == range.last {
                    let exact = ExactRule {
                        rule: range.rule,
                        reason: range.reason,
                        pad: 0,
                    };
                    self.insert_exact((net.addr(), range.first, range.proto), exact);
                }
            }
        }
        match net {
            IpNet::V4(net) => self.policy.prefix4.insert(net, value).is_none(),
            IpNet::V6(net) => self.policy.prefix6.insert(net, value).is_none(),
        };
    }
}

/// Lays the places over each other, from the widest on.
fn overlay<'a>(layers: impl Iterator<Item = &'a Place>, grants: &[Grant]) -> Outcome {
    let mut active: Vec<usize> = Vec::new();
    let mut deny = None;
    let mut node = false;
    for place in layers {
        if let Some(what) = place.special
            && !active.is_empty()
        {
            active.clear();
            deny = Some((Reason::Excepted, format!("built-in {what}")));
        }
        active.extend(&place.grants);
        for (grant, rule) in &place.excepts {
            let before = active.len();
            active.retain(|id| id != grant);
            if active.len() < before {
                deny = Some((Reason::Excepted, rule.clone()));
            }
        }
        node |= place.node;
        if node {
            let before = active.len();
            active.retain(|id| !grants[*id].pods);
            if active.len() < before {
                deny = Some((
                    Reason::Excepted,
                    "built-in addresses of nodes are no pods".into(),
                ));
            }
        }
        if let Some(rule) = &place.gateway {
            return Outcome {
                active: Vec::new(),
                deny: Some((Reason::GatewayPort, rule.clone())),
            };
        }
    }
    // The order must not hang on which table a grant came from.
    active.sort_unstable();
    Outcome { active, deny }
}
