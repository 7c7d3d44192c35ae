//! Access policies to rules: which destinations a policy closes, and what its entries admit.
//!
//! A destination or entry that can't be read as written closes what it names and admits nobody.

use std::sync::Arc;

use crate::api::access_policy::Destination;
use crate::api::{AccessPolicySpec, ObjectSelector, PortRef, Unsupported};

use super::entries::{self, Accounts};
use super::policy::{Entry, ObjectName, Problem, Report, Rules};
use super::services::{Carries, Service};
use super::{Declared, GatewayObjects};

/// An access policy, resolved against the service accounts of this moment.
#[derive(Debug)]
pub(super) struct Policy {
    id: ObjectName,
    targets: Vec<Target>,
    entries: Vec<Arc<Entry>>,
}

#[derive(Debug)]
struct Target {
    selector: ObjectSelector,
    port: Option<PortRef>,
    /// False for a destination that is refused: it only closes.
    admits: bool,
}

/// Reads every policy, sorted by namespace and name.
pub(super) fn read(
    objects: &GatewayObjects<'_>,
    services: &[Service],
    problems: &mut Vec<Problem>,
) -> Vec<Policy> {
    let accounts = Accounts::new(objects);
    let mut sorted: Vec<&Declared<'_, AccessPolicySpec>> = objects.access_policies.iter().collect();
    sorted.sort_by(|a, b| a.id.cmp(&b.id));
    sorted
        .into_iter()
        .map(|object| read_policy(object, objects, &accounts, services, problems))
        .collect()
}

/// Gives each port of a service its rules.
pub(super) fn fill_in(policies: &[Policy], service: &mut Service) {
    let selecting: Vec<&Policy> = policies
        .iter()
        .filter(|policy| policy.targets.iter().any(|target| target.selects(service)))
        .collect();
    let rules: Vec<Rules> = service
        .ports
        .iter()
        .map(|port| rules_for(&selecting, service, port.number, port.name.as_deref()))
        .collect();
    for (port, rules) in service.ports.iter_mut().zip(rules) {
        port.rules = rules;
    }
}

fn rules_for(policies: &[&Policy], service: &Service, number: u16, name: Option<&str>) -> Rules {
    let (mut closed, mut entries) = (None, Vec::new());
    for policy in policies {
        let targets = policy
            .targets
            .iter()
            .filter(|target| target.selects(service));
        let (mut admits, mut intact) = (false, true);
        for target in targets {
            admits |= target.admits && target.selects_port(number, name);
            intact &= target.admits;
        }
        if admits {
            entries.extend(policy.entries.iter().cloned());
        }
        // A policy whose every entry is on trial closes nothing.
        let trial = !policy.entries.is_empty() && policy.entries.iter().all(|entry| entry.dry_run);
        if !(trial && intact) {
            closed = closed.or(Some(&policy.id));
        }
    }
    // Envoy's RBAC asks its policies in the order of their names; so both name the same entry.
    entries.sort_by_cached_key(|entry| entry.label());
    Rules::new(closed.is_some(), entries).closed_by(closed)
}

impl Target {
    fn selects(&self, service: &Service) -> bool {
        let ObjectSelector {
            name,
            namespace,
            labels,
            ..
        } = &self.selector;
        name.as_ref().is_none_or(|name| *name == service.id.name)
            && namespace
                .as_ref()
                .is_none_or(|namespace| *namespace == service.id.namespace)
            && labels
                .iter()
                .all(|(key, value)| service.labels.get(key) == Some(value))
    }

    fn selects_port(&self, number: u16, name: Option<&str>) -> bool {
        self.port.as_ref().is_none_or(|port| {
            port.number.is_none_or(|wanted| wanted == number)
                && port
                    .name
                    .as_deref()
                    .is_none_or(|wanted| Some(wanted) == name)
        })
    }
}

