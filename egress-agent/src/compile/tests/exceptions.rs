//! `allow.cidrs`: what adds up, what stays closed, what doesn't fit.

use serde_json::{Value, json};

use super::make::{TCP, UDP, ask, compiled, index, mk_lockdown, mk_pod, pod, reason};
use crate::compile::Compiled;
use egress_common::limits::MAX_RANGES;
use egress_common::reason::Reason;

fn cidrs(cidrs: Value) -> Compiled {
    let allow = json!({"cluster": [], "dns": {"cluster": false}, "cidrs": cidrs});
    compiled(&index([
        mk_pod("shop", "web", "web", &["10.244.0.2"], json!({})),
        mk_lockdown("l", json!({"mode": "Enforce", "allow": allow})),
    ]))
}

#[test]
fn overlapping_exceptions_add_up() {
    let compiled = cidrs(json!([
        {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"], "ports": [{"port": 80}]},
        {"cidr": "10.1.2.0/24", "ports": [{"port": 443}, {"protocol": "UDP"}]},
        {"cidr": "10.1.2.3/32", "ports": [{"port": 1000, "endPort": 2000}]},
    ]));
    let ask = |to: &str, proto: u8, port: u16| ask(&compiled, "web", to, proto, port);
    assert_eq!(
        ask("10.2.0.1", TCP, 80).1,
        "EgressLockdown/l allow.cidrs[0]"
    );
    assert_eq!(ask("10.1.0.1", TCP, 80).0, Reason::Excepted);
    assert_eq!(
        ask("10.1.0.1", TCP, 80).1,
        "EgressLockdown/l allow.cidrs[0].except[0]"
    );
    assert_eq!(ask("10.1.2.1", TCP, 80).0, Reason::Excepted);
    assert_eq!(ask("10.1.2.1", TCP, 443).0, Reason::Exception);
    assert_eq!(ask("10.1.2.1", UDP, 1).0, Reason::Exception);
    assert_eq!(
        ask("10.1.2.1", 1, 0).0,
        Reason::Excepted,
        "ports are given, so no ping"
    );
    for (proto, port) in [(TCP, 443), (UDP, 5), (TCP, 1000), (TCP, 1500), (TCP, 2000)] {
        assert_eq!(
            ask("10.1.2.3", proto, port).0,
            Reason::Exception,
            "{proto} {port}"
        );
    }
    assert!(!ask("10.1.2.3", TCP, 2001).0.passes());
}

#[test]
fn what_is_special_takes_a_cidr_of_its_own() {
    let compiled = cidrs(json!([{"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}]));
    assert_eq!(
        reason(&compiled, "web", "203.0.113.1", TCP, 1),
        Reason::Exception
    );
    assert_eq!(
        reason(&compiled, "web", "2001:db8::1", TCP, 1),
        Reason::Exception
    );
    for to in [
        "169.254.169.254",
        "169.254.20.10",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.251",
        "239.255.255.250",
        "255.255.255.255",
        "100.100.100.200",
        "fe80::1",
        "ff02::1",
        "::1",
        "::",
        "::ffff:8.8.8.8",
        "::8.8.8.8",
        "64:ff9b::808:808",
        "64:ff9b:1::808:808",
        "2002:808:808::1",
        "2001::1",
        "fd00:ec2::254",
    ] {
        assert_eq!(
            reason(&compiled, "web", to, TCP, 80),
            Reason::Excepted,
            "{to}"
        );
    }
    let meant = cidrs(json!([{"cidr": "169.254.169.254/32"}, {"cidr": "64:ff9b::/96"}]));
    assert_eq!(
        reason(&meant, "web", "169.254.169.254", TCP, 80),
        Reason::Exception
    );
    assert_eq!(
        reason(&meant, "web", "64:ff9b::808:808", TCP, 80),
        Reason::Exception
    );
    assert_eq!(
        reason(&meant, "web", "169.254.169.253", TCP, 80),
        Reason::NotAllowed
    );
}

#[test]
fn single_ports_of_one_address_are_in_the_fast_table_too() {
    let compiled = cidrs(json!([{"cidr": "203.0.113.1/32",
        "ports": [{"port": 443}, {"protocol": "UDP", "port": 443}, {"port": 8000, "endPort": 9000}]}]));
    let policy = &compiled.desired.policies[&pod(&compiled, "web").policy.expect("held")];
    let keys: Vec<_> = policy
        .exact4
        .keys()
        .map(|(_, port, proto)| (*port, *proto))
        .collect();
    assert_eq!(keys, [(443, TCP), (443, UDP)]);
    let prefix = policy
        .prefix4
        .values()
        .next()
        .expect("the prefix is there as well");
    assert_eq!(usize::from(prefix.count), 3);
}

#[test]
fn more_ranges_than_fit_are_left_out_and_reported() {
    let ports = |from: u16, n: usize| -> Value {
        (0..n)
            .map(|i| json!({"port": from + 2 * u16::try_from(i).expect("small")}))
            .collect()
    };
    let lockdown = |name: &str, from: u16, n: usize| {
        mk_lockdown(
            name,
            json!({"mode": "Enforce", "allow": {"cluster": [],
            "cidrs": [{"cidr": "203.0.113.0/24", "ports": ports(from, n)}]}}),
        )
    };
    let web = || mk_pod("shop", "web", "web", &["10.244.0.2"], json!({}));
    let fits = compiled(&index([web(), lockdown("a", 1000, MAX_RANGES)]));
    assert!(fits.problems.is_empty());
    assert_eq!(
        reason(&fits, "web", "203.0.113.1", TCP, 1030),
        Reason::Exception
    );
    let both = compiled(&index([
        web(),
        lockdown("a", 1000, 10),
        lockdown("b", 2000, 10),
    ]));
    assert_eq!(both.problems.len(), 1);
    assert_eq!(both.problems[0].object.name, "b");
    assert_eq!(both.problems[0].field, "spec.allow.cidrs[0]");
    assert_eq!(
        reason(&both, "web", "203.0.113.1", TCP, 1000),
        Reason::Exception
    );
    assert_eq!(
        reason(&both, "web", "203.0.113.1", TCP, 2000),
        Reason::NotAllowed
    );
    // Neighbours join, so that these fit after all.
    let row: Value = (0..20).map(|i| json!({"port": 3000 + i})).collect();
    let spec =
        json!({"mode": "Enforce", "allow": {"cidrs": [{"cidr": "203.0.113.0/24", "ports": row}]}});
    let joined = compiled(&index([web(), mk_lockdown("a", spec)]));
    assert!(joined.problems.is_empty());
    assert_eq!(
        reason(&joined, "web", "203.0.113.1", TCP, 3019),
        Reason::Exception
    );
    assert!(!reason(&joined, "web", "203.0.113.1", TCP, 3020).passes());
}
