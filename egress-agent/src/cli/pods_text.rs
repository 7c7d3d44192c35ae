//! Pods as they are printed.

use serde::Serialize;

use super::output::{Part, Table, View, values};
use super::pods::{Device, Pod};
use crate::telemetry::flow::FlowEvent;

/// `pods list`.
pub fn list_view(pods: &[Pod]) -> View {
    let mut table = Table::new(&[
        "NAMESPACE",
        "NAME",
        "MODE",
        "COVERAGE",
        "+ON-DENY",
        "IPV4",
        "+IPV6",
        "+POLICY",
        "PASSED",
        "+BYTES",
        "DROPPED",
        "AUDITED",
        "+EVENTS-LOST",
        "+UID",
    ]);
    for pod in pods {
        table.row(vec![
            pod.namespace.clone(),
            pod.name.clone(),
            pod.mode.clone(),
            pod.coverage.as_str().to_owned(),
            pod.on_deny.clone(),
            pod.v4.clone(),
            pod.v6.clone(),
            pod.policy.to_string(),
            pod.passed.packets.to_string(),
            pod.passed.bytes.to_string(),
            pod.dropped_packets.to_string(),
            pod.audited_packets.to_string(),
            pod.events_lost.to_string(),
            pod.uid.clone(),
        ]);
    }
    View {
        kind: "PodList",
        items: values(pods),
        page: vec![Part::Table(table)],
    }
}

/// `pods get`. `recent` are the pod's recent events, where an agent runs that has them.
pub fn get_view(pods: &[Pod], recent: Option<&[FlowEvent]>) -> View {
    let mut items = values(pods);
    let top = recent.map(top_denied);
    if let Some(top) = &top {
        for item in &mut items {
            item["topDenied"] = serde_json::Value::Array(values(top));
        }
    }
    let mut page = Vec::new();
    for pod in pods {
        page.push(Part::Table(facts(pod)));
        let mut counters = Table::new(&["REASON", "PASSES", "PACKETS", "BYTES"]);
        for count in &pod.counters {
            counters.row(vec![
                count.reason.to_owned(),
                if count.passes { "yes" } else { "no" }.to_owned(),
                count.packets.to_string(),
                count.bytes.to_string(),
            ]);
        }
        page.push(Part::Table(counters));
        if !pod.rules.is_empty() {
            let rules = pod.rules.iter().map(|rule| format!("  {rule}\n"));
            page.push(Part::Text(format!("Rules:\n{}", rules.collect::<String>())));
        }
    }
    page.push(match &top {
        None => Part::Text("Top denied: not known while no agent runs".to_owned()),
        Some(top) if top.is_empty() => Part::Text("Top denied: nothing lately".to_owned()),
        Some(top) => {
            let mut table = Table::new(&["TOP-DENIED", "PROTOCOL", "REASON", "EVENTS"]);
            for one in top {
                table.row(vec![
                    one.destination.clone(),
                    one.protocol.clone(),
                    one.reason.clone(),
                    one.events.to_string(),
                ]);
            }
            Part::Table(table)
        }
    });
    View {
        kind: "Pod",
        items,
        page,
    }
}

fn facts(pod: &Pod) -> Table {
    let mut table = Table::new(&["POD", ""]);
    let devices: Vec<String> = pod.devices.iter().map(Device::label).collect();
    let coverage = match &pod.problem {
        None => pod.coverage.as_str().to_owned(),
        Some(problem) => format!("{}: {problem}", pod.coverage.as_str()),
    };
    for (name, value) in [
        ("name", format!("{}/{}", pod.namespace, pod.name)),
        ("uid", pod.uid.clone()),
        ("mode", pod.mode.clone()),
        ("on-deny", pod.on_deny.clone()),
        ("coverage", coverage),
        ("lockdowns", pod.lockdowns.join(", ")),
        (
            "addresses",
            [pod.v4.as_str(), &pod.v6].join(" ").trim().to_owned(),
        ),
        ("devices", devices.join(", ")),
        (
            "cgroup",
            format!("{} {}", pod.cgroup.id, pod.cgroup.path)
                .trim()
                .to_owned(),
        ),
        ("slot", pod.slot.to_string()),
        ("policy", pod.policy.to_string()),
        ("dropped packets", pod.dropped_packets.to_string()),
        ("audited packets", pod.audited_packets.to_string()),
        ("events lost", pod.events_lost.to_string()),
    ] {
        table.row(vec![name.to_owned(), value]);
    }
    table
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Denied {
    destination: String,
    protocol: String,
    reason: String,
    /// Among the recent events.
    events: usize,
}

/// Most frequent destinations first.
fn top_denied(recent: &[FlowEvent]) -> Vec<Denied> {
    let mut top: Vec<Denied> = Vec::new();
    for event in recent {
        let destination = event.destination.label();
        let same = top.iter_mut().find(|one| {
            one.destination == destination
                && one.protocol == event.protocol
                && one.reason == event.reason
        });
        match same {
            Some(one) => one.events += 1,
            None => top.push(Denied {
                destination,
                protocol: event.protocol.clone(),
                reason: event.reason.clone(),
                events: 1,
            }),
        }
    }
    top.sort_by(|a, b| {
        b.events
            .cmp(&a.events)
            .then_with(|| a.destination.cmp(&b.destination))
    });
    top.truncate(10);
    top
}
