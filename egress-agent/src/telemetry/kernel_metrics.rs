//! The kernel's counters and the fill of its maps, read when they are scraped.

use std::collections::BTreeMap;
use std::fmt;

use egress_common::Reason;
use egress_common::maps::{PodCounters, PodInfo, PolicyInfo, name};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tracing::warn;

use super::decode::text;
use crate::datapath::pinned::{Pinned, PinnedError};
use crate::fence::{Facts, Fence, Part};

/// Reads the pins at each scrape.
#[derive(Debug)]
pub struct KernelMetrics {
    pinned: Pinned,
}

impl KernelMetrics {
    pub fn new(pinned: Pinned) -> Self {
        Self { pinned }
    }

    fn read(&self) -> Result<Sample, PinnedError> {
        let pods: BTreeMap<u32, PodInfo> =
            self.pinned.entries(name::POD_INFO)?.into_iter().collect();
        // Slot 0 is that of the pods that are not known.
        let slots = pods.keys().copied().chain([0]);
        let counters = self.pinned.counters(slots)?;
        let policies: Vec<(u32, PolicyInfo)> = self.pinned.entries(name::POLICY_INFO)?;
        let sum = |of: fn(&PolicyInfo) -> u32| -> u64 {
            policies.iter().map(|(_, info)| u64::from(of(info))).sum()
        };
        // Tables of policies are counted by what their policies say: to walk them takes long.
        let mut fill = vec![
            (name::EXACT4, sum(|info| info.entries[0])),
            (name::EXACT6, sum(|info| info.entries[1])),
            (name::PREFIX4, sum(|info| info.entries[2])),
            (name::PREFIX6, sum(|info| info.entries[3])),
            (name::RULE_INFO, sum(|info| info.rules)),
            (name::POD_INFO, pods.len() as u64),
            (name::POLICY_INFO, policies.len() as u64),
        ];
        for map in [name::DEVICES, name::CGROUPS] {
            fill.push((map, self.pinned.used(map)?.unwrap_or(0)));
        }
        let mut maps = Vec::new();
        for (map, used) in fill {
            let most = u64::from(self.pinned.map_facts(map)?.max_entries);
            maps.push((map, used, most));
        }
        let pods = counters
            .into_iter()
            .map(|(slot, counters)| {
                let (namespace, pod) = pods.get(&slot).map_or_else(Default::default, |info| {
                    (text(&info.namespace), text(&info.name))
                });
                (namespace, pod, counters)
            })
            .collect();
        Ok(Sample {
            pods,
            maps,
            fence: Fence::facts(Part::Fence).ok(),
            gate: Fence::facts(Part::Gate).ok(),
        })
    }
}

impl Collector for KernelMetrics {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let sample = self.read();
        if let Err(error) = &sample {
            warn!(event = "scrape-failed", %error);
        }
        write(encoder, sample.as_ref().ok())
    }
}

