//! Access policies to rules: which destinations a policy closes, and what its entries admit.
//!
//! A destination or entry that can't be read as written closes what it names and admits nobody.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::api::access_policy::{Authz, Destination, HeaderValues};
use crate::api::{AccessPolicySpec, ObjectSelector, PortRef};

use super::identity::SpiffeId;
use super::path::{TextPattern, parse_path_pattern};
use super::policy::{Clients, Entry, HeaderCondition, ObjectName, Problem, Report, Rules};
use super::services::Service;
use super::{Declared, GatewayObjects};

/// An access policy, resolved against the service accounts of this moment.
#[derive(Debug)]
pub(super) struct Policy {
    targets: Vec<Target>,
    entries: Vec<Entry>,
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
    let mut sorted: Vec<&Declared<'_, AccessPolicySpec>> = objects.access_policies.iter().collect();
    sorted.sort_by(|a, b| a.id.cmp(&b.id));
    sorted
        .into_iter()
        .map(|object| read_policy(object, objects, services, problems))
        .collect()
}

/// The rules of one port of a service.
pub(super) fn rules_for(
    policies: &[Policy],
    service: &Service,
    number: u16,
    name: Option<&str>,
) -> Rules {
    let mut rules = Rules::default();
    for policy in policies {
        let mut targets = policy
            .targets
            .iter()
            .filter(|target| target.selects(service))
            .peekable();
        if targets.peek().is_none() {
            continue;
        }
        let (mut admits, mut intact) = (false, true);
        for target in targets {
            admits |= target.admits && target.selects_port(number, name);
            intact &= target.admits;
        }
        if admits {
            rules.entries.extend(policy.entries.iter().cloned());
        }
        // A policy whose every entry is on trial closes nothing.
        let trial = !policy.entries.is_empty() && policy.entries.iter().all(|entry| entry.dry_run);
        rules.closed |= !(trial && intact);
    }
    rules
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
    refused |= report.unsupported("spec.config", &spec.config.other);
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
    let mut entries = Vec::new();
    for (index, (field, authz)) in single.chain(list).enumerate() {
        entries.push(read_entry(id, index, authz, objects, &field, &mut report));
    }
    Policy { targets, entries }
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
fn foreign<'a>(selector: &'a ObjectSelector, objects: &GatewayObjects<'_>) -> Option<&'a str> {
    selector
        .cluster
        .as_deref()
        .filter(|name| objects.is_foreign(name))
}

fn read_entry(
    policy: &ObjectName,
    index: usize,
    authz: &Authz,
    objects: &GatewayObjects<'_>,
    field: &str,
    report: &mut Report<'_>,
) -> Entry {
    let mut refused = report.unsupported(field, &authz.other);
    let clients = read_clients(authz, objects, field, report);
    let mut methods = BTreeSet::new();
    for (at, method) in authz.allowed_methods.iter().enumerate() {
        if method.is_empty()
            || !method
                .bytes()
                .all(|byte| byte.is_ascii_alphabetic() || byte == b'-')
        {
            report.refused(
                format!("{field}.allowedMethods[{at}]"),
                format!("`{method}` is no method"),
            );
            refused = true;
        }
        methods.insert(method.to_ascii_uppercase());
    }
    let mut paths = BTreeSet::new();
    for (at, path) in authz.allowed_paths.iter().enumerate() {
        match parse_path_pattern(path) {
            Ok(pattern) => _ = paths.insert(pattern),
            Err(reason) => {
                report.refused(format!("{field}.allowedPaths[{at}]"), reason);
                refused = true;
            }
        }
    }
    let mut ip_blocks = BTreeSet::new();
    for (at, text) in authz.allowed_ip_blocks.iter().enumerate() {
        let block = text
            .parse::<IpNet>()
            .or_else(|_| text.parse().map(|ip: std::net::IpAddr| ip.into()));
        if let Ok(block) = block {
            ip_blocks.insert(block.trunc());
        } else {
            let reason = format!("`{text}` is no address or CIDR");
            report.refused(format!("{field}.allowedIpBlocks[{at}]"), reason);
            refused = true;
        }
    }
    let mut headers = Vec::new();
    if let Some(matches) = &authz.matches {
        let field = format!("{field}.match");
        refused |= report.unsupported(&field, &matches.other);
        refused |= report.unsupported(&format!("{field}.request"), &matches.request.other);
        for (name, values) in &matches.request.headers {
            match read_header(name, values) {
                Ok(condition) => headers.push(condition),
                Err(reason) => {
                    report.refused(format!("{field}.request.headers.{name}"), reason);
                    refused = true;
                }
            }
        }
    }
    let empty = authz.allowed_clients.is_empty()
        && methods.is_empty()
        && paths.is_empty()
        && ip_blocks.is_empty()
        && headers.is_empty();
    let clients = if refused || empty {
        Clients::These(BTreeSet::new())
    } else {
        clients
    };
    Entry {
        policy: policy.clone(),
        index,
        clients,
        methods,
        paths,
        ip_blocks,
        headers,
        dry_run: authz.dry_run,
    }
}

fn read_clients(
    authz: &Authz,
    objects: &GatewayObjects<'_>,
    field: &str,
    report: &mut Report<'_>,
) -> Clients {
    if authz.allowed_clients.is_empty() {
        return Clients::Every;
    }
    let mut ids = BTreeSet::new();
    let mut every = false;
    for (at, client) in authz.allowed_clients.iter().enumerate() {
        let field = format!("{field}.allowedClients[{at}]");
        let selector = &client.service_account_selector;
        let mut refused = report.unsupported(&field, &client.other);
        let field = format!("{field}.serviceAccountSelector");
        refused |= report.unsupported(&field, &selector.other);
        if refused {
            continue;
        }
        if *selector == ObjectSelector::default() {
            every = true;
            continue;
        }
        if let Some(name) = foreign(selector, objects) {
            report.ignored(
                format!("{field}.cluster"),
                format!(
                    "`{name}` is another cluster than this one, `{}`",
                    objects.cluster_name()
                ),
            );
            continue;
        }
        let before = ids.len();
        ids.extend(resolve(selector, objects));
        if ids.len() == before && resolve(selector, objects).next().is_none() {
            report.ignored(
                field,
                "no service account matches (labels are the ServiceAccount's)",
            );
        }
    }
    if every {
        Clients::Every
    } else {
        Clients::These(ids)
    }
}

fn resolve<'a>(
    selector: &'a ObjectSelector,
    objects: &'a GatewayObjects<'_>,
) -> impl Iterator<Item = SpiffeId> + 'a {
    objects.service_accounts.iter().filter_map(|account| {
        let label = |key| account.labels.and_then(|labels| labels.get(key));
        let selected = selector
            .name
            .as_deref()
            .is_none_or(|name| *name == account.id.name)
            && selector
                .namespace
                .as_deref()
                .is_none_or(|namespace| *namespace == account.id.namespace)
            && selector
                .labels
                .iter()
                .all(|(key, value)| label(key) == Some(value));
        // A name that Kubernetes would not accept has no identity either.
        let id = SpiffeId::new(
            &objects.trust_domain,
            &account.id.namespace,
            &account.id.name,
        );
        id.ok().filter(|_| selected)
    })
}

