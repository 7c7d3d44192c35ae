//! Policies in the maps: written, read, compared with what they should be, mended, removed. Nobody
//! but the agent has to write there; somebody with root can.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::net::{Ipv4Addr, Ipv6Addr};

use aya::Pod;
use egress_common::maps::{
    ExactKey4, ExactKey6, ExactRule, PolicyInfo, PrefixKey4, PrefixKey6, PrefixRule, RuleInfo,
    RuleKey,
};
use ipnet::{Ipv4Net, Ipv6Net};

use super::maps::{Maps, fill, text};
use super::table::{Table, TrieKey};
use super::{Damage, DatapathError};
use crate::compile::Policy;

/// Bits of the policy's number in front of a prefix.
const POLICY_BITS: u32 = 32;

/// How one of the maps holds policies.
trait Part {
    type Key: Pod + Eq + Hash;
    type Value: Pod + PartialEq;

    /// The policy that the key names.
    fn number(key: &Self::Key) -> u32;
    /// What the policy has there; none if the key is none of its own.
    fn wanted(policy: &Policy, key: &Self::Key) -> Option<Self::Value>;
    /// All that the policy has.
    fn all(number: u32, policy: &Policy) -> Vec<(Self::Key, Self::Value)>;
    fn count(policy: &Policy) -> usize;
}

struct Exact4;
struct Exact6;
struct Prefix4;
struct Prefix6;
struct Rules;

impl Part for Exact4 {
    type Key = ExactKey4;
    type Value = ExactRule;

    fn number(key: &ExactKey4) -> u32 {
        key.policy
    }

    fn wanted(policy: &Policy, key: &ExactKey4) -> Option<ExactRule> {
        let port = u16::from_be_bytes(key.port_be);
        let found = policy.exact4.get(&(key.addr_be.into(), port, key.proto));
        found.copied().filter(|_| key.pad == 0)
    }

    fn all(number: u32, policy: &Policy) -> Vec<(ExactKey4, ExactRule)> {
        let all = policy.exact4.iter();
        all.map(|((addr, port, proto), rule)| (exact4(number, *addr, *port, *proto), *rule))
            .collect()
    }

    fn count(policy: &Policy) -> usize {
        policy.exact4.len()
    }
}

impl Part for Exact6 {
    type Key = ExactKey6;
    type Value = ExactRule;

    fn number(key: &ExactKey6) -> u32 {
        key.policy
    }

    fn wanted(policy: &Policy, key: &ExactKey6) -> Option<ExactRule> {
        let port = u16::from_be_bytes(key.port_be);
        let found = policy.exact6.get(&(key.addr_be.into(), port, key.proto));
        found.copied().filter(|_| key.pad == 0)
    }

    fn all(number: u32, policy: &Policy) -> Vec<(ExactKey6, ExactRule)> {
        let all = policy.exact6.iter();
        all.map(|((addr, port, proto), rule)| (exact6(number, *addr, *port, *proto), *rule))
            .collect()
    }

    fn count(policy: &Policy) -> usize {
        policy.exact6.len()
    }
}

impl Part for Prefix4 {
    type Key = TrieKey<PrefixKey4>;
    type Value = PrefixRule;

    fn number(key: &Self::Key) -> u32 {
        u32::from_be_bytes(key.data.policy_be)
    }

    fn wanted(policy: &Policy, key: &Self::Key) -> Option<PrefixRule> {
        policy.prefix4.get(&net4(key)?).copied()
    }

    fn all(number: u32, policy: &Policy) -> Vec<(Self::Key, PrefixRule)> {
        let all = policy.prefix4.iter();
        all.map(|(net, rule)| (prefix4(number, *net), *rule))
            .collect()
    }

    fn count(policy: &Policy) -> usize {
        policy.prefix4.len()
    }
}

impl Part for Prefix6 {
    type Key = TrieKey<PrefixKey6>;
    type Value = PrefixRule;

    fn number(key: &Self::Key) -> u32 {
        u32::from_be_bytes(key.data.policy_be)
    }

    fn wanted(policy: &Policy, key: &Self::Key) -> Option<PrefixRule> {
        policy.prefix6.get(&net6(key)?).copied()
    }

    fn all(number: u32, policy: &Policy) -> Vec<(Self::Key, PrefixRule)> {
        let all = policy.prefix6.iter();
        all.map(|(net, rule)| (prefix6(number, *net), *rule))
            .collect()
    }

    fn count(policy: &Policy) -> usize {
        policy.prefix6.len()
    }
}

impl Part for Rules {
    type Key = RuleKey;
    type Value = RuleInfo;

    fn number(key: &RuleKey) -> u32 {
        key.policy
    }

    fn wanted(policy: &Policy, key: &RuleKey) -> Option<RuleInfo> {
        let text = policy.rules.get(usize::from(key.rule))?;
        (key.pad == [0; 2]).then(|| rule_info(text))
    }

