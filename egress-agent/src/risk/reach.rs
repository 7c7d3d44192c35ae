//! How others can help a held pod around: pods that pass on what it sends, and such as claim to be a
//! gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egress_common::Reason;

use super::{Kind, Risk, Standing};
use crate::api::lockdown::ClusterPart;
use crate::compile::{Compiled, DesiredPod, Hold, Policy};
use crate::index::{Index, Key, selects};

fn addresses(pod: &DesiredPod) -> impl Iterator<Item = IpAddr> {
    let (v4, v6) = (pod.v4.map(IpAddr::from), pod.v6.map(IpAddr::from));
    v4.into_iter().chain(v6)
}

/// Whether any port of an address is open to whom the policy holds, by whichever rule.
fn is_open(policy: &Policy, to: IpAddr) -> bool {
    let passes = |raw: u8| Reason::from_u8(raw).is_some_and(Reason::passes);
    let exact = match to {
        IpAddr::V4(to) => policy
            .exact4
            .iter()
            .any(|((address, ..), rule)| *address == to && passes(rule.reason)),
        IpAddr::V6(to) => policy
            .exact6
            .iter()
            .any(|((address, ..), rule)| *address == to && passes(rule.reason)),
    };
    let longest = match to {
        IpAddr::V4(to) => policy
            .prefix4
            .iter()
            .filter(|(net, _)| net.contains(&to))
            .max_by_key(|(net, _)| net.prefix_len())
            .map(|(_, rule)| rule),
        IpAddr::V6(to) => policy
            .prefix6
            .iter()
            .filter(|(net, _)| net.contains(&to))
            .max_by_key(|(net, _)| net.prefix_len())
            .map(|(_, rule)| rule),
    };
    let ranges = longest.map_or(&[][..], |rule| &rule.ranges[..usize::from(rule.count)]);
    exact || ranges.iter().any(|range| passes(range.reason))
}

/// Lockdowns that enforce, whose pods reach this one: at an address of its own, or behind a Service.
fn reached_by<'a>(index: &Index, compiled: &'a Compiled, pod: &DesiredPod) -> BTreeSet<&'a str> {
    let served = || {
        let services = index.services().keys();
        let mut endpoints = services
            .flat_map(|service| index.slices_of(service))
            .flat_map(|slice| &slice.endpoints)
            .flat_map(|endpoint| endpoint.addresses.iter().flatten());
        endpoints.any(|address| addresses(pod).any(|own| own == *address))
    };
    let mut served_once = None;
    let mut names = BTreeSet::new();
    for held in compiled.desired.pods.values() {
        let policy = held
            .policy
            .and_then(|digest| compiled.desired.policies.get(&digest));
        let (Hold::Enforce, Some(policy)) = (held.hold, policy) else {
            continue;
        };
        if held
            .lockdowns
            .iter()
            .all(|name| names.contains(name.as_str()))
        {
            continue;
        }
        let mut specs = held
            .lockdowns
            .iter()
            .filter_map(|name| index.lockdowns().get(name));
        let by_service = specs.any(|spec| spec.allow.cluster.contains(&ClusterPart::Services))
            && *served_once.get_or_insert_with(served);
        if by_service || addresses(pod).any(|own| is_open(policy, own)) {
            names.extend(held.lockdowns.iter().map(String::as_str));
        }
    }
    names
}

/// Pods that are held by nobody and can be reached from held ones: what listens there can pass
/// packets on, and where it sends them nobody looks. One for each namespace.
pub(super) fn ways_out(index: &Index, compiled: &Compiled) -> Vec<Risk> {
    let pods = compiled.desired.pods.values();
    let mut open: BTreeMap<&str, (Vec<&str>, BTreeSet<&str>)> = BTreeMap::new();
    for pod in pods.filter(|pod| pod.hold != Hold::Enforce && !pod.gateway) {
        let from = reached_by(index, compiled, pod);
        if !from.is_empty() {
            let (names, all) = open.entry(&pod.namespace).or_default();
            names.push(&pod.name);
            all.extend(from);
        }
    }
    open.into_iter()
        .map(|(namespace, (mut names, from))| {
            names.sort_unstable();
            let from: Vec<&str> = from.into_iter().collect();
            Risk {
                standing: Standing::Open,
                kind: Kind::WayOut,
                object: format!("Namespace/{namespace}"),
                at: String::new(),
                text: format!(
                    "{} of its pods are not held (first {}), and pods that {} holds can reach them: \
                     one that passes packets on is a way out",
                    names.len(),
                    names[0],
                    from.join(", ")
                ),
                advice: "hold them too, or close the cluster to held pods (`allow.cluster`, \
                         NetworkPolicy)"
                    .to_owned(),
            }
        })
        .collect()
}

