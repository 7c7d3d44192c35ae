//! What is printed, against files under `tests/golden`. `UPDATE_GOLDEN=1 cargo test` writes them
//! anew; look at the difference before you commit it.

mod fixture;

use std::path::PathBuf;

use egress_common::Reason;
use egress_common::limits::MAX_RANGES;
use egress_common::maps::{
    ExactKey4, ExactKey6, ExactRule, FLAG_NODE_ACCESS, FLOW_PAD, Flow, FlowKey, NO_RULE, Origin,
    OriginKey, PortRange, PrefixKey4, PrefixRule,
};

use super::agent::AgentPod;
use super::cells::Names;
use super::event_text;
use super::maps::MapRow;
use super::output::{Format, View, render};
use super::pods::{find, pods};
use super::pods_text::{get_view, list_view};
use super::status::status;
use super::{dump, maps, uninstall};
use crate::policy_server::xds::Rejection;
use fixture::{events, ill, padded, well};

const NOW_NS: u64 = 100_000_000_000;

fn golden(name: &str, view: &View) {
    for (format, ending) in [
        (Format::Table, "txt"),
        (Format::Wide, "wide.txt"),
        (Format::Json, "json"),
    ] {
        let text = render(view, format, false).expect("text");
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(format!("{name}.{ending}"));
        if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
            std::fs::write(&path, &text).expect("write the golden file");
        }
        let expected = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}; UPDATE_GOLDEN=1?", path.display()));
        assert_eq!(text, expected, "{}", path.display());
    }
}

#[test]
fn status_of_a_well_node() {
    let status = status(&well());
    assert!(status.is_well());
    golden("status", &status.view());
}

#[test]
fn what_a_gateway_refuses_is_shown() {
    let mut snapshot = well();
    let rejection = Rejection {
        revision: "17".to_owned(),
        message: "no such filter".to_owned(),
    };
    let gateway = &mut snapshot.agent.gateways[0];
    gateway.rejected.insert("Listener".to_owned(), rejection);
    let status = status(&snapshot);
    assert!(status.is_well(), "pods are held all the same");
    let text = render(&status.view(), Format::Table, false).expect("text");
    let line = "REJECTED: egress-0 of gateway gateways/egress keeps its last configuration, it \
                refuses a Listener of revision 17: no such filter";
    assert!(text.lines().any(|it| it == line), "{text}");
}

#[test]
fn status_of_an_ill_node() {
    let status = status(&ill());
    assert!(!status.is_well());
    assert_eq!(status.counts.uncovered, 2);
    golden("status-ill", &status.view());
}

#[test]
fn a_pod_that_only_the_agent_knows_is_uncovered() {
    let mut snapshot = well();
    snapshot.agent.pods.push(AgentPod {
        uid: "x".to_owned(),
        namespace: "bookinfo".to_owned(),
        name: "one-too-many".to_owned(),
        coverage: "uncovered".to_owned(),
        reason: Some("no slot is free".to_owned()),
        ..AgentPod::default()
    });
    let status = status(&snapshot);
    assert!(!status.is_well());
    assert!(status.pods.iter().any(|pod| pod.name == "one-too-many"));
}

#[test]
fn without_a_flag_or_a_device_a_running_pod_is_uncovered() {
    let mut snapshot = well();
    snapshot.cgroups.get_mut(&1001).expect("there").flags = 0;
    assert_eq!(status(&snapshot).counts.uncovered, 1);
    let mut snapshot = well();
    snapshot.devices.remove(&11);
    assert_eq!(status(&snapshot).counts.uncovered, 1);
    let mut snapshot = well();
    snapshot.cgroups.remove(&1004);
    assert_eq!(
        status(&snapshot).counts.uncovered,
        1,
        "host network without its entry"
    );
    // Where cgroups can't be looked at, the pod that seemed to be starting may be running.
    let mut snapshot = well();
    snapshot.places = None;
    assert_eq!(status(&snapshot).counts.uncovered, 1);
}

