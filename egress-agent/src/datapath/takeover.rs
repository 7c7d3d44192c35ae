//! Pins of other layouts: an agent of another version left them, and their hooks are in force.
//!
//! What this version needs of their maps is taken into its own: the same kernel map where the
//! layout is the same, else element by element. Then each hook gets our program with its pin, one
//! atomic swap each, and at last the other directory goes. Until a hook is swapped nothing in the
//! other directory has changed, so that the version that made it can take it up again.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::path::Path;

use egress_common::maps::{
    Endpoint, FlowKey, FragmentKey, NEAR4, NEAR6, Near4, Near6, PodInfo, name,
};

use super::bytes::Bytes;
use super::layout::{self, Conversion, Fields};
use super::maps::{Maps, text};
use super::{DatapathError, Pins};

/// Maps that the programs write, and what they hold must not be lost.
const SHARED: [&str; 7] = [
    name::FLOWS_IN,
    name::FLOWS_OUT,
    name::INBOUND,
    name::FRAGMENTS,
    name::ORIGINS,
    name::COUNTERS,
    name::EVENTS,
];
/// Those of them whose keys begin with a slot, and that are walked through.
const BY_SLOT: [&str; 3] = [name::FLOWS_IN, name::FLOWS_OUT, name::FRAGMENTS];
const _: () = assert!(offset_of!(FlowKey, slot) == 0 && offset_of!(FragmentKey, slot) == 0);
/// Counters of pods that are not known.
const NO_SLOT: u32 = 0;

/// Makes our directory, and puts into it what maps can be shared with others.
pub fn begin(own: &Pins) -> Result<(), DatapathError> {
    let others = own.others()?;
    if let Some(best) = others.first()
        && best.links_pinned()? > 0
        && own.root().exists()
        && own.links_pinned()? == 0
        && !own.was_last()
    {
        // Left behind when another took over: what is in there has been carried on, and is old.
        own.remove()?;
    }
    own.create()?;
    own.set_last()?;
    let Some(other) = others.first() else {
        return Ok(());
    };
    tracing::info!(event = "takeover", from = %other.root().display(), to = %own.root().display());
    if conversion(other, own, name::POD_INFO).is_none() {
        // Slots are given anew, and mean other pods.
        return Ok(());
    }
    for map in SHARED {
        if other.schema(map) == layout::own(map)
            && other.map(map).exists()
            && !own.map(map).exists()
        {
            Bytes::open(&other.map(map))?.pin(&own.map(map))?;
        }
    }
    Ok(())
}

/// Copies what is in the maps of another layout, and is not in ours. May be done again.
pub fn carry(other: &Pins, own: &Pins, maps: &Maps) -> Result<u64, DatapathError> {
    let (slots, mut writes) = carry_slots(other, own, maps)?;
    for (key, value) in elements(other, own, name::DEVICES)? {
        if let (Some(ifindex), Some(entry)) = (key.first_chunk(), endpoint(&value)) {
            let ifindex = u32::from_ne_bytes(*ifindex);
            if maps.devices.get(&ifindex)?.is_none() {
                writes += written(&maps.devices.insert(&ifindex, &entry));
            }
        }
    }
    for (key, value) in elements(other, own, name::CGROUPS)? {
        if let (Some(cgroup), Some(entry)) = (key.first_chunk(), endpoint(&value)) {
            let cgroup = u64::from_ne_bytes(*cgroup);
            if maps.cgroups.get(&cgroup)?.is_none() {
                writes += written(&maps.cgroups.insert(&cgroup, &entry));
            }
        }
    }
    for map in BY_SLOT {
        let target = Bytes::open(&own.map(map))?;
        for (key, value) in elements(other, own, map)? {
            let slot = key.first_chunk().map(|slot| u32::from_ne_bytes(*slot));
            if slot.is_some_and(|slot| slots.contains(&slot)) {
                writes += u64::from(target.set(&key, &value, false)?);
            }
        }
    }
    let origins = Bytes::open(&own.map(name::ORIGINS))?;
    for (key, value) in elements(other, own, name::ORIGINS)? {
        writes += u64::from(origins.set(&key, &value, false)?);
    }
    for map in [name::INBOUND, name::COUNTERS] {
        writes += carry_array(other, own, map, &slots)?;
    }
    Ok(writes)
}

/// Pods keep their slots. Tells which slots mean the same pod on both sides.
fn carry_slots(
    other: &Pins,
    own: &Pins,
    maps: &Maps,
) -> Result<(BTreeSet<u32>, u64), DatapathError> {
    let mut known = maps.pod_info.entries()?;
    let (mut same, mut writes) = (BTreeSet::new(), 0);
    for (key, value) in elements(other, own, name::POD_INFO)? {
        let (Some(slot), Some(info)) = (key.first_chunk(), pod::<PodInfo>(&value)) else {
            continue;
        };
        let slot = u32::from_ne_bytes(*slot);
        let here = known.iter().find(|(_, it)| it.uid == info.uid);
        match here {
            Some((at, _)) if *at == slot => {}
            None if known.iter().all(|(at, _)| *at != slot) => {
                writes += written(&maps.pod_info.insert(&slot, &info));
                known.push((slot, info));
            }
            _ => {
                let pod = text(&info.name);
                tracing::warn!(
                    event = "slot_changed",
                    slot,
                    pod,
                    "its flows are not taken over"
                );
                continue;
            }
        }
        same.insert(slot);
    }
    Ok((same, writes))
}

