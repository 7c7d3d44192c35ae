//! The maps, and the decision's tables over them.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, DevMap, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use egress_common::limits::{
    COVERED_PLACES, EVENT_RING_BYTES, MAX_CGROUPS, MAX_DEVICES, MAX_EXACT, MAX_FLOWS,
    MAX_FRAGMENTS, MAX_ORIGINS, MAX_POLICIES, MAX_PREFIXES, MAX_SLOTS, MAX_WAYS,
};
use egress_common::maps::{
    Config, Covered, Endpoint, ExactKey4, ExactKey6, ExactRule, Flow, FlowKey, Fragment,
    FragmentKey, Inbound, NETWORKS, NO_WAYS, Origin, OriginKey, PodCounters, PodInfo, PolicyInfo,
    PrefixKey4, PrefixKey6, PrefixRule, RuleInfo, RuleKey, covered_mark, covered_place, way_place,
};
use egress_common::packet::Address;
use egress_common::tables::{Full, Tables};

const _: () = assert!(size_of::<Key<PrefixKey4>>() == 12 && size_of::<Key<PrefixKey6>>() == 24);

/// Interface index of a pod's device to the pod.
#[map(name = "sp_devices")]
pub static DEVICES: HashMap<u32, Endpoint> = HashMap::pinned(MAX_DEVICES, 0);
/// Cgroup id of a pod to the pod.
#[map(name = "sp_cgroups")]
pub static CGROUPS: HashMap<u64, Endpoint> = HashMap::pinned(MAX_CGROUPS, 0);
#[map(name = "sp_covered")]
static COVERED: Array<Covered> = Array::pinned(COVERED_PLACES, 0);
#[map(name = "sp_ways")]
static WAYS: DevMap = DevMap::pinned(MAX_SLOTS * MAX_WAYS, 0);
#[map(name = "sp_exact4")]
static EXACT4: HashMap<ExactKey4, ExactRule> = HashMap::pinned(MAX_EXACT, BPF_F_NO_PREALLOC);
#[map(name = "sp_exact6")]
static EXACT6: HashMap<ExactKey6, ExactRule> = HashMap::pinned(MAX_EXACT, BPF_F_NO_PREALLOC);
#[map(name = "sp_prefix4")]
static PREFIX4: LpmTrie<PrefixKey4, PrefixRule> = LpmTrie::pinned(MAX_PREFIXES, 0);
#[map(name = "sp_prefix6")]
static PREFIX6: LpmTrie<PrefixKey6, PrefixRule> = LpmTrie::pinned(MAX_PREFIXES, 0);
#[map(name = "sp_flows_in")]
static FLOWS_IN: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(MAX_FLOWS, 0);
/// By slot.
#[map(name = "sp_inbound")]
static INBOUND: Array<Inbound> = Array::pinned(MAX_SLOTS, 0);
#[map(name = "sp_flows_out")]
static FLOWS_OUT: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(MAX_FLOWS, 0);
#[map(name = "sp_fragments")]
static FRAGMENTS: LruHashMap<FragmentKey, Fragment> = LruHashMap::pinned(MAX_FRAGMENTS, 0);
#[map(name = "sp_origins")]
pub static ORIGINS: LruHashMap<OriginKey, Origin> = LruHashMap::pinned(MAX_ORIGINS, 0);
/// By slot.
#[map(name = "sp_counters")]
pub static COUNTERS: PerCpuArray<PodCounters> = PerCpuArray::pinned(MAX_SLOTS, 0);
#[map(name = "sp_events")]
pub static EVENTS: RingBuf = RingBuf::pinned(EVENT_RING_BYTES, 0);
#[map(name = "sp_config")]
pub static CONFIG: Array<Config> = Array::pinned(1, 0);

// For people only; the programs don't read these three.
#[map(name = "sp_pod_info")]
static POD_INFO: HashMap<u32, PodInfo> = HashMap::pinned(MAX_SLOTS, 0);
#[map(name = "sp_policy_info")]
static POLICY_INFO: HashMap<u32, PolicyInfo> = HashMap::pinned(MAX_POLICIES, 0);
#[map(name = "sp_rule_info")]
static RULE_INFO: HashMap<RuleKey, RuleInfo> = HashMap::pinned(MAX_EXACT, BPF_F_NO_PREALLOC);