#[test]
fn who_can_get_at_the_node_is_not_held_though_its_hooks_stand() {
    for cgroup in [1001, 1004] {
        let mut snapshot = well();
        snapshot.cgroups.get_mut(&cgroup).expect("there").flags |= FLAG_NODE_ACCESS;
        let status = status(&snapshot);
        assert!(!status.is_well());
        assert_eq!((status.counts.node_access, status.counts.uncovered), (1, 0));
        let text = render(&status.view(), Format::Table, false).expect("text");
        assert!(text.contains("; 1 can get around their hooks; "), "{text}");
        assert!(text.contains("\nNODE-ACCESS: "), "{text}");
    }
}

#[test]
fn pods_listed_and_told() {
    let pods = pods(&well());
    golden("pods-list", &list_view(&pods));
    let one = find(pods.clone(), "bookinfo/reviews-v1").expect("there");
    golden("pods-get", &get_view(&one, Some(&events())));
    assert!(find(pods.clone(), "reviews-v1").is_err());
    assert!(find(pods, "bookinfo/nobody").is_err());
}

#[test]
fn maps_listed() {
    let row = |name: &str, kind: &str, used, max_entries, memory| MapRow {
        name: name.to_owned(),
        kind: kind.to_owned(),
        key_size: 12,
        value_size: 4,
        used,
        max_entries,
        memory,
    };
    golden(
        "maps-list",
        &maps::list_view(&[
            row("sp_events", "ring_buf", None, 1 << 20, Some(1_052_672)),
            row("sp_exact4", "hash", Some(131_072), 262_144, Some(9_000_000)),
            row("sp_odd", "hash", Some(1), 10, None),
        ]),
    );
}

#[test]
fn devices_dumped() {
    let snapshot = well();
    let names = Names::at(&snapshot, false, NOW_NS);
    let numbers = Names::at(&snapshot, true, NOW_NS);
    let devices = |names| {
        let entries = snapshot.devices.iter().map(|(key, value)| (*key, *value));
        dump::devices(names, entries.collect())
    };
    golden("maps-dump-devices", &devices(&names).view());
    golden("maps-dump-devices-numeric", &devices(&numbers).view());
}

#[test]
fn rules_dumped() {
    let snapshot = well();
    let names = Names::at(&snapshot, false, NOW_NS);
    let rule = |rule, reason: Reason| ExactRule {
        rule,
        reason: reason as u8,
        pad: 0,
    };
    let key = |proto| ExactKey4 {
        policy: 7,
        addr_be: [10, 244, 1, 9],
        port_be: 8443_u16.to_be_bytes(),
        proto,
        pad: 0,
    };
    let entries = vec![
        (key(6), rule(0, Reason::Gateway)),
        (key(17), rule(99, Reason::Dns)),
    ];
    golden("maps-dump-exact4", &dump::exact4(&names, entries).view());
    let mut addr_be = [0; 16];
    addr_be[0] = 0xfd;
    let key = ExactKey6 {
        policy: 7,
        addr_be,
        port_be: 53_u16.to_be_bytes(),
        proto: 17,
        pad: 0,
    };
    let entries = vec![(key, rule(NO_RULE, Reason::Dns))];
    golden("maps-dump-exact6", &dump::exact6(&names, entries).view());
}

#[test]
fn prefixes_dumped() {
    let snapshot = well();
    let names = Names::at(&snapshot, false, NOW_NS);
    let range = |first, last, rule, proto, reason: Reason| PortRange {
        first,
        last,
        rule,
        proto,
        reason: reason as u8,
    };
    let mut ranges = [range(0, u16::MAX, NO_RULE, 0, Reason::Cluster); MAX_RANGES];
    ranges[1] = range(80, 90, 1, 6, Reason::Exception);
    ranges[2] = range(443, 443, 1, 132, Reason::Exception);
    let prefix = |count, deny: Reason| PrefixRule {
        count,
        deny: deny as u8,
        deny_rule: if count == 0 { 1 } else { NO_RULE },
        ranges,
    };
    let key = |addr_be| PrefixKey4 {
        policy_be: 7_u32.to_be_bytes(),
        addr_be,
    };
    let entries = vec![
        (32 + 26, key([192, 0, 2, 192]), prefix(0, Reason::Excepted)),
        (32 + 16, key([10, 244, 0, 0]), prefix(3, Reason::NotAllowed)),
        (32, key([0, 0, 0, 0]), prefix(1, Reason::NotAllowed)),
    ];
    golden("maps-dump-prefix4", &dump::prefix4(&names, entries).view());
}