/// Values of arrays, where ours are still zero.
fn carry_array(
    other: &Pins,
    own: &Pins,
    map: &str,
    slots: &BTreeSet<u32>,
) -> Result<u64, DatapathError> {
    let Some((source, conversion)) = source(other, own, map)? else {
        return Ok(0);
    };
    let target = Bytes::open(&own.map(map))?;
    let counted = (map == name::COUNTERS).then_some(NO_SLOT);
    let mut writes = 0;
    for slot in slots.iter().copied().chain(counted) {
        let key = slot.to_ne_bytes();
        let Some(there) = source.get(&conversion.key(&key, source.key_size()))? else {
            continue;
        };
        if let Some(here) = target.get(&key)?
            && here.iter().all(|byte| *byte == 0)
        {
            let value = value(&conversion, &source, &there, &target);
            writes += u64::from(target.set(&key, &value, true)?);
        }
    }
    Ok(writes)
}

/// Lets a cgroup through the gate as another layout's programs have it, if they are in force.
pub fn let_through(own: &Pins, cgroup: u64, endpoint: &Endpoint) -> Result<(), DatapathError> {
    for other in own.others()? {
        let Some(conversion) = conversion(own, &other, name::CGROUPS) else {
            continue;
        };
        if !other.map(name::CGROUPS).exists() {
            continue;
        }
        let map = Bytes::open(&other.map(name::CGROUPS))?;
        let key = conversion.key(&cgroup.to_ne_bytes(), map.key_size());
        let value = conversion.value(bytes_of(endpoint), map.value);
        map.set(&key, &value, false)?;
    }
    Ok(())
}

/// What does not fit is told; the pass after this one tries again by itself.
fn written(result: &Result<(), DatapathError>) -> u64 {
    if let Err(error) = result {
        tracing::warn!(event = "not_taken_over", %error);
    }
    u64::from(result.is_ok())
}

/// How a pod's entry is taken over: who it is, not what it may. The policy's number means nothing
/// here before the policy is written, and then the entry is written anew.
fn endpoint(value: &[u8]) -> Option<Endpoint> {
    Some(Endpoint {
        policy: 0,
        exact_networks: 0,
        near4: [Near4::default(); NEAR4],
        near6: [Near6::default(); NEAR6],
        zero: 0,
        ..pod::<Endpoint>(value)?
    })
}

/// Key and value.
type Element = (Vec<u8>, Vec<u8>);

/// All elements of another layout's map in our layout; none if both are the same kernel map, or
/// there is nothing to be read.
fn elements(other: &Pins, own: &Pins, map: &str) -> Result<Vec<Element>, DatapathError> {
    let Some((source, conversion)) = source(other, own, map)? else {
        return Ok(Vec::new());
    };
    let target = Bytes::open(&own.map(map))?;
    let mut elements = Vec::new();
    for key in source.keys()? {
        if let Some(there) = source.get(&key)? {
            let value = value(&conversion, &source, &there, &target);
            elements.push((conversion.key(&key, target.key_size()), value));
        }
    }
    Ok(elements)
}

fn source(
    other: &Pins,
    own: &Pins,
    map: &str,
) -> Result<Option<(Bytes, Conversion)>, DatapathError> {
    let path = other.map(map);
    let Some(conversion) = conversion(other, own, map) else {
        return Ok(None);
    };
    if !path.exists() {
        return Ok(None);
    }
    let source = Bytes::open(&path)?;
    let same = source.id == Bytes::open(&own.map(map))?.id;
    Ok((!same).then_some((source, conversion)))
}

fn conversion(from: &Pins, to: &Pins, map: &str) -> Option<Conversion> {
    let from = Fields::read(&from.schema(map)?)?;
    let to = Fields::read(&to.schema(map)?)?;
    Conversion::between(&from, &to)
}

/// The values of all CPUs.
fn value(conversion: &Conversion, source: &Bytes, there: &[u8], target: &Bytes) -> Vec<u8> {
    let values = there.chunks_exact(source.value);
    values
        .flat_map(|value| conversion.value(value, target.value))
        .collect()
}

fn pod<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as long as a `T`, and any bits are a `Pod`.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn bytes_of<T: aya::Pod>(value: &T) -> &[u8] {
    // SAFETY: a `Pod` is its bytes.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

/// Brings a link's pin from another layout's directory to its name in ours.
pub fn fetch(own: &Pins, path: &Path) -> Result<(), DatapathError> {
    if path.exists() {
        return Ok(());
    }
    let Some(link) = path.file_name() else {
        return Ok(());
    };
    for other in own.others()? {
        let there = other.links().join(link);
        if there.exists() {
            return std::fs::rename(&there, path).map_err(|error| DatapathError::Io {
                what: format!("can't take over {}", there.display()),
                error,
            });
        }
    }
    Ok(())
}
