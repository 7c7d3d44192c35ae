//! The fence: a packet filter behind the hooks on pods' devices, in the node's network namespace.
//!
//! The kernel has ways past traffic control and all that hangs there: what an `ifb` device sends on comes to
//! the other end of the pair with a flag that leaves out every program on the device once. So a hook marks
//! what it passes, and a table of `nf_tables` drops what comes from an enforced pod's device without the mark,
//! and clears it. It holds as well where the hook is gone, or another program before it ends the chain.
//!
//! The gate stands beside it, in a table of its own: nothing comes from a veth that nobody has looked at yet. A
//! packet socket goes past the gate on kubepods, and a hook comes with its device only while the agent runs, and
//! some moments later. Who has been looked at is in the gate's set: `agent/newcomers.rs` has the order.
//!
//! The kernel keeps the tables without the agent. A device is in the fence's set for no longer than its hook marks:
//! `reconcile/plan/fence.rs` has the order.
#![forbid(unsafe_code)]

mod rules;
mod value;

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

pub use rules::{Family, Part};

use crate::netlink::{Channel, Message, NFGENMSG, NetlinkError, attribute, attributes, u32_of};
use rules::{CHAIN, COUNTER, NFT_OBJECT_COUNTER};
use value::Value::{Text, Word};

/// `linux/netfilter/nfnetlink.h`.
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;

/// `NFT_MSG_*` of `linux/netfilter/nf_tables.h`.
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const NEWSET: u16 = 9;
const GETSET: u16 = 10;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
const GETGEN: u16 = 16;
const NEWOBJ: u16 = 18;
const GETOBJ: u16 = 19;

/// Devices in one message: an attribute has at most 64 KiB.
const MOST: usize = 1000;

/// What of fence or gate is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Every family's table is there and as it should be.
    pub stands: bool,
    /// Some table of ours is there.
    pub is_there: bool,
    /// Interface indices in every family's set.
    pub devices: BTreeSet<u32>,
    /// Those in some family's set.
    pub anywhere: BTreeSet<u32>,
}

/// What people want to know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Those whose table is as it should be.
    pub families: BTreeSet<Family>,
    /// Interface indices in all of their sets.
    pub devices: BTreeSet<u32>,
    /// Packets that no hook had passed; at the gate, from devices that no agent had looked at.
    pub dropped: BTreeMap<Family, u64>,
}

/// Fence or gate of the network namespace that the thread that opened it was in.
pub struct Fence {
    part: Part,
    channel: Channel,
    families: Vec<Family>,
    /// The rules' generation when they were looked at last, and what was there.
    seen: Option<(u32, State)>,
}

impl std::fmt::Debug for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fence")
            .field("part", &self.part)
            .field("families", &self.families)
            .finish_non_exhaustive()
    }
}

impl Fence {
    /// Finds out which families this kernel has; beside it why it has no others.
    ///
    /// # Errors
    /// If it has none.
    pub fn open(part: Part) -> Result<(Self, BTreeMap<Family, NetlinkError>), NetlinkError> {
        let mut fence = Self::of(part, Vec::new())?;
        let mut missing = BTreeMap::new();
        for family in Family::ALL {
            // Without its end the kernel looks at a batch and forgets it.
            match fence.orders("try nf_tables", &raise(part, family, &[1]), false) {
                Ok(()) => fence.families.push(family),
                Err(error) => {
                    missing.insert(family, error);
                }
            }
        }
        match missing.pop_first() {
            Some((_, error)) if fence.families.is_empty() => Err(error),
            first => {
                missing.extend(first);
                Ok((fence, missing))
            }
        }
    }

    /// What is there, whichever families the kernel has, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the kernel has no `nf_tables`, or may not be asked.
    pub fn facts(part: Part) -> Result<Facts, NetlinkError> {
        let mut fence = Self::of(part, Family::ALL.to_vec())?;
        let mut facts = Facts::default();
        for family in Family::ALL {
            if fence.table(family, &rules::table(part))? == Some(true) && fence.is_whole(family)? {
                let devices = fence.devices(family)?;
                facts.devices = if facts.families.is_empty() {
                    devices
                } else {
                    &facts.devices & &devices
                };
                facts.families.insert(family);
            }
        }
        facts.dropped = fence.dropped()?;
        Ok(facts)
    }

