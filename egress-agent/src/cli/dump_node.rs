//! The maps that are arrays: counters and settings.

use egress_common::Reason;
use egress_common::limits::MAX_WAYS;
use egress_common::maps::{Config, Endpoint, covered_mark, covered_place, name, way_place};
use serde_json::Value;

use super::cells::Names;
use super::dump::Dump;
use crate::datapath::pinned::{Pinned, PinnedError};

/// One row for each reason that a slot has counted; the rest are zeros.
pub fn counters(names: &Names<'_>) -> Dump {
    let mut rows = Vec::new();
    for (slot, counters) in names.counters() {
        for reason in Reason::ALL {
            let count = &counters.reasons[*reason as usize];
            if count.packets > 0 {
                rows.push(vec![
                    (*slot).into(),
                    names.slot(*slot),
                    names.reason(*reason as u8),
                    count.packets.into(),
                    count.bytes.into(),
                ]);
            }
        }
    }
    Dump {
        fields: &["slot", "pod", "reason", "packets", "bytes"],
        rows,
    }
}

/// Numbers of the networks that have opened flows to each pod.
pub fn inbound(pinned: &Pinned, names: &Names<'_>) -> Result<Dump, PinnedError> {
    let mut rows = Vec::new();
    for slot in names.counters().keys() {
        let inbound = pinned.inbound(*slot)?;
        let networks = inbound.networks.iter().enumerate();
        let set = networks.filter(|(_, is_set)| **is_set != 0);
        let networks: Vec<Value> = set.map(|(number, _)| number.into()).collect();
        rows.push(vec![(*slot).into(), names.slot(*slot), networks.into()]);
    }
    Ok(Dump {
        fields: &["slot", "pod", "networks"],
        rows,
    })
}

/// The pods whose packets take the shortcut through the cgroup hook.
pub fn covered(pinned: &Pinned, names: &Names<'_>) -> Result<Dump, PinnedError> {
    let mut rows = Vec::new();
    let mut cgroups = pinned.entries::<u64, Endpoint>(name::CGROUPS)?;
    cgroups.sort_by_key(|(cgroup, _)| *cgroup);
    for (cgroup, endpoint) in cgroups {
        let place = covered_place(cgroup);
        if pinned.covered(place)?.mark == covered_mark(cgroup) {
            rows.push(vec![place.into(), cgroup.into(), names.slot(endpoint.slot)]);
        }
    }
    Ok(Dump {
        fields: &["place", "cgroup", "pod"],
        rows,
    })
}

/// The devices on which the hooks of covered pods stand, and whose packets so pass the cgroup hook.
pub fn ways(pinned: &Pinned, names: &Names<'_>) -> Result<Dump, PinnedError> {
    let mut rows = Vec::new();
    let mut slots: Vec<(u32, u32)> = pinned
        .entries::<u64, Endpoint>(name::CGROUPS)?
        .into_iter()
        .map(|(_, endpoint)| (endpoint.slot, endpoint.ways.min(MAX_WAYS)))
        .collect();
    slots.sort_unstable();
    for (slot, ways) in slots {
        for place in way_place(slot)..way_place(slot) + ways {
            if let Some(ifindex) = pinned.way(place)? {
                rows.push(vec![
                    place.into(),
                    ifindex.into(),
                    names.device(ifindex),
                    names.slot(slot),
                ]);
            }
        }
    }
    Ok(Dump {
        fields: &["place", "ifindex", "device", "pod"],
        rows,
    })
}

/// One row for each setting.
pub fn config(names: &Names<'_>, config: &Config) -> Dump {
    let settings: [(&str, Value); 6] = [
        ("qosCgroups", config.qos_cgroups.to_vec().into()),
        ("kubepods", config.kubepods.into()),
        ("kubepodsLevel", config.kubepods_level.into()),
        ("eventIntervalNs", config.event_interval_ns.into()),
        ("eventBurst", config.event_burst.into()),
        ("unknownPods", names.mode(config.unknown_mode)),
    ];
    Dump {
        fields: &["setting", "value"],
        rows: settings
            .into_iter()
            .map(|(setting, value)| vec![setting.into(), value])
            .collect(),
    }
}