    fn all(number: u32, policy: &Policy) -> Vec<(RuleKey, RuleInfo)> {
        let all = (0_u16..).zip(&policy.rules);
        all.map(|(rule, text)| (rule_key(number, rule), rule_info(text)))
            .collect()
    }

    fn count(policy: &Policy) -> usize {
        policy.rules.len()
    }
}

/// Keys and values.
type Entries<P> = Vec<(<P as Part>::Key, <P as Part>::Value)>;

/// What is known of the numbers that entries name.
struct Known<'p> {
    /// Policies whose entries must be these.
    whole: BTreeMap<u32, &'p Policy>,
    /// Those whose entries are not compared: they are being written, or go.
    passing: BTreeSet<u32>,
}

impl Maps {
    /// Writes what a policy allows and its rules in words; returns the writes.
    pub fn write_policy(&self, number: u32, policy: &Policy) -> Result<u64, DatapathError> {
        Ok(self.exact4.insert_all(&Exact4::all(number, policy))?
            + self.exact6.insert_all(&Exact6::all(number, policy))?
            + self.prefix4.insert_all(&Prefix4::all(number, policy))?
            + self.prefix6.insert_all(&Prefix6::all(number, policy))?
            + self.rule_info.insert_all(&Rules::all(number, policy))?)
    }

    /// Removes all that was written of a policy; returns the writes.
    pub fn clear_policy(&self, number: u32) -> Result<u64, DatapathError> {
        Ok(clear::<Exact4>(&self.exact4, number)?
            + clear::<Exact6>(&self.exact6, number)?
            + clear::<Prefix4>(&self.prefix4, number)?
            + clear::<Prefix6>(&self.prefix6, number)?
            + clear::<Rules>(&self.rule_info, number)?)
    }

    /// The whole of a policy, as the kernel has it.
    pub fn read_policy(&self, number: u32) -> Result<Policy, DatapathError> {
        let mut policy = Policy::default();
        let rules = entries::<Rules>(&self.rule_info, number)?;
        let mut rules: Vec<_> = rules
            .into_iter()
            .map(|(key, info)| (key.rule, text(&info.text)))
            .collect();
        rules.sort();
        policy.rules = rules.into_iter().map(|(_, text)| text).collect();
        for (key, rule) in entries::<Exact4>(&self.exact4, number)? {
            let port = u16::from_be_bytes(key.port_be);
            let key = (Ipv4Addr::from(key.addr_be), port, key.proto);
            policy.exact4.insert(key, rule);
        }
        for (key, rule) in entries::<Exact6>(&self.exact6, number)? {
            let port = u16::from_be_bytes(key.port_be);
            let key = (Ipv6Addr::from(key.addr_be), port, key.proto);
            policy.exact6.insert(key, rule);
        }
        let nets = entries::<Prefix4>(&self.prefix4, number)?.into_iter();
        let nets = nets.filter_map(|(key, rule)| Some((net4(&key)?, rule)));
        policy.prefix4 = nets.collect();
        let nets = entries::<Prefix6>(&self.prefix6, number)?.into_iter();
        let nets = nets.filter_map(|(key, rule)| Some((net6(&key)?, rule)));
        policy.prefix6 = nets.collect();
        Ok(policy)
    }

    /// The numbers whose entries are others than the policy has that `content` tells of them, and
    /// the maps in which. Numbers that no policy has must have none.
    pub fn compare<'p>(
        &self,
        policies: &BTreeMap<u32, PolicyInfo>,
        content: impl Fn(u32, &PolicyInfo) -> Option<&'p Policy>,
    ) -> Result<Damage, DatapathError> {
        let mut known = Known {
            whole: BTreeMap::new(),
            passing: BTreeSet::new(),
        };
        for (number, info) in policies {
            match content(*number, info) {
                Some(policy) if info.complete == 1 => {
                    known.whole.insert(*number, policy);
                }
                _ => {
                    known.passing.insert(*number);
                }
            }
        }
        let mut damage = Damage::new();
        compare::<Exact4>(&self.exact4, &known, &mut damage)?;
        compare::<Exact6>(&self.exact6, &known, &mut damage)?;
        compare::<Prefix4>(&self.prefix4, &known, &mut damage)?;
        compare::<Prefix6>(&self.prefix6, &known, &mut damage)?;
        compare::<Rules>(&self.rule_info, &known, &mut damage)?;
        Ok(damage)
    }

    /// Makes a policy's entries what the policy has; returns the writes. What is not its own goes
    /// first: it may let out what is forbidden, and may take the room.
    pub fn mend_policy(&self, number: u32, policy: &Policy) -> Result<u64, DatapathError> {
        Ok(mend::<Exact4>(&self.exact4, number, policy)?
            + mend::<Exact6>(&self.exact6, number, policy)?
            + mend::<Prefix4>(&self.prefix4, number, policy)?
            + mend::<Prefix6>(&self.prefix6, number, policy)?
            + mend::<Rules>(&self.rule_info, number, policy)?)
    }

    /// Changes with each entry of a policy that comes or goes; none where the kernel does not say.
    pub fn memory(&self) -> Option<[u64; 5]> {
        Some([
            self.exact4.memory()?,
            self.exact6.memory()?,
            self.prefix4.memory()?,
            self.prefix6.memory()?,
            self.rule_info.memory()?,
        ])
    }
}

