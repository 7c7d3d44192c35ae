//! `AuthorizationPolicy` to Envoy's RBAC as istiod does it. Written for the fields that are rendered;
//! anything else panics, so that nothing is compared that was not translated.
//!
//! * The rules of all ALLOW policies of a workload are ORed, each a policy of one RBAC filter; with
//!   ALLOW policies that have no rules at all the filter admits nothing; without any ALLOW policy
//!   there is no filter.
//! * A rule is permissions (`to`, and the conditions on ports and server names) and principals
//!   (`from`, and the conditions on headers). One of the values of a field must hold, none of its
//!   `not` values, and every field.
//! * A value with `*` at its end is a prefix, at its start a suffix, alone it is any value that is
//!   not empty (headers: present); else it is exact. Only hosts are compared in any case.
//! * `principals` are prefixed with `spiffe://`. `ipBlocks` are the connection's peer.
//! * `paths` are compared without query, as the connection manager has normalized them.
//! * In the network filter a rule of ALLOW that asks for anything of HTTP is left out.
//! * Policies with the dry-run annotation are the filter's shadow rules.

use egress_agent::gateway::istio::object::{Action, AuthorizationPolicy, Condition, DRY_RUN, Rule};
use serde_json::{Map, Value, json};

/// Enforced rules, and shadow rules if there is a dry run.
pub struct Filter {
    pub rules: Value,
    pub shadow: Option<Value>,
}

/// The filter of a chain, for HTTP or for connections.
pub fn translate(policies: &[AuthorizationPolicy], tcp: bool) -> Filter {
    let is_dry_run = |policy: &&AuthorizationPolicy| {
        let annotations = &policy.metadata.annotations;
        annotations
            .get(DRY_RUN)
            .is_some_and(|value| value == "true")
    };
    let trial: Vec<_> = policies.iter().filter(is_dry_run).collect();
    Filter {
        rules: rbac(policies.iter().filter(|policy| !is_dry_run(policy)), tcp),
        shadow: (!trial.is_empty()).then(|| rbac(trial.into_iter(), tcp)),
    }
}

fn rbac<'a>(policies: impl Iterator<Item = &'a AuthorizationPolicy>, tcp: bool) -> Value {
    let mut translated = Map::new();
    let mut policies = policies.peekable();
    if policies.peek().is_none() {
        let everything = json!([{ "any": true }]);
        let open = json!({ "permissions": everything, "principals": everything });
        translated.insert("no policy".to_owned(), open);
    }
    for policy in policies {
        assert_eq!(policy.spec.action, Action::Allow);
        let metadata = &policy.metadata;
        for (at, rule) in policy.spec.rules.iter().enumerate() {
            if tcp && needs_http(rule) {
                continue;
            }
            let name = format!(
                "ns[{}]-policy[{}]-rule[{at}]",
                metadata.namespace, metadata.name
            );
            translated.insert(name, one(rule));
        }
    }
    json!({ "action": "ALLOW", "policies": translated })
}

fn needs_http(rule: &Rule) -> bool {
    let operations = rule.to.iter().map(|to| &to.operation);
    let mut http = operations.flat_map(|it| [&it.hosts, &it.not_hosts, &it.methods, &it.paths]);
    http.any(|values| !values.is_empty())
        || rule.when.iter().any(|it| it.key.starts_with("request."))
}

fn one(rule: &Rule) -> Value {
    let mut base_permissions = Vec::new();
    let mut base_principals = Vec::new();
    for condition in &rule.when {
        let Condition {
            key,
            values,
            not_values,
        } = condition;
        if key == "connection.sni" {
            let sni = |value: &str| json!({ "requested_server_name": text(value, "", false) });
            both(&mut base_permissions, "rule", values, not_values, &sni);
        } else if let Some(name) = key.strip_prefix("request.headers[") {
            let name = name.strip_suffix(']').expect("a header in brackets");
            let matched = |value: &str| json!({ "header": header(name, value, false) });
            both(&mut base_principals, "id", values, not_values, &matched);
        } else {
            panic!("no translation for the condition {key}");
        }
    }
    let permissions = rule.to.iter().map(|to| {
        let it = &to.operation;
        let mut all = base_permissions.clone();
        let host = |value: &str| json!({ "header": header(":authority", value, true) });
        both(&mut all, "rule", &it.hosts, &it.not_hosts, &host);
        let method = |value: &str| json!({ "header": header(":method", value, false) });
        both(&mut all, "rule", &it.methods, &[], &method);
        let path = |value: &str| json!({ "url_path": { "path": text(value, "", false) } });
        both(&mut all, "rule", &it.paths, &[], &path);
        let port =
            |value: &str| json!({ "destination_port": value.parse::<u16>().expect("a port") });
        both(&mut all, "rule", &it.ports, &[], &port);
        and(all, "rule")
    });
    let principals = rule.from.iter().map(|from| {
        let it = &from.source;
        let mut all = base_principals.clone();
        let name = |value: &str| {
            json!({ "authenticated": { "principal_name": text(value, "spiffe://", false) } })
        };
        both(&mut all, "id", &it.principals, &[], &name);
        let block = |value: &str| {
            let (address, length) = value.split_once('/').expect("a CIDR");
            let length: u8 = length.parse().expect("a length");
            json!({ "direct_remote_ip": { "address_prefix": address, "prefix_len": length } })
        };
        both(&mut all, "id", &it.ip_blocks, &[], &block);
        and(all, "id")
    });
    let (permissions, principals): (Vec<_>, Vec<_>) = (permissions.collect(), principals.collect());
    assert!(
        !permissions.is_empty() && !principals.is_empty(),
        "{rule:?}"
    );
    json!({ "permissions": permissions, "principals": principals })
}

/// ORs the values, and negates the OR of the others. `kind` is `rule` or `id`.
fn both(
    all: &mut Vec<Value>,
    kind: &str,
    values: &[String],
    not_values: &[String],
    matched: &dyn Fn(&str) -> Value,
) {
    let any = |values: &[String]| {
        let matched: Vec<Value> = values.iter().map(|value| matched(value)).collect();
        json!({ format!("or_{kind}s"): { format!("{kind}s"): matched } })
    };
    if !values.is_empty() {
        all.push(any(values));
    }
    if !not_values.is_empty() {
        all.push(json!({ format!("not_{kind}"): any(not_values) }));
    }
}

fn and(mut all: Vec<Value>, kind: &str) -> Value {
    if all.is_empty() {
        all.push(json!({ "any": true }));
    }
    json!({ format!("and_{kind}s"): { format!("{kind}s"): all } })
}

fn header(name: &str, value: &str, ignore_case: bool) -> Value {
    if value == "*" {
        return json!({ "name": name, "present_match": true });
    }
    json!({ "name": name, "string_match": text(value, "", ignore_case) })
}

fn text(value: &str, prefix: &str, ignore_case: bool) -> Value {
    let mut matcher = if value == "*" {
        return json!({ "safe_regex": { "regex": ".+" } });
    } else if let Some(suffix) = value.strip_prefix('*') {
        assert!(prefix.is_empty(), "no principal begins with `*` here");
        json!({ "suffix": suffix })
    } else if let Some(begin) = value.strip_suffix('*') {
        json!({ "prefix": format!("{prefix}{begin}") })
    } else {
        json!({ "exact": format!("{prefix}{value}") })
    };
    if ignore_case {
        matcher["ignore_case"] = json!(true);
    }
    matcher
}