/// What one scrape read.
#[derive(Debug, Default)]
struct Sample {
    /// Namespace and name, both empty for pods that are not known, and counters.
    pods: Vec<(String, String, PodCounters)>,
    /// Name, entries, room.
    maps: Vec<(&'static str, u64, u64)>,
    /// None where the kernel has no `nf_tables`.
    fence: Option<Facts>,
    gate: Option<Facts>,
}

fn write(mut encoder: DescriptorEncoder, sample: Option<&Sample>) -> Result<(), fmt::Error> {
    let up = ConstGauge::new(i64::from(sample.is_some()));
    up.encode(encoder.encode_descriptor(
        "kernel_readable",
        "1 if the pinned maps could be read for this scrape",
        None,
        MetricType::Gauge,
    )?)?;
    let Some(sample) = sample else { return Ok(()) };

    let mut packets = encoder.encode_descriptor(
        "pod_packets",
        "Packets that ended with this reason; pods without a name are those not known yet",
        None,
        MetricType::Counter,
    )?;
    for (namespace, pod, reason, count) in reasons(sample) {
        let labels = [("namespace", namespace), ("pod", pod), ("reason", reason)];
        ConstCounter::new(count.packets).encode(packets.encode_family(&labels)?)?;
    }
    let mut bytes = encoder.encode_descriptor(
        "pod_traffic",
        "Bytes of the packets that ended with this reason, as the hook sees them",
        Some(&Unit::Bytes),
        MetricType::Counter,
    )?;
    for (namespace, pod, reason, count) in reasons(sample) {
        let labels = [("namespace", namespace), ("pod", pod), ("reason", reason)];
        ConstCounter::new(count.bytes).encode(bytes.encode_family(&labels)?)?;
    }
    let mut audited = encoder.encode_descriptor(
        "pod_audited_packets",
        "Packets that passed only because their pod is audited",
        None,
        MetricType::Counter,
    )?;
    for (namespace, pod, counters) in &sample.pods {
        let labels = [("namespace", namespace.as_str()), ("pod", pod)];
        ConstCounter::new(counters.audited).encode(audited.encode_family(&labels)?)?;
    }
    let mut lost = encoder.encode_descriptor(
        "events_lost",
        "Events left out by the kernel: over the pod's rate, or the ring was full",
        None,
        MetricType::Counter,
    )?;
    for (namespace, pod, counters) in &sample.pods {
        let labels = [("namespace", namespace.as_str()), ("pod", pod)];
        ConstCounter::new(counters.events_lost).encode(lost.encode_family(&labels)?)?;
    }
    let mut used = encoder.encode_descriptor(
        "map_entries",
        "Entries of a map; full maps fail closed",
        None,
        MetricType::Gauge,
    )?;
    for (map, entries, _) in &sample.maps {
        let entries = i64::try_from(*entries).unwrap_or(i64::MAX);
        ConstGauge::new(entries).encode(used.encode_family(&[("map", *map)])?)?;
    }
    let mut most = encoder.encode_descriptor(
        "map_max_entries",
        "Entries that a map has room for",
        None,
        MetricType::Gauge,
    )?;
    for (map, _, entries) in &sample.maps {
        let entries = i64::try_from(*entries).unwrap_or(i64::MAX);
        ConstGauge::new(entries).encode(most.encode_family(&[("map", *map)])?)?;
    }
    if let Some(facts) = &sample.fence {
        write_fence(&mut encoder, facts)?;
    }
    if let Some(facts) = &sample.gate {
        write_gate(&mut encoder, facts)?;
    }
    Ok(())
}

fn write_gate(encoder: &mut DescriptorEncoder, facts: &Facts) -> Result<(), fmt::Error> {
    let help = "Packets from devices that no agent had looked at yet, by family of nf_tables";
    write_dropped(encoder, "gate_dropped_packets", help, facts)
}

fn write_fence(encoder: &mut DescriptorEncoder, facts: &Facts) -> Result<(), fmt::Error> {
    let devices = i64::try_from(facts.devices.len()).unwrap_or(i64::MAX);
    ConstGauge::new(devices).encode(encoder.encode_descriptor(
        "fence_devices",
        "Devices from which the fence lets nothing by that their hook has not passed",
        None,
        MetricType::Gauge,
    )?)?;
    let help =
        "Packets that the kernel handed on past the hook of their device, by family of nf_tables";
    write_dropped(encoder, "fence_dropped_packets", help, facts)
}

fn write_dropped(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    facts: &Facts,
) -> Result<(), fmt::Error> {
    let mut dropped = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (family, packets) in &facts.dropped {
        let labels = [("family", family.name())];
        ConstCounter::new(*packets).encode(dropped.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Each pod's counts that are not zero: 33 series for every pod would be mostly zeros.
fn reasons(
    sample: &Sample,
) -> impl Iterator<Item = (&str, &str, &'static str, &egress_common::maps::Count)> {
    sample.pods.iter().flat_map(|(namespace, pod, counters)| {
        Reason::ALL.iter().filter_map(move |reason| {
            let count = &counters.reasons[*reason as usize];
            (count.packets > 0).then_some((
                namespace.as_str(),
                pod.as_str(),
                reason.as_str(),
                count,
            ))
        })
    })
}

#[cfg(test)]
mod tests {
    use crate::fence::Family;
    use egress_common::maps::Count;
    use egress_common::reason::REASONS;
    use prometheus_client::registry::Registry;

    use super::*;

    #[derive(Debug)]
    struct Fixed;

    impl Collector for Fixed {
        fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
            let zero = Count {
                packets: 0,
                bytes: 0,
            };
            let mut counters = PodCounters {
                reasons: [zero; REASONS],
                audited: 1,
                events_lost: 4,
                tokens: 0,
                filled_ns: 0,
            };
            counters.reasons[Reason::NotAllowed as usize] = Count {
                packets: 3,
                bytes: 222,
            };
            let sample = Sample {
                pods: vec![("bookinfo".to_owned(), "reviews-v1".to_owned(), counters)],
                maps: vec![(name::EXACT4, 5, 262_144)],
                fence: Some(Facts {
                    devices: [7, 9].into(),
                    dropped: [(Family::Bridge, 6)].into(),
                    ..Facts::default()
                }),
                gate: Some(Facts {
                    dropped: [(Family::Inet, 2)].into(),
                    ..Facts::default()
                }),
            };
            write(encoder, Some(&sample))
        }
    }

    #[test]
    fn the_kernels_numbers_have_names() {
        let mut registry = Registry::with_prefix("sallyport");
        registry.register_collector(Box::new(Fixed));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        let pod = "namespace=\"bookinfo\",pod=\"reviews-v1\"";
        for line in [
            "sallyport_kernel_readable 1".to_owned(),
            "# TYPE sallyport_pod_packets counter".to_owned(),
            format!("sallyport_pod_packets_total{{{pod},reason=\"not-allowed\"}} 3"),
            "# UNIT sallyport_pod_traffic_bytes bytes".to_owned(),
            format!("sallyport_pod_traffic_bytes_total{{{pod},reason=\"not-allowed\"}} 222"),
            format!("sallyport_pod_audited_packets_total{{{pod}}} 1"),
            format!("sallyport_events_lost_total{{{pod}}} 4"),
            "sallyport_map_entries{map=\"sp_exact4\"} 5".to_owned(),
            "sallyport_map_max_entries{map=\"sp_exact4\"} 262144".to_owned(),
            "sallyport_fence_devices 2".to_owned(),
            "sallyport_fence_dropped_packets_total{family=\"bridge\"} 6".to_owned(),
            "sallyport_gate_dropped_packets_total{family=\"inet\"} 2".to_owned(),
        ] {
            assert!(text.lines().any(|it| it == line), "no {line} in\n{text}");
        }
        assert!(!text.contains("spoofed"), "zeros are left out:\n{text}");
    }
}