    /// Takes it down in the network namespace of the calling thread; whether there was one.
    ///
    /// # Errors
    /// If it is there and can't be taken down. A kernel without `nf_tables` has none.
    pub fn end(part: Part) -> Result<bool, NetlinkError> {
        let Ok(mut fence) = Self::of(part, Family::ALL.to_vec()) else {
            return Ok(false);
        };
        match fence.generation() {
            Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) => {
                Ok(false)
            }
            generation => generation.and_then(|_| fence.lower()),
        }
    }

    fn of(part: Part, families: Vec<Family>) -> Result<Self, NetlinkError> {
        Ok(Self {
            part,
            channel: Channel::open(NETLINK_NETFILTER)?,
            families,
            seen: None,
        })
    }

    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// What is there now. Where nobody has changed any rule since the last time that costs one question.
    pub fn look(&mut self) -> Result<State, NetlinkError> {
        let before = self.generation()?;
        if let Some((generation, state)) = &self.seen
            && *generation == before
        {
            return Ok(state.clone());
        }
        self.seen = None;
        let mut state = State {
            stands: true,
            ..State::default()
        };
        for (index, family) in self.families.clone().into_iter().enumerate() {
            let is_there = self.table(family, &rules::table(self.part))?;
            state.is_there |= is_there.is_some();
            state.stands &= is_there == Some(true) && self.is_whole(family)?;
            let devices = self.devices(family)?;
            state.anywhere.extend(&devices);
            state.devices = if index == 0 {
                devices
            } else {
                &state.devices & &devices
            };
        }
        if self.generation()? == before {
            self.seen = Some((before, state.clone()));
        }
        Ok(state)
    }

    /// Packets that were dropped, as [`Facts::dropped`].
    pub fn dropped(&mut self) -> Result<BTreeMap<Family, u64>, NetlinkError> {
        let mut dropped = BTreeMap::new();
        for family in self.families.clone() {
            let named = [
                (1, Text(self.part.table())),
                (2, Text(COUNTER)),
                (3, Word(NFT_OBJECT_COUNTER)),
            ];
            let answer = self.get("read the packet filter's counter", GETOBJ, family, &named)?;
            let packets = answer.and_then(|payload| {
                let data = attribute(&payload, NFGENMSG, 4)?;
                let packets = attribute(data, 0, 2)?;
                packets.try_into().ok().map(u64::from_be_bytes)
            });
            dropped.extend(packets.map(|packets| (family, packets)));
        }
        Ok(dropped)
    }

    /// Sets it up anew, with these devices in it; what was there before stands until then.
    pub fn raise(&mut self, devices: &BTreeSet<u32>) -> Result<(), NetlinkError> {
        let devices: Vec<u32> = devices.iter().copied().collect();
        let families = self.families.iter();
        let raise = |family: &Family| raise(self.part, *family, &devices);
        let orders: Vec<Message> = families.flat_map(raise).collect();
        self.orders("set up the packet filter's tables", &orders, true)
    }

    /// At the fence: from now on nothing comes from this device but what its hook has marked. At the gate: it is
    /// open from now on.
    pub fn add(&mut self, ifindex: u32) -> Result<(), NetlinkError> {
        let families = self.families.iter();
        let orders: Vec<Message> = families
            .map(|it| {
                order(
                    NEWSETELEM,
                    NLM_F_CREATE,
                    *it,
                    &rules::elements(self.part, &[ifindex]),
                )
            })
            .collect();
        self.orders("add a device to the packet filter's sets", &orders, true)
    }

    /// At the fence: what comes from this device is let by. At the gate: nothing does from a veth of this index.
    pub fn remove(&mut self, ifindex: u32) -> Result<(), NetlinkError> {
        for family in self.families.clone() {
            let orders = [order(
                DELSETELEM,
                0,
                family,
                &rules::elements(self.part, &[ifindex]),
            )];
            match self.orders(
                "take a device out of the packet filter's sets",
                &orders,
                true,
            ) {
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Takes it down; whether there was one. A family that this kernel does not have has none.
    pub fn lower(&mut self) -> Result<bool, NetlinkError> {
        let mut was_there = false;
        for family in self.families.clone() {
            if self.table(family, &[])?.is_some() {
                let orders = [order(DELTABLE, 0, family, &[(1, Text(self.part.table()))])];
                self.orders("take down a table of the packet filter", &orders, true)?;
                was_there = true;
            }
        }
        Ok(was_there)
    }

    fn generation(&mut self) -> Result<u32, NetlinkError> {
        let doing = "ask for the packet filter's generation";
        let message = order(GETGEN, 0, Family::Inet, &[]);
        let answer = self.channel.ask(doing, message.kind, &message.payload)?;
        answer
            .as_deref()
            .and_then(|payload| attribute(payload, NFGENMSG, 1))
            .and_then(u32_of)
            .ok_or(NetlinkError::Malformed { doing })
    }

    /// Whether our table is as it should be; none if it is not there.
    fn table(
        &mut self,
        family: Family,
        wanted: &[(u16, value::Value)],
    ) -> Result<Option<bool>, NetlinkError> {
        let named = [(1, Text(self.part.table()))];
        let found = self.get(
            "look at the packet filter's table",
            GETTABLE,
            family,
            &named,
        )?;
        Ok(found.map(|found| value::are_in(wanted, &found, NFGENMSG)))
    }

    /// Whether chain, set and rules are as they should be.
    fn is_whole(&mut self, family: Family) -> Result<bool, NetlinkError> {
        let named = [(1, Text(self.part.table())), (3, Text(CHAIN))];
        let chain = self.get(
            "look at the packet filter's chain",
            GETCHAIN,
            family,
            &named,
        )?;
        let named = [(1, Text(self.part.table())), (2, Text(self.part.set()))];
        let set = self.get("look at the packet filter's set", GETSET, family, &named)?;
        let has = |found: Option<Vec<u8>>, wanted: &[_]| {
            found.is_some_and(|found| value::are_in(wanted, &found, NFGENMSG))
        };
        if !has(chain, &rules::chain(self.part)) || !has(set, &rules::set(self.part)) {
            return Ok(false);
        }
        let named = [(1, Text(self.part.table())), (2, Text(CHAIN))];
        let found = self.list("list the packet filter's rules", GETRULE, family, &named)?;
        let wanted = rules::rules(self.part);
        Ok(found.len() == wanted.len()
            && wanted
                .iter()
                .zip(&found)
                .all(|(wanted, found)| value::are_in(wanted, found, NFGENMSG)))
    }

    fn devices(&mut self, family: Family) -> Result<BTreeSet<u32>, NetlinkError> {
        let named = [(1, Text(self.part.table())), (2, Text(self.part.set()))];
        let found = self.list(
            "list the packet filter's devices",
            GETSETELEM,
            family,
            &named,
        )?;
        let lists = found
            .iter()
            .filter_map(|payload| attribute(payload, NFGENMSG, 3));
        let elements = lists.flat_map(|list| attributes(list, 0));
        let device = |(_, element): (u16, _)| {
            let key = attribute(element, 0, 1)?;
            u32_of(attribute(key, 0, 1)?)
        };
        Ok(elements.filter_map(device).collect())
    }

    /// One thing; none if it is not there.
    fn get(
        &mut self,
        doing: &'static str,
        kind: u16,
        family: Family,
        named: &[(u16, value::Value)],
    ) -> Result<Option<Vec<u8>>, NetlinkError> {
        let message = order(kind, 0, family, named);
        absent(self.channel.ask(doing, message.kind, &message.payload)).map(Option::flatten)
    }

    /// All of a kind; nothing if what they are in is not there.
    fn list(
        &mut self,
        doing: &'static str,
        kind: u16,
        family: Family,
        named: &[(u16, value::Value)],
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let message = order(kind, 0, family, named);
        let payload = |payload: &[u8]| Some(payload.to_vec());
        let found = self
            .channel
            .dump(doing, message.kind, &message.payload, payload);
        absent(found).map(Option::unwrap_or_default)
    }

    /// All of them or none; without an end only whether they could be carried out.
    fn orders(
        &mut self,
        doing: &'static str,
        orders: &[Message],
        end: bool,
    ) -> Result<(), NetlinkError> {
        let bound = |kind| Message {
            kind,
            flags: 0,
            answered: false,
            payload: [&[0, 0], &NFNL_SUBSYS_NFTABLES.to_be_bytes()[..]].concat(),
        };
        let mut messages = vec![bound(NFNL_MSG_BATCH_BEGIN)];
        messages.extend(orders.iter().cloned());
        messages.last_mut().expect("the begin").answered = true;
        if end {
            messages.push(bound(NFNL_MSG_BATCH_END));
        }
        self.channel.batch(doing, &messages)
    }
}

/// What is not there, or of a family that the kernel does not have, is no error.
fn absent<T>(answer: Result<T, NetlinkError>) -> Result<Option<T>, NetlinkError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) => match error.errno() {
            Some(Errno::ENOENT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => Ok(None),
            _ => Err(error),
        },
    }
}