fn compare<P: Part>(
    table: &Table<P::Key, P::Value>,
    known: &Known<'_>,
    damage: &mut Damage,
) -> Result<(), DatapathError> {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    let mut damaged = |number| {
        damage.entry(number).or_default().insert(table.name());
    };
    for (key, value) in table.entries()? {
        let number = P::number(&key);
        match known.whole.get(&number) {
            Some(policy) if P::wanted(policy, &key) == Some(value) => {
                *counts.entry(number).or_default() += 1;
            }
            None if known.passing.contains(&number) => {}
            _ => damaged(number),
        }
    }
    for (number, policy) in &known.whole {
        if counts.get(number).copied().unwrap_or(0) != P::count(policy) {
            damaged(*number);
        }
    }
    Ok(())
}

fn mend<P: Part>(
    table: &Table<P::Key, P::Value>,
    number: u32,
    policy: &Policy,
) -> Result<u64, DatapathError> {
    let mut writes = 0;
    let mut good = HashSet::new();
    for (key, value) in table.entries()? {
        if P::number(&key) != number {
            continue;
        }
        match P::wanted(policy, &key) {
            Some(wanted) if wanted == value => {
                good.insert(key);
            }
            Some(_) => {}
            None => writes += u64::from(table.remove(&key)?),
        }
    }
    let mut missing = P::all(number, policy);
    missing.retain(|(key, _)| !good.contains(key));
    Ok(writes + table.insert_all(&missing)?)
}

fn clear<P: Part>(table: &Table<P::Key, P::Value>, number: u32) -> Result<u64, DatapathError> {
    table.remove_where(|key| P::number(key) == number)
}

fn entries<P: Part>(
    table: &Table<P::Key, P::Value>,
    number: u32,
) -> Result<Entries<P>, DatapathError> {
    let mut entries = table.entries()?;
    entries.retain(|(key, _)| P::number(key) == number);
    Ok(entries)
}

fn rule_key(policy: u32, rule: u16) -> RuleKey {
    RuleKey {
        policy,
        rule,
        pad: [0; 2],
    }
}

fn rule_info(words: &str) -> RuleInfo {
    RuleInfo { text: fill(words) }
}

fn exact4(policy: u32, addr: Ipv4Addr, port: u16, proto: u8) -> ExactKey4 {
    ExactKey4 {
        policy,
        addr_be: addr.octets(),
        port_be: port.to_be_bytes(),
        proto,
        pad: 0,
    }
}

fn exact6(policy: u32, addr: Ipv6Addr, port: u16, proto: u8) -> ExactKey6 {
    ExactKey6 {
        policy,
        addr_be: addr.octets(),
        port_be: port.to_be_bytes(),
        proto,
        pad: 0,
    }
}

fn prefix4(policy: u32, net: Ipv4Net) -> TrieKey<PrefixKey4> {
    TrieKey {
        prefix_len: POLICY_BITS + u32::from(net.prefix_len()),
        data: PrefixKey4 {
            policy_be: policy.to_be_bytes(),
            addr_be: net.network().octets(),
        },
    }
}

fn prefix6(policy: u32, net: Ipv6Net) -> TrieKey<PrefixKey6> {
    TrieKey {
        prefix_len: POLICY_BITS + u32::from(net.prefix_len()),
        data: PrefixKey6 {
            policy_be: policy.to_be_bytes(),
            addr_be: net.network().octets(),
        },
    }
}

/// None if the length ends within the policy's number: a stranger's key, for which all policies are
/// the same.
fn net4(key: &TrieKey<PrefixKey4>) -> Option<Ipv4Net> {
    let length = key.prefix_len.checked_sub(POLICY_BITS)?;
    let net = Ipv4Net::new(key.data.addr_be.into(), u8::try_from(length).ok()?);
    Some(net.ok()?.trunc())
}

/// As [`net4`].
fn net6(key: &TrieKey<PrefixKey6>) -> Option<Ipv6Net> {
    let length = key.prefix_len.checked_sub(POLICY_BITS)?;
    let net = Ipv6Net::new(key.data.addr_be.into(), u8::try_from(length).ok()?);
    Some(net.ok()?.trunc())
}