fn read_policy(
    object: &Declared<'_, AccessPolicySpec>,
    objects: &GatewayObjects<'_>,
    accounts: &Accounts<'_>,
    services: &[Service],
    problems: &mut Vec<Problem>,
) -> Policy {
    let id = &object.id;
    let mut report = Report {
        object: format!("AccessPolicy/{id}"),
        problems,
    };
    let spec = object.spec;
    let mut refused = report.unsupported("spec", &spec.other);
    refused |= unsupported_config(&spec.config.other, &mut report);
    if !spec.apply_to_workloads.is_empty() {
        report.ignored(
            "spec.applyToWorkloads",
            "egress gateways enforce policy for external services; use `applyToDestinations`",
        );
    }
    let mut targets = Vec::new();
    if spec.apply_to_destinations.is_empty() && spec.apply_to_workloads.is_empty() {
        report.refused(
            "spec.applyToDestinations",
            "it names no destination, so it closes every external service and opens none",
        );
        targets.push(Target {
            selector: ObjectSelector::default(),
            port: None,
            admits: false,
        });
    }
    for (index, destination) in spec.apply_to_destinations.iter().enumerate() {
        let field = format!("spec.applyToDestinations[{index}]");
        let target = read_target(destination, objects, services, &field, &mut report);
        targets.extend(target);
    }
    for target in &mut targets {
        target.admits &= !refused;
    }
    let single = spec
        .config
        .authz
        .iter()
        .map(|authz| ("spec.config.authz".to_owned(), authz));
    let list = spec.config.authz_list.iter().enumerate();
    let list = list.map(|(at, authz)| (format!("spec.config.authzList[{at}]"), authz));
    let blind = only_connections(&targets, services);
    let mut read = Vec::new();
    for (index, (field, authz)) in single.chain(list).enumerate() {
        let entry = entries::read(id, index, authz, accounts, &field, &mut report);
        if blind && entry.needs_http() {
            report.refused(
                field,
                "it asks for methods, paths or headers, but all its destinations are passed on as \
                 they are, where nobody sees requests; it admits nobody",
            );
        }
        read.push(Arc::new(entry));
    }
    Policy {
        id: id.clone(),
        targets,
        entries: read,
    }
}

/// Whether nothing that these destinations select takes requests, and something is passed on.
fn only_connections(targets: &[Target], services: &[Service]) -> bool {
    let mut selected = targets
        .iter()
        .flat_map(|target| {
            let services = services.iter().filter(|service| target.selects(service));
            let ports = services.flat_map(|service| &service.ports);
            ports.filter(|port| target.selects_port(port.number, port.name.as_deref()))
        })
        .peekable();
    selected.peek().is_some() && selected.all(|port| matches!(port.carries, Carries::Bytes))
}

/// Fields of Gloo's `config` that hold no condition, or one that holds at every gateway anyway, are
/// ignored; true if there are others.
fn unsupported_config(other: &Unsupported, report: &mut Report<'_>) -> bool {
    let mut refused = other.clone();
    for (name, value) in other {
        let field = format!("spec.config.{name}");
        let strict = value.get("tlsMode").is_some_and(|mode| mode == "STRICT");
        if name == "authn" && strict {
            report.ignored(
                field,
                "gateways ask every client for its certificate anyway",
            );
        } else if name == "enforcementLayers" {
            report.ignored(field, "it has no effect here");
        } else {
            continue;
        }
        refused.remove(name);
    }
    report.unsupported("spec.config", &refused)
}

fn read_target(
    destination: &Destination,
    objects: &GatewayObjects<'_>,
    services: &[Service],
    field: &str,
    report: &mut Report<'_>,
) -> Option<Target> {
    let selector = &destination.selector;
    let mut admits = !report.unsupported(field, &destination.other);
    admits &= !report.unsupported(&format!("{field}.selector"), &selector.other);
    if let Some(port) = &destination.port {
        admits &= !report.unsupported(&format!("{field}.port"), &port.other);
    }
    match destination.kind.as_str() {
        "EXTERNAL_SERVICE" => {}
        "SERVICE" | "VIRTUAL_DESTINATION" => {
            report.ignored(
                format!("{field}.kind"),
                "egress gateways know EXTERNAL_SERVICE only",
            );
            return None;
        }
        other => {
            report.refused(
                format!("{field}.kind"),
                format!("`{other}` is not EXTERNAL_SERVICE"),
            );
            admits = false;
        }
    }
    if let Some(name) = foreign(selector, objects) {
        report.ignored(
            format!("{field}.selector.cluster"),
            format!(
                "`{name}` is another cluster than this one, `{}`",
                objects.cluster_name()
            ),
        );
        return None;
    }
    if selector.name.is_none() && selector.namespace.is_none() && selector.labels.is_empty() {
        report.refused(
            format!("{field}.selector"),
            "it is empty, so it closes every external service and opens none; \
             give a name, a namespace or labels",
        );
        admits = false;
    }
    let target = Target {
        selector: selector.clone(),
        port: destination.port.clone(),
        admits,
    };
    let mut selected = services
        .iter()
        .filter(|service| target.selects(service))
        .peekable();
    if selected.peek().is_none() {
        report.ignored(format!("{field}.selector"), "no external service matches");
    } else if !selected.any(|service| {
        service
            .declared
            .iter()
            .any(|(number, name)| target.selects_port(*number, name.as_deref()))
    }) {
        report.ignored(
            format!("{field}.port"),
            "no port of the external service matches (ports are those of the service, \
             not `portMatch`); its hosts are closed",
        );
    }
    Some(target)
}

/// The cluster that a selector names if it is not this one.
pub(super) fn foreign<'a>(
    selector: &'a ObjectSelector,
    objects: &GatewayObjects<'_>,
) -> Option<&'a str> {
    selector
        .cluster
        .as_deref()
        .filter(|name| objects.is_foreign(name))
}
