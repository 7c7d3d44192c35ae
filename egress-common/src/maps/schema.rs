//! The layout of each map, field by field: what an agent leaves beside its pins, so that one of
//! another layout can take over what is in them.

use core::mem::{offset_of, size_of};

use super::{
    Config, Covered, Endpoint, ExactKey4, ExactKey6, ExactRule, Flow, FlowKey, Fragment,
    FragmentKey, Inbound, Origin, OriginKey, PodCounters, PodInfo, PolicyInfo, PrefixKey4,
    PrefixKey6, PrefixRule, RuleInfo, RuleKey, Way, name,
};
use crate::event::Event;
use crate::limits;

/// A field of a key or value: where its bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    /// Bytes from the start.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// A map as this version has it.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    pub name: &'static str,
    /// Kind of map, in the kernel's word.
    pub kind: &'static str,
    /// Entries; for the ring bytes.
    pub entries: u32,
    pub key: &'static [Field],
    pub value: &'static [Field],
}

const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// The fields of a type, all of them: a pattern that leaves one out does not compile.
macro_rules! fields {
    ($($list:ident = $ty:ident { $($field:ident),+ $(,)? })+) => { $(
        const $list: &[Field] = {
            const fn _all(it: &$ty) {
                let $ty { $($field: _),+ } = it;
            }
            &[$(Field {
                name: stringify!($field),
                offset: offset_of!($ty, $field),
                size: size_of_field(|it: &$ty| &it.$field),
            }),+]
        };
    )+ };
}

fields! {
    ENDPOINT = Endpoint {
        slot, policy, v4_be, mode, on_deny, flags, zero, v6_be, since_ns, exact_networks, near4,
        near6, ways
    }
    COVERED = Covered { slot, ways, mark }
    WAY = Way { ifindex, program }
    EXACT_KEY4 = ExactKey4 { policy, addr_be, port_be, proto, pad }
    EXACT_KEY6 = ExactKey6 { policy, addr_be, port_be, proto, pad }
    EXACT_RULE = ExactRule { rule, reason, pad }
    PREFIX_KEY4 = PrefixKey4 { policy_be, addr_be }
    PREFIX_KEY6 = PrefixKey6 { policy_be, addr_be }
    PREFIX_RULE = PrefixRule { count, deny, deny_rule, ranges }
    FLOW_KEY = FlowKey { slot, peer_be, peer_port_be, pod_port_be, proto, version, pad }
    FLOW = Flow { seen_ns, state, pad }
    INBOUND = Inbound { networks }
    FRAGMENT_KEY = FragmentKey { slot, id_be, dst_be, proto, pad }
    FRAGMENT = Fragment { seen_ns, verdict, pad }
    ORIGIN_KEY = OriginKey { pod_cgroup, dst_be, port_be, proto, pad }
    ORIGIN = Origin { seen_ns, cgroup, pid, uid, comm }
    COUNTERS = PodCounters { reasons, audited, events_lost, tokens, filled_ns }
    CONFIG = Config {
        qos_cgroups, kubepods, kubepods_level, event_interval_ns, event_burst, unknown_mode, pad
    }
    POD_INFO = PodInfo { uid, namespace, name, pad, cgroup, since_ns }
    POLICY_INFO = PolicyInfo { digest, entries, rules, complete }
    RULE_KEY = RuleKey { policy, rule, pad }
    RULE_INFO = RuleInfo { text }
    EVENT = Event {
        time_ns, pod_cgroup, slot, policy, ifindex, len, src_be, dst_be, src_port_be, dst_port_be,
        ethertype_be, rule, proto, verdict, reason, hook, pad
    }
}

const fn plain(name: &'static str, size: usize) -> Field {
    Field {
        name,
        offset: 0,
        size,
    }
}

const fn map(
    name: &'static str,
    kind: &'static str,
    entries: u32,
    key: &'static [Field],
    value: &'static [Field],
) -> Schema {
    Schema {
        name,
        kind,
        entries,
        key,
        value,
    }
}

const INDEX: &[Field] = &[plain("index", 4)];
const IFINDEX: &[Field] = &[plain("ifindex", 4)];
const SLOT: &[Field] = &[plain("slot", 4)];
const POLICY: &[Field] = &[plain("policy", 4)];
const CGROUP: &[Field] = &[plain("cgroup", 8)];

/// All maps that are pinned.
pub const SCHEMAS: &[Schema] = &[
    map(
        name::DEVICES,
        "hash",
        limits::MAX_DEVICES,
        IFINDEX,
        ENDPOINT,
    ),
    map(name::CGROUPS, "hash", limits::MAX_CGROUPS, CGROUP, ENDPOINT),
    map(
        name::COVERED,
        "array",
        limits::COVERED_PLACES,
        INDEX,
        COVERED,
    ),
    map(
        name::WAYS,
        "devmap",
        limits::MAX_SLOTS * limits::MAX_WAYS,
        INDEX,
        WAY,
    ),
    map(
        name::EXACT4,
        "hash",
        limits::MAX_EXACT,
        EXACT_KEY4,
        EXACT_RULE,
    ),
    map(
        name::EXACT6,
        "hash",
        limits::MAX_EXACT,
        EXACT_KEY6,
        EXACT_RULE,
    ),
    map(
        name::PREFIX4,
        "lpm_trie",
        limits::MAX_PREFIXES,
        PREFIX_KEY4,
        PREFIX_RULE,
    ),
    map(
        name::PREFIX6,
        "lpm_trie",
        limits::MAX_PREFIXES,
        PREFIX_KEY6,
        PREFIX_RULE,
    ),
    map(
        name::FLOWS_IN,
        "lru_hash",
        limits::MAX_FLOWS,
        FLOW_KEY,
        FLOW,
    ),
    map(
        name::FLOWS_OUT,
        "lru_hash",
        limits::MAX_FLOWS,
        FLOW_KEY,
        FLOW,
    ),
    map(name::INBOUND, "array", limits::MAX_SLOTS, SLOT, INBOUND),
    map(
        name::FRAGMENTS,
        "lru_hash",
        limits::MAX_FRAGMENTS,
        FRAGMENT_KEY,
        FRAGMENT,
    ),
    map(
        name::ORIGINS,
        "lru_hash",
        limits::MAX_ORIGINS,
        ORIGIN_KEY,
        ORIGIN,
    ),
    map(
        name::COUNTERS,
        "percpu_array",
        limits::MAX_SLOTS,
        SLOT,
        COUNTERS,
    ),
    map(
        name::EVENTS,
        "ringbuf",
        limits::EVENT_RING_BYTES,
        &[],
        EVENT,
    ),
    map(name::CONFIG, "array", 1, INDEX, CONFIG),
    map(name::POD_INFO, "hash", limits::MAX_SLOTS, SLOT, POD_INFO),
    map(
        name::POLICY_INFO,
        "hash",
        limits::MAX_POLICIES,
        POLICY,
        POLICY_INFO,
    ),
    map(
        name::RULE_INFO,
        "hash",
        limits::MAX_EXACT,
        RULE_KEY,
        RULE_INFO,
    ),
];
