//! `EgressLockdown`: selectors and addresses that mean what they say.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::api::lockdown::{AllowCidr, AllowPort, EgressLockdownSpec, Mode};
use crate::api::selector;
use crate::compile::PortSet;
use crate::index::Finding;

/// All findings refuse: an exception that is not what its author thinks it is must not be used.
pub(in crate::index) fn lockdown(spec: &EgressLockdownSpec) -> Vec<Finding> {
    let mut findings = Vec::new();
    let selectors = [
        ("namespaceSelector", &spec.namespace_selector),
        ("podSelector", &spec.pod_selector),
    ];
    for (name, given) in selectors {
        if let Some(Err((field, reason))) = given.as_ref().map(selector::check) {
            findings.push(Finding::refused(format!("spec.{name}.{field}"), reason));
        }
    }
    if spec.audit_until.is_some() && spec.mode != Mode::Audit {
        findings.push(Finding::refused(
            "spec.auditUntil",
            "goes with `mode: Audit` only; remove it or set that mode",
        ));
    }
    for (i, resolver) in spec.allow.dns.resolvers.iter().enumerate() {
        if let Some(reason) = bad_resolver(*resolver) {
            findings.push(Finding::refused(
                format!("spec.allow.dns.resolvers[{i}]"),
                reason,
            ));
        }
    }
    for (i, entry) in spec.allow.cidrs.iter().enumerate() {
        cidr(entry, &format!("spec.allow.cidrs[{i}]"), &mut findings);
    }
    if findings.is_empty() {
        too_many_ranges(&spec.allow.cidrs, &mut findings);
    }
    findings
}

/// What stands for a refused one of which no good version is known: the same pods are held, and
/// nothing is excepted. None if it can't be said which pods.
pub(in crate::index) fn without_exceptions(
    mut spec: EgressLockdownSpec,
) -> Option<EgressLockdownSpec> {
    spec.allow.cidrs.clear();
    spec.allow.dns.resolvers.clear();
    if spec.mode != Mode::Audit {
        spec.audit_until = None;
    }
    lockdown(&spec).is_empty().then_some(spec)
}

fn bad_resolver(ip: IpAddr) -> Option<String> {
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        return Some(format!(
            "{ip} is not the address of a resolver that a pod could ask"
        ));
    }
    match ip {
        IpAddr::V6(v6) => v6
            .to_ipv4_mapped()
            .map(|v4| format!("write {v4} in place of {ip}")),
        IpAddr::V4(_) => None,
    }
}

fn cidr(entry: &AllowCidr, at: &str, findings: &mut Vec<Finding>) {
    if let Some(reason) = bad_net(entry.cidr) {
        findings.push(Finding::refused(format!("{at}.cidr"), reason));
    }
    for (i, except) in entry.except.iter().enumerate() {
        let field = format!("{at}.except[{i}]");
        if let Some(reason) = bad_net(*except) {
            findings.push(Finding::refused(field, reason));
        } else if !entry.cidr.contains(except) {
            let reason = format!("{except} is not inside {}", entry.cidr);
            findings.push(Finding::refused(field, reason));
        }
    }
    for (i, port) in entry.ports.iter().enumerate() {
        ports(port, &format!("{at}.ports[{i}]"), findings);
    }
}

fn bad_net(net: IpNet) -> Option<String> {
    if net != net.trunc() {
        return Some(format!(
            "{net} has bits set behind its prefix; write {}",
            net.trunc()
        ));
    }
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => {
            let v4 = v6.addr().to_ipv4_mapped()?;
            Some(format!(
                "write {v4}/{} in place of {net}",
                v6.prefix_len() - 96
            ))
        }
        _ => None,
    }
}

fn ports(port: &AllowPort, at: &str, findings: &mut Vec<Finding>) {
    let (field, reason) = match (port.port, port.end_port) {
        (None, Some(_)) => (
            "endPort",
            "needs `port`, the first port of the range".to_owned(),
        ),
        (Some(0), _) => (
            "port",
            "0 is no port; leave it out for every port".to_owned(),
        ),
        (Some(first), Some(last)) if last < first => (
            "endPort",
            format!("{last} is below the first port, {first}"),
        ),
        _ => return,
    };
    findings.push(Finding::refused(format!("{at}.{field}"), reason));
}

/// The kernel looks at one prefix only, so all that contain an address are merged there, and that
/// must fit. Where an entry is excepted others may have more ranges left than beside it, so the
/// exceptions count as places of their own.
fn too_many_ranges(cidrs: &[AllowCidr], findings: &mut Vec<Finding>) {
    for (i, entry) in cidrs.iter().enumerate() {
        for place in entry.except.iter().chain([&entry.cidr]) {
            let mut set = PortSet::default();
            for (j, other) in cidrs.iter().enumerate() {
                let excepted = other.except.iter().any(|except| except.contains(place));
                if other.cidr.contains(place) && !excepted {
                    set.allow(&other.ports, u16::try_from(j).unwrap_or(u16::MAX));
                }
            }
            if set.emit(matches!(place, IpNet::V6(_))).is_none() {
                findings.push(Finding::refused(
                    format!("spec.allow.cidrs[{i}].ports"),
                    format!(
                        "more than {} ranges of ports for {place}, together with the other entries \
                         that contain it; join ranges",
                        egress_common::limits::MAX_RANGES
                    ),
                ));
                break;
            }
        }
    }
}