/// Gateways' pods with another service account than most of them, and pods that have a gateway's
/// labels elsewhere.
pub(super) fn impostors(index: &Index, compiled: &Compiled) -> Vec<Risk> {
    let mut risks = Vec::new();
    let gateways: BTreeSet<Key> = compiled
        .desired
        .pods
        .values()
        .filter(|pod| pod.gateway)
        .map(|pod| Key::new(&pod.namespace, &pod.name))
        .collect();
    for (name, declared) in index.virtual_gateways() {
        for workload in &declared.spec.workloads {
            let selector = &workload.selector;
            let namespace = selector.namespace.as_ref().unwrap_or(&name.namespace);
            let alike = index
                .pods()
                .iter()
                .filter(|(_, pod)| !pod.finished && selects(&selector.labels, &pod.labels));
            let (own, others): (Vec<_>, Vec<_>) =
                alike.partition(|(key, _)| key.namespace == *namespace);
            let mut accounts: BTreeMap<&str, usize> = BTreeMap::new();
            for (_, pod) in &own {
                *accounts.entry(&pod.service_account).or_default() += 1;
            }
            let usual = accounts.iter().max_by_key(|(_, count)| **count);
            let usual = usual.map_or("", |(account, _)| *account);
            for (key, pod) in own.iter().filter(|(_, pod)| pod.service_account != usual) {
                risks.push(Risk {
                    standing: Standing::Open,
                    kind: Kind::Impostor,
                    object: format!("Pod/{key}"),
                    at: "metadata.labels".to_owned(),
                    text: format!(
                        "VirtualGateway/{name} takes it for a gateway, and it has the service account \
                         {} where the others have {usual}",
                        pod.service_account
                    ),
                    advice: format!(
                        "let nobody but the gateway's operators make pods in namespace {namespace}"
                    ),
                });
            }
            for (key, _) in others.iter().filter(|(key, _)| !gateways.contains(key)) {
                risks.push(Risk {
                    standing: Standing::Neutralized,
                    kind: Kind::Impostor,
                    object: format!("Pod/{key}"),
                    at: "metadata.labels".to_owned(),
                    text: format!(
                        "it has the labels of VirtualGateway/{name}, in another namespace: it is not \
                         taken for a gateway"
                    ),
                    advice: "nothing has to be done".to_owned(),
                });
            }
        }
    }
    risks
}

/// `VirtualGateway`s that take pods of another namespace for gateways, and so let them go.
pub(super) fn foreign_gateways(index: &Index) -> Vec<Risk> {
    let mut risks = Vec::new();
    for (name, declared) in index.virtual_gateways() {
        for (at, workload) in declared.spec.workloads.iter().enumerate() {
            let selector = &workload.selector;
            let Some(namespace) = &selector.namespace else {
                continue;
            };
            if *namespace == name.namespace {
                continue;
            }
            let pods = index.pods().iter().filter(|(key, pod)| {
                key.namespace == *namespace && selects(&selector.labels, &pod.labels)
            });
            risks.push(Risk {
                standing: Standing::Open,
                kind: Kind::ForeignGateway,
                object: format!("VirtualGateway/{name}"),
                at: format!("spec.workloads[{at}].selector.namespace"),
                text: format!(
                    "who may write it in namespace {} takes pods of namespace {namespace} from \
                     their lockdowns, now {}",
                    name.namespace,
                    pods.count()
                ),
                advice: format!(
                    "move it to namespace {namespace}, or let nobody but operators write \
                     VirtualGateways in {}",
                    name.namespace
                ),
            });
        }
    }
    risks
}
