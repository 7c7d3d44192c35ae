//! One entry of an access policy: its clients and its conditions on the request.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::api::ObjectSelector;
use crate::api::access_policy::{Authz, HeaderValues};

use super::GatewayObjects;
use super::identity::SpiffeId;
use super::path::{TextPattern, parse_path_pattern};
use super::policy::{Clients, Entry, HeaderCondition, ObjectName, Report};
use super::rules::foreign;

/// The service accounts of the cluster, by namespace and name.
pub(super) struct Accounts<'a> {
    objects: &'a GatewayObjects<'a>,
    by_namespace: BTreeMap<&'a str, BTreeMap<&'a str, Account<'a>>>,
}

struct Account<'a> {
    id: SpiffeId,
    labels: Option<&'a BTreeMap<String, String>>,
}

impl<'a> Accounts<'a> {
    pub(super) fn new(objects: &'a GatewayObjects<'a>) -> Self {
        let mut by_namespace: BTreeMap<&str, BTreeMap<&str, Account<'_>>> = BTreeMap::new();
        for account in &objects.service_accounts {
            let (namespace, name) = (account.id.namespace.as_str(), account.id.name.as_str());
            // A name that Kubernetes would not accept has no identity either.
            if let Ok(id) = SpiffeId::new(&objects.trust_domain, namespace, name) {
                let labels = account.labels;
                let accounts = by_namespace.entry(namespace).or_default();
                accounts.insert(name, Account { id, labels });
            }
        }
        Self {
            objects,
            by_namespace,
        }
    }

    fn select<'b>(&'b self, selector: &'b ObjectSelector) -> impl Iterator<Item = &'b SpiffeId> {
        let namespaces = one_or_all(&self.by_namespace, selector.namespace.as_deref());
        let accounts =
            namespaces.flat_map(|accounts| one_or_all(accounts, selector.name.as_deref()));
        accounts
            .filter(|account| {
                let label = |key| account.labels.and_then(|labels| labels.get(key));
                let mut labels = selector.labels.iter();
                labels.all(|(key, value)| label(key) == Some(value))
            })
            .map(|account| &account.id)
    }
}

fn one_or_all<'b, T>(map: &'b BTreeMap<&str, T>, key: Option<&str>) -> impl Iterator<Item = &'b T> {
    let one = key.and_then(|key| map.get(key));
    let all = key.is_none().then(|| map.values());
    one.into_iter().chain(all.into_iter().flatten())
}

/// Reads one entry; what can't be read as written admits nobody.
pub(super) fn read(
    policy: &ObjectName,
    index: usize,
    authz: &Authz,
    accounts: &Accounts<'_>,
    field: &str,
    report: &mut Report<'_>,
) -> Entry {
    let mut refused = report.unsupported(field, &authz.other);
    let clients = read_clients(authz, accounts, field, report);
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
            let at = format!("{field}.request.headers.{name}");
            refused |= report.unsupported(&at, &values.other);
            match read_header(name, values) {
                Ok(condition) => headers.push(condition),
                Err(reason) => {
                    report.refused(at, reason);
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
    accounts: &Accounts<'_>,
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
        if let Some(name) = foreign(selector, accounts.objects) {
            report.ignored(
                format!("{field}.cluster"),
                format!(
                    "`{name}` is another cluster than this one, `{}`",
                    accounts.objects.cluster_name()
                ),
            );
            continue;
        }
        let mut selected = accounts.select(selector).peekable();
        if selected.peek().is_none() {
            report.ignored(
                field,
                "no service account matches (labels are the ServiceAccount's)",
            );
        }
        ids.extend(selected.cloned());
    }
    if every {
        Clients::Every
    } else {
        Clients::These(ids)
    }
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