#[test]
fn flows_and_origins_dumped() {
    let snapshot = well();
    let names = Names::at(&snapshot, false, NOW_NS);
    let peer = std::net::Ipv4Addr::from([203, 0, 113, 10]).to_ipv6_mapped();
    let key = FlowKey {
        slot: 1,
        peer_be: peer.octets(),
        peer_port_be: 55_000_u16.to_be_bytes(),
        pod_port_be: 9080_u16.to_be_bytes(),
        proto: 6,
        version: 4,
        pad: [0; 2],
    };
    let flow = Flow {
        seen_ns: NOW_NS - 3_000_000_000,
        state: 0,
        pad: [0; FLOW_PAD],
    };
    let entries = vec![(key, flow), (FlowKey { slot: 77, ..key }, flow)];
    golden("maps-dump-flows", &dump::flows(&names, entries).view());

    let key = OriginKey {
        pod_cgroup: 1001,
        dst_be: peer.octets(),
        port_be: 443_u16.to_be_bytes(),
        proto: 6,
        pad: [0; 5],
    };
    let origin = Origin {
        seen_ns: NOW_NS - 1_000_000_000,
        cgroup: 1_000_001,
        pid: 4242,
        uid: 1337,
        comm: padded("curl"),
    };
    golden(
        "maps-dump-origins",
        &dump::origins(&names, vec![(key, origin)]).view(),
    );
}

#[test]
fn events_listed() {
    golden("events-list", &event_text::list_view(&events(), false));
    golden(
        "events-list-numeric",
        &event_text::list_view(&events(), true),
    );
}

#[test]
fn events_followed_keep_their_columns() {
    let events = events();
    let first = event_text::row(&events[0], false, true);
    let lines: Vec<&str> = first.lines().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0].find("REASON"), lines[1].find("not-allowed"));
    let next = event_text::row(&events[2], false, false);
    assert_eq!(next.lines().count(), 1);
    assert_eq!(next.find("not-allowed"), lines[0].find("REASON"));
}

#[test]
fn events_are_filtered() {
    let filter = |change: fn(&mut event_text::Filter)| {
        let mut filter = event_text::Filter::default();
        change(&mut filter);
        let admitted = events().iter().filter(|event| filter.admits(event)).count();
        (filter.check().is_ok(), admitted)
    };
    assert_eq!(filter(|_| {}), (true, 4));
    let pod = |filter: &mut event_text::Filter| filter.pod = Some("bookinfo/reviews-v1".to_owned());
    assert_eq!(filter(pod), (true, 3));
    assert_eq!(
        filter(|it| it.pod = Some("reviews-v1".to_owned())),
        (false, 0)
    );
    assert_eq!(
        filter(|it| it.namespace = Some("bookinfo".to_owned())),
        (true, 3)
    );
    assert_eq!(
        filter(|it| it.reason = Some("excepted".to_owned())),
        (true, 1)
    );
    assert_eq!(
        filter(|it| it.reason = Some("nonsense".to_owned())),
        (false, 0)
    );
    assert_eq!(
        filter(|it| it.verdict = Some("audit".to_owned())),
        (true, 0)
    );
    assert_eq!(
        filter(|it| it.verdict = Some("pass".to_owned())),
        (false, 0)
    );
    let since = event_text::parse_since("2026-11-23T06:00:00Z").expect("a time");
    assert_eq!(since, "2026-11-23T06:00:00.000000Z");
    assert!(events()[0].time >= since);
    assert!(
        event_text::parse_since("5m").expect("ago") > event_text::parse_since("2h").expect("ago")
    );
    assert!(event_text::parse_since("soon").is_err());
}

#[test]
fn removed_pins() {
    let removed = ["links/cg-egress".to_owned(), "maps/sp_config".to_owned()];
    golden("uninstall", &uninstall::view(&removed));
}
