//! Rules as Envoy's RBAC filters have them. The HTTP filter's refusal is 403, `text/plain`,
//! `RBAC: access denied`; the network filter's is a closed connection.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::rbac::v3::permission::Rule;
use envoy_types::pb::envoy::config::rbac::v3::principal::{Authenticated, Identifier};
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac, permission, principal,
};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network;
use envoy_types::pb::google::protobuf::Any;
use ipnet::IpNet;

use super::pb::{any, core, exact, matcher, number, prefix, regex, string};
use crate::gateway::access::AccessReason;
use crate::gateway::decision::ANY_HOST;
use crate::gateway::identity::{ID_REGEX, id_prefix};
use crate::gateway::path::TextPattern;
use crate::gateway::policy::{Clients, Entry, HeaderCondition, ObjectName, Rules};
use matcher::path_matcher;
use matcher::string_matcher::MatchPattern;

pub(super) const FILTER: &str = "envoy.filters.http.rbac";
pub(super) const NETWORK_FILTER: &str = "envoy.filters.network.rbac";

/// The filter itself admits nothing; each route says what it admits. So a host without a route is
/// refused as well, before the router could answer 404.
pub(super) fn deny_all() -> Any {
    any(http::Rbac {
        rules: Some(allow(HashMap::new())),
        ..http::Rbac::default()
    })
}

/// A route's own rules.
pub(super) fn per_route(trust_domain: &str, rules: &Rules, service: Option<&ObjectName>) -> Any {
    let enforced = enforced(trust_domain, rules, service, false);
    any(http::RbacPerRoute {
        rbac: Some(http::Rbac {
            rules: Some(enforced),
            shadow_rules: shadow(trust_domain, rules, false),
            ..http::Rbac::default()
        }),
    })
}

/// A route where somebody else decides.
pub(super) fn per_route_open() -> Any {
    any(http::RbacPerRoute { rbac: None })
}

/// What the network filter puts before its words for the access log, where they are about the
/// rules that are enforced.
pub(super) const ENFORCED: &str = "enforced_";

/// The rules of a connection: entries that ask for what only a request has admit none. Two filters,
/// since the network filter keeps its words about shadow rules only: the first says what the second
/// does.
pub(super) fn of_connection(
    trust_domain: &str,
    rules: &Rules,
    service: &ObjectName,
    stat_prefix: &str,
) -> [Any; 2] {
    let enforced = enforced(trust_domain, rules, Some(service), true);
    let says = network::Rbac {
        shadow_rules: Some(enforced.clone()),
        shadow_rules_stat_prefix: ENFORCED.to_owned(),
        stat_prefix: stat_prefix.to_owned(),
        ..network::Rbac::default()
    };
    let does = network::Rbac {
        rules: Some(enforced),
        shadow_rules: shadow(trust_domain, rules, true),
        stat_prefix: stat_prefix.to_owned(),
        ..network::Rbac::default()
    };
    [any(says), any(does)]
}

/// Rules of a connection that admit nobody.
pub(super) fn of_nobody(stat_prefix: &str) -> [Any; 2] {
    of_connection("", &Rules::nobody(), &ObjectName::default(), stat_prefix)
}

/// Why whom the rules admit is admitted.
pub(super) fn admitted(rules: &Rules, service: Option<&ObjectName>) -> AccessReason {
    match (rules.closed, service) {
        (true, _) => AccessReason::Admitted,
        (false, Some(_)) => AccessReason::NoPolicy,
        (false, None) => AccessReason::AnyHost,
    }
}

/// The policies' names are for the access log: the object that decides, and its entry.
fn enforced(
    trust_domain: &str,
    rules: &Rules,
    service: Option<&ObjectName>,
    connection: bool,
) -> Rbac {
    let seen = rules.enforced().filter(|entry| seen(entry, connection));
    let mut enforced = policies(trust_domain, seen);
    if !rules.closed {
        let authenticated = Policy {
            permissions: vec![permission(Rule::Any(true))],
            principals: vec![every(trust_domain)],
            ..Policy::default()
        };
        let name = service.map_or_else(
            || ANY_HOST.to_owned(),
            |service| format!("ExternalService/{service}"),
        );
        enforced.insert(name, authenticated);
    }
    allow(enforced)
}

/// All entries, as if the dry-run ones were enforced; none if there are none of those.
fn shadow(trust_domain: &str, rules: &Rules, connection: bool) -> Option<Rbac> {
    let seen = rules.entries().filter(|entry| seen(entry, connection));
    rules
        .has_dry_run()
        .then(|| allow(policies(trust_domain, seen)))
}

fn seen(entry: &Entry, connection: bool) -> bool {
    !(connection && entry.needs_http())
}

fn allow(policies: HashMap<String, Policy>) -> Rbac {
    Rbac {
        action: Action::Allow.into(),
        policies,
        audit_logging_options: None,
    }
}

