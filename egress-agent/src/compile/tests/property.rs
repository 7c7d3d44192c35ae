//! The tables allow what the model allows, no more and no less.

use std::collections::BTreeSet;

use egress_common::reason::Reason;
use proptest::prelude::*;

use super::make::{at, index, ip, look_up, net};
use super::model::Rights;
#[cfg(test)]
use super::random::scenario;
use super::scenario::{ADDRESSES, APPS, NAMESPACES, PROTOCOLS, Probe, Scenario};
use crate::api::lockdown::OnDeny;
use crate::compile::{self, Compiled, Hold, Settings};
use crate::index::{Effect, Index, Key, Object};

/// Fewer on a quick run, more on request.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2_000)
}

fn compile(index: &Index) -> Compiled {
    let settings = Settings {
        node_name: "n1".into(),
        pod_cidrs: vec![net("10.244.0.0/16"), net("fd00:244::/64")],
        local_addresses: vec![ip("10.244.0.1"), ip("192.168.0.1")],
        cluster_name: Some("cluster1".into()),
        ..Settings::default()
    };
    let admission = |account: &Key| account.name == "web";
    compile::compile(index, &settings, &admission, at("2026-01-01T00:00:00Z"))
}

fn check(scenario: &Scenario, compiled: &Compiled, probe: &Probe) -> Result<(), TestCaseError> {
    let pod = &scenario.pods[probe.pod];
    let Some(desired) = compiled.desired.pods.get(&format!("uid-p{}", probe.pod)) else {
        prop_assert!(pod.finished, "only a finished pod is left out");
        return Ok(());
    };
    prop_assert_eq!(desired.gateway, scenario.is_gateway(pod));
    if desired.gateway {
        prop_assert_eq!((desired.hold, desired.policy), (Hold::Off, None));
        return Ok(());
    }
    let rights: Rights<'_> = scenario.rights(pod);
    prop_assert_eq!(desired.hold, rights.hold);
    prop_assert_eq!(desired.on_deny == OnDeny::Reject, rights.reject);
    prop_assert_eq!(desired.policy.is_some(), rights.hold != Hold::Off);
    let Some(digest) = desired.policy else {
        return Ok(());
    };
    let policy = &compiled.desired.policies[&digest];
    let to = ip(ADDRESSES[probe.address]);
    let proto = match PROTOCOLS.get(probe.protocol) {
        Some((proto, _)) => *proto,
        None if to.is_ipv6() => 58,
        None => 1,
    };
    let (reason, rule) = look_up(policy, to, proto, probe.port);
    let expected = scenario.allowed(&rights, to, proto, probe.port);
    prop_assert_eq!(policy.allows(to, proto, probe.port), reason.passes());
    let who = format!("{}/{}", NAMESPACES[pod.namespace], APPS[pod.app]);
    let named = rule.map(|rule| &policy.rules[usize::from(rule)]);
    // What the kernel has no room for stays closed, and is told.
    let no_room = named.is_some_and(|rule| rule.contains("there is no room"));
    let left_out = reason == Reason::Excepted
        && no_room
        && compiled.problems.iter().any(|problem| {
            desired.lockdowns.contains(&problem.object.name) && problem.reason.contains("left out")
        });
    prop_assert!(
        reason.passes() == expected || (expected && left_out),
        "{} to {} {}/{}: {:?} by {:?}, expected {}",
        who,
        to,
        probe.port,
        proto,
        reason,
        named,
        expected
    );
    prop_assert!(
        !reason.passes() || rule.is_some(),
        "what passes names its rule"
    );
    if !expected && scenario.guarded(to) {
        prop_assert_eq!(reason, Reason::GatewayPort);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tables_agree_with_the_model((scenario, probes) in scenario()) {
        agree(&scenario, &probes)?;
    }
}

pub(crate) fn agree(scenario: &Scenario, probes: &[Probe]) -> Result<(), TestCaseError> {
    let objects = scenario.objects();
    let index = index(objects.clone());
    for problem in index.problems() {
        prop_assert_eq!(
            problem.effect,
            Effect::Ignored,
            "the scenario is valid: {}",
            problem
        );
    }
    let compiled = compile(&index);
    for probe in probes {
        check(scenario, &compiled, probe)?;
    }
    let pods = compiled.desired.pods.values();
    let named: BTreeSet<_> = pods.filter_map(|pod| pod.policy).collect();
    prop_assert!(
        named.iter().eq(compiled.desired.policies.keys()),
        "no policy too many"
    );
    arrives_in_any_order(objects, &index, &compiled)
}

/// The index is the same however objects come: the other way round, all at once, with others that
/// come and go.
fn arrives_in_any_order(
    objects: Vec<Object>,
    index: &Index,
    compiled: &Compiled,
) -> Result<(), TestCaseError> {
    let mut other = Index::default();
    other.apply(super::make::mk_pod(
        "red",
        "passing",
        "gw",
        &["10.244.0.2"],
        serde_json::json!({}),
    ));
    for object in objects.iter().rev() {
        other.apply(object.clone());
    }
    prop_assert!(other.reset(objects.clone()), "the passing pod is gone");
    prop_assert_eq!(&compile(&other), compiled);
    prop_assert!(!other.reset(objects), "nothing is new");
    prop_assert_eq!(&compile(index), compiled);
    Ok(())
}