/// Monotonic clock, nanoseconds, as coarse as the kernel's tick: a third of the cost of the fine
/// one, and nothing here needs finer.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments, always callable.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The decision's tables.
pub struct KernelTables;

/// Bits of the policy's number in front of a prefix.
const POLICY_BITS: u32 = 32;

impl Tables for KernelTables {
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        now_ns()
    }

    #[inline(always)]
    fn exact4(&self, key: &ExactKey4) -> Option<ExactRule> {
        // SAFETY: copied at once; a reused element holds another valid rule at worst.
        unsafe { EXACT4.get(key) }.copied()
    }

    #[inline(always)]
    fn exact6(&self, key: &ExactKey6) -> Option<ExactRule> {
        // SAFETY: as above.
        unsafe { EXACT6.get(key) }.copied()
    }

    #[inline(always)]
    fn prefix4(&self, policy: u32, addr: u32) -> Option<&PrefixRule> {
        let words = [POLICY_BITS + 32, policy.to_be(), addr];
        // SAFETY: the key's length and then its bytes, as large and less aligned.
        PREFIX4.get(unsafe { &*(&raw const words).cast::<Key<PrefixKey4>>() })
    }

    #[inline(always)]
    fn prefix6(&self, policy: u32, addr: &Address) -> Option<&PrefixRule> {
        let [a, b, c, d] = *addr;
        let words = [POLICY_BITS + 128, policy.to_be(), a, b, c, d];
        // SAFETY: as above.
        PREFIX6.get(unsafe { &*(&raw const words).cast::<Key<PrefixKey6>>() })
    }

    #[inline(always)]
    fn flow_in(&self, key: &FlowKey) -> Option<Flow> {
        // SAFETY: copied at once; the time in it bounds what a reused element can do.
        unsafe { FLOWS_IN.get(key) }.copied()
    }

    #[inline(always)]
    fn set_flow_in(&self, key: &FlowKey, flow: &Flow) -> Result<(), Full> {
        FLOWS_IN.insert(key, flow, 0).map_err(|_| Full)
    }

    #[inline(always)]
    fn inbound(&self, slot: u32, network: usize) -> bool {
        match INBOUND.get(slot) {
            Some(inbound) => inbound.networks[network % NETWORKS] != 0,
            None => false,
        }
    }

    #[inline(always)]
    fn set_inbound(&self, slot: u32, network: usize) {
        if let Some(inbound) = INBOUND.get_ptr_mut(slot) {
            // SAFETY: in bounds. A byte is only ever set, so CPUs that race write the same.
            unsafe { (*inbound).networks[network % NETWORKS] = 1 };
        }
    }

    #[inline(always)]
    fn flow_out(&self, key: &FlowKey) -> Option<Flow> {
        // SAFETY: as above.
        unsafe { FLOWS_OUT.get(key) }.copied()
    }

    #[inline(always)]
    fn set_flow_out(&self, key: &FlowKey, flow: &Flow) -> Result<(), Full> {
        FLOWS_OUT.insert(key, flow, 0).map_err(|_| Full)
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: as above.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment) -> Result<(), Full> {
        FRAGMENTS.insert(key, fragment, 0).map_err(|_| Full)
    }
}

/// Whether the pod with this cgroup is known to pass the cgroup hook, told without a lookup by hash.
#[inline(always)]
pub fn is_covered(cgroup: u64) -> bool {
    match COVERED.get(covered_place(cgroup)) {
        Some(covered) if covered.mark == covered_mark(cgroup) => stand(covered.slot, covered.ways),
        _ => false,
    }
}

/// Whether a slot's pod passes the cgroup hook: see `Endpoint::passes_with`. The kernel itself takes a
/// device out of the map when it goes.
#[inline(always)]
pub fn stand(slot: u32, ways: u32) -> bool {
    if ways == NO_WAYS {
        return true;
    }
    let mut way = 0;
    while way < MAX_WAYS && way < ways {
        if WAYS.get_ifindex(way_place(slot) + way).is_none() {
            return false;
        }
        way += 1;
    }
    way > 0 && way == ways
}

/// The node's settings; `None` until the agent has written them, which is before any hook stands.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}