fn policies<'a>(
    trust_domain: &str,
    entries: impl Iterator<Item = &'a Entry>,
) -> HashMap<String, Policy> {
    entries
        .filter_map(|entry| Some((entry.label(), policy(trust_domain, entry)?)))
        .collect()
}

/// None for an entry that admits nobody: Envoy takes no policy without principals.
fn policy(trust_domain: &str, entry: &Entry) -> Option<Policy> {
    let clients = match &entry.clients {
        Clients::Every => every(trust_domain),
        Clients::These(ids) if ids.is_empty() => return None,
        Clients::These(ids) => any_id(ids.iter().map(|id| named(exact(&id.to_string()))).collect()),
    };
    let mut principals = vec![clients];
    if !entry.ip_blocks.is_empty() {
        principals.push(any_id(entry.ip_blocks.iter().map(address).collect()));
    }
    let mut conditions = Vec::new();
    if !entry.methods.is_empty() {
        let methods = entry
            .methods
            .iter()
            .map(|method| header(":method", exact(method)));
        conditions.push(any_rule(methods.collect()));
    }
    if !entry.paths.is_empty() {
        conditions.push(any_rule(entry.paths.iter().map(path).collect()));
        // `%2e%2e;` survives Envoy's normalisation as `..;`, which servers that ignore parameters
        // take for a dot segment.
        conditions.push(not(url_path(regex(r".*/\.\.?;.*"))));
    }
    conditions.extend(entry.headers.iter().flat_map(header_conditions));
    if conditions.is_empty() {
        conditions.push(permission(Rule::Any(true)));
    }
    Some(Policy {
        permissions: vec![permission(Rule::AndRules(permission::Set {
            rules: conditions,
        }))],
        principals: vec![principal(Identifier::AndIds(principal::Set {
            ids: principals,
        }))],
        ..Policy::default()
    })
}

fn permission(rule: Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn principal(identifier: Identifier) -> Principal {
    Principal {
        identifier: Some(identifier),
    }
}

fn any_rule(mut rules: Vec<Permission>) -> Permission {
    if rules.len() == 1 {
        return rules.remove(0);
    }
    permission(Rule::OrRules(permission::Set { rules }))
}

fn any_id(mut ids: Vec<Principal>) -> Principal {
    if ids.len() == 1 {
        return ids.remove(0);
    }
    principal(Identifier::OrIds(principal::Set { ids }))
}

fn not(rule: Permission) -> Permission {
    permission(Rule::NotRule(Box::new(rule)))
}

fn every(trust_domain: &str) -> Principal {
    let form = named(regex(ID_REGEX));
    let domain = named(prefix(&id_prefix(trust_domain)));
    principal(Identifier::AndIds(principal::Set {
        ids: vec![domain, form],
    }))
}

fn named(name: matcher::StringMatcher) -> Principal {
    principal(Identifier::Authenticated(Authenticated {
        principal_name: Some(name),
    }))
}

/// The connection's peer, whatever a header says.
fn address(block: &IpNet) -> Principal {
    principal(Identifier::DirectRemoteIp(core::CidrRange {
        address_prefix: block.network().to_string(),
        prefix_len: number(block.prefix_len().into()),
    }))
}

/// Without query; the HTTP connection manager has normalised it.
fn path(pattern: &TextPattern) -> Permission {
    url_path(match pattern {
        // Only what can be a path at all: `allowedPaths: ["*"]` holds for no other target.
        TextPattern::Any => prefix("/"),
        other => text(other),
    })
}

fn url_path(path: matcher::StringMatcher) -> Permission {
    permission(Rule::UrlPath(matcher::PathMatcher {
        rule: Some(path_matcher::Rule::Path(path)),
    }))
}

fn text(pattern: &TextPattern) -> matcher::StringMatcher {
    match pattern {
        TextPattern::Exact(text) => exact(text),
        TextPattern::Prefix(text) => prefix(text),
        TextPattern::Suffix(text) => string(MatchPattern::Suffix(text.clone())),
        // `.` does not match a line break, which no header value holds.
        TextPattern::Any => regex(".*"),
    }
}

fn header(name: &str, value: matcher::StringMatcher) -> Permission {
    matched(name, HeaderMatchSpecifier::StringMatch(value))
}

fn matched(name: &str, specifier: HeaderMatchSpecifier) -> Permission {
    permission(Rule::Header(HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..HeaderMatcher::default()
    }))
}

fn header_conditions(condition: &HeaderCondition) -> Vec<Permission> {
    let any_of = |patterns: &[TextPattern]| {
        let matchers = patterns.iter().map(|pattern| match pattern {
            TextPattern::Any => matched(&condition.name, HeaderMatchSpecifier::PresentMatch(true)),
            other => header(&condition.name, text(other)),
        });
        any_rule(matchers.collect())
    };
    let mut out = Vec::new();
    if !condition.values.is_empty() {
        out.push(any_of(&condition.values));
    }
    if !condition.not_values.is_empty() {
        out.push(not(any_of(&condition.not_values)));
    }
    out
}