fn order(kind: u16, flags: u16, family: Family, attributes: &[(u16, value::Value)]) -> Message {
    let mut payload = vec![family.number(), 0, 0, 0];
    payload.extend(value::write(attributes));
    Message {
        kind: NFNL_SUBSYS_NFTABLES << 8 | kind,
        flags,
        answered: false,
        payload,
    }
}

/// A family's table anew.
fn raise(part: Part, family: Family, devices: &[u32]) -> Vec<Message> {
    let order = |kind, attributes: &[_]| order(kind, NLM_F_CREATE, family, attributes);
    let mut orders = vec![
        // One that is there is removed; and to remove one that is not would be refused.
        order(NEWTABLE, &rules::table(part)),
        self::order(DELTABLE, 0, family, &[(1, Text(part.table()))]),
        order(NEWTABLE, &rules::table(part)),
        order(NEWCHAIN, &rules::chain(part)),
        order(NEWSET, &rules::new_set(part, devices.len())),
        order(NEWOBJ, &rules::counter(part)),
    ];
    for rule in rules::rules(part) {
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        orders.push(self::order(NEWRULE, flags, family, &rule));
    }
    for devices in devices.chunks(MOST) {
        orders.push(order(NEWSETELEM, &rules::elements(part, devices)));
    }
    orders
}