fn read_header(name: &str, values: &HeaderValues) -> Result<HeaderCondition, String> {
    let name = name.to_ascii_lowercase();
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err("it is no header name".to_owned());
    }
    // These say what the gateway or another hop wrote, not what the client asked.
    let hops = [
        "host",
        "connection",
        "te",
        "transfer-encoding",
        "upgrade",
        "keep-alive",
        "via",
    ];
    let written = name.starts_with("x-envoy-") || name.starts_with("x-forwarded-");
    if written || name == "x-request-id" || hops.contains(&name.as_str()) {
        return Err("the gateway writes this header itself; a policy can't rely on it".to_owned());
    }
    if values.values.is_empty() && values.not_values.is_empty() {
        return Err("it needs `values` or `notValues`; `*` is any value".to_owned());
    }
    let parse = |texts: &[String]| -> Result<Vec<TextPattern>, String> {
        texts
            .iter()
            .map(|text| match TextPattern::parse(text) {
                Some(TextPattern::Exact(text)) if text.is_empty() => Err("a value is empty".into()),
                Some(pattern) => Ok(pattern),
                None => Err(format!("`{text}`: a `*` may stand at one end only")),
            })
            .collect()
    };
    Ok(HeaderCondition {
        name,
        values: parse(&values.values)?,
        not_values: parse(&values.not_values)?,
    })
}
