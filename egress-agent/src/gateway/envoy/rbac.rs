//! Rules as Envoy's RBAC filter has them. Its refusal is 403, `text/plain`, `RBAC: access denied`.

use serde_json::{Map, Value, json};

use super::type_url;
use crate::gateway::identity::{ID_REGEX, id_prefix};
use crate::gateway::path::TextPattern;
use crate::gateway::policy::{Clients, Entry, HeaderCondition, Rules};

pub(super) const FILTER: &str = "envoy.filters.http.rbac";

/// The filter itself admits nothing; each route says what it admits. So a host without a route is
/// refused as well, before the router could answer 404.
pub(super) fn deny_all() -> Value {
    json!({
        "@type": type_url("envoy.extensions.filters.http.rbac.v3.RBAC"),
        "rules": { "action": "ALLOW", "policies": {} },
    })
}

/// A route's own rules.
pub(super) fn per_route(trust_domain: &str, rules: &Rules) -> Value {
    let mut enforced = policies(trust_domain, rules.enforced());
    if !rules.closed {
        enforced.insert(
            "authenticated".to_owned(),
            json!({ "permissions": [{ "any": true }], "principals": [every(trust_domain)] }),
        );
    }
    let mut rbac = json!({ "rules": { "action": "ALLOW", "policies": enforced } });
    if rules.has_dry_run() {
        let all = policies(trust_domain, rules.entries.iter());
        rbac["shadow_rules"] = json!({ "action": "ALLOW", "policies": all });
    }
    json!({
        "@type": type_url("envoy.extensions.filters.http.rbac.v3.RBACPerRoute"),
        "rbac": rbac,
    })
}

fn policies<'a>(
    trust_domain: &str,
    entries: impl Iterator<Item = &'a Entry>,
) -> Map<String, Value> {
    entries
        .filter_map(|entry| Some((entry.label(), policy(trust_domain, entry)?)))
        .collect()
}

/// None for an entry that admits nobody: Envoy takes no policy without principals.
fn policy(trust_domain: &str, entry: &Entry) -> Option<Value> {
    let clients = match &entry.clients {
        Clients::Every => every(trust_domain),
        Clients::These(ids) if ids.is_empty() => return None,
        Clients::These(ids) => any_of(
            "or_ids",
            "ids",
            ids.iter()
                .map(|id| principal(&json!({ "exact": id.to_string() })))
                .collect(),
        ),
    };
    let mut principals = vec![clients];
    if !entry.ip_blocks.is_empty() {
        let blocks = entry.ip_blocks.iter().map(|block| {
            // The connection's peer, whatever a header says.
            json!({ "direct_remote_ip": {
                "address_prefix": block.network().to_string(),
                "prefix_len": block.prefix_len(),
            } })
        });
        principals.push(any_of("or_ids", "ids", blocks.collect()));
    }
    let mut conditions = Vec::new();
    if !entry.methods.is_empty() {
        let methods = entry
            .methods
            .iter()
            .map(|method| header(":method", &json!({ "exact": method })));
        conditions.push(any_of("or_rules", "rules", methods.collect()));
    }
    if !entry.paths.is_empty() {
        let paths = entry.paths.iter().map(path);
        conditions.push(any_of("or_rules", "rules", paths.collect()));
        // `%2e%2e;` survives Envoy's normalisation as `..;`, which servers that ignore parameters
        // take for a dot segment.
        let hidden = json!({ "safe_regex": { "regex": r".*/\.\.?;.*" } });
        conditions.push(json!({ "not_rule": { "url_path": { "path": hidden } } }));
    }
    conditions.extend(entry.headers.iter().flat_map(header_conditions));
    if conditions.is_empty() {
        conditions.push(json!({ "any": true }));
    }
    Some(json!({
        "permissions": [{ "and_rules": { "rules": conditions } }],
        "principals": [{ "and_ids": { "ids": principals } }],
    }))
}

fn any_of(kind: &str, list: &str, mut values: Vec<Value>) -> Value {
    if values.len() == 1 {
        return values.remove(0);
    }
    json!({ kind: { list: values } })
}

fn every(trust_domain: &str) -> Value {
    let form = principal(&json!({ "safe_regex": { "regex": ID_REGEX } }));
    let domain = principal(&json!({ "prefix": id_prefix(trust_domain) }));
    json!({ "and_ids": { "ids": [domain, form] } })
}

fn principal(matcher: &Value) -> Value {
    json!({ "authenticated": { "principal_name": matcher } })
}

/// Without query; the HTTP connection manager has normalised it.
fn path(pattern: &TextPattern) -> Value {
    let matcher = match pattern {
        // Only what can be a path at all: `allowedPaths: ["*"]` holds for no other target.
        TextPattern::Any => json!({ "prefix": "/" }),
        other => text(other),
    };
    json!({ "url_path": { "path": matcher } })
}

fn text(pattern: &TextPattern) -> Value {
    match pattern {
        TextPattern::Exact(text) => json!({ "exact": text }),
        TextPattern::Prefix(text) => json!({ "prefix": text }),
        TextPattern::Suffix(text) => json!({ "suffix": text }),
        // `.` does not match a line break, which no header value holds.
        TextPattern::Any => json!({ "safe_regex": { "regex": ".*" } }),
    }
}

fn header(name: &str, matcher: &Value) -> Value {
    json!({ "header": { "name": name, "string_match": matcher } })
}

fn header_conditions(condition: &HeaderCondition) -> Vec<Value> {
    let any = |patterns: &[TextPattern]| {
        let matchers = patterns.iter().map(|pattern| match pattern {
            TextPattern::Any => {
                json!({ "header": { "name": condition.name, "present_match": true } })
            }
            other => header(&condition.name, &text(other)),
        });
        any_of("or_rules", "rules", matchers.collect())
    };
    let mut out = Vec::new();
    if !condition.values.is_empty() {
        out.push(any(&condition.values));
    }
    if !condition.not_values.is_empty() {
        out.push(json!({ "not_rule": any(&condition.not_values) }));
    }
    out
}
