//! Routes as rules of an `AuthorizationPolicy`.

use crate::gateway::host::HostPattern;
use crate::gateway::path::TextPattern;
use crate::gateway::policy::{Clients, Entry, HeaderCondition, Listener};

use super::object::{Condition, From, Operation, Rule, Source, To};

/// A rule, and what it comes from.
pub(super) struct Origin {
    pub(super) rule: Rule,
    pub(super) origin: String,
}

/// What a rule is about.
pub(super) struct Place<'a> {
    pub(super) trust_domain: &'a str,
    /// Port of the gateway's pods.
    pub(super) port: u16,
    pub(super) pattern: &'a HostPattern,
    /// Patterns below it that decide for themselves.
    pub(super) narrower: Vec<&'a HostPattern>,
    /// Port that the client names; none for connections that are passed on.
    pub(super) asked: Option<u16>,
}

impl<'a> Place<'a> {
    pub(super) fn new(
        trust_domain: &'a str,
        port: u16,
        listener: &'a Listener,
        pattern: &'a HostPattern,
        asked: Option<u16>,
    ) -> Self {
        let named = listener.hosts.keys().chain(listener.passthrough.keys());
        Self {
            trust_domain,
            port,
            pattern,
            narrower: named
                .filter(|other| *other != pattern && pattern.covers(other))
                .collect(),
            asked,
        }
    }

    /// For every client of the trust domain.
    pub(super) fn open(&self) -> Origin {
        Origin {
            rule: self.rule(Source {
                principals: vec![self.every()],
                ip_blocks: Vec::new(),
            }),
            origin: "open: no access policy names it".to_owned(),
        }
    }

    /// None for an entry that admits nobody here.
    pub(super) fn entry(&self, entry: &Entry) -> Option<Origin> {
        let principals = match &entry.clients {
            Clients::Every => vec![self.every()],
            // A list that is empty would be no condition.
            Clients::These(ids) if ids.is_empty() => return None,
            Clients::These(ids) => ids
                .iter()
                .map(|id| id.as_str().trim_start_matches("spiffe://").to_owned())
                .collect(),
        };
        if self.asked.is_none() && entry.needs_http() {
            return None;
        }
        let mut rule = self.rule(Source {
            principals,
            ip_blocks: entry.ip_blocks.iter().map(ToString::to_string).collect(),
        });
        for to in &mut rule.to {
            to.operation.methods = entry.methods.iter().cloned().collect();
            if !entry.paths.is_empty() {
                to.operation.paths = entry.paths.iter().map(path).collect();
            }
        }
        rule.when.extend(entry.headers.iter().map(header));
        Some(Origin {
            rule,
            origin: entry.label(),
        })
    }

    /// Istio's CA gives out no other names.
    fn every(&self) -> String {
        format!("{}/ns/*", self.trust_domain)
    }

    fn rule(&self, source: Source) -> Rule {
        let mut operation = Operation {
            ports: vec![self.port.to_string()],
            ..Operation::default()
        };
        let mut when = Vec::new();
        if let Some(asked) = self.asked {
            operation.hosts = authorities(self.pattern, asked);
            operation.not_hosts = self
                .narrower
                .iter()
                .flat_map(|other| authorities(other, asked))
                .collect();
            // Not `OPTIONS *`, which names no path.
            operation.paths = vec!["/*".to_owned()];
        } else {
            when.push(Condition {
                key: "connection.sni".to_owned(),
                values: vec![self.pattern.to_string()],
                not_values: self.narrower.iter().map(ToString::to_string).collect(),
            });
        }
        Rule {
            from: vec![From { source }],
            to: vec![To { operation }],
            when,
        }
    }
}

/// The forms of an authority: `host:*` would take every port; a route has one. Istio's gateways
/// leave a trailing dot where it is.
fn authorities(pattern: &HostPattern, asked: u16) -> Vec<String> {
    let mut forms = Vec::new();
    for name in [pattern.to_string(), format!("{pattern}.")] {
        if asked == 80 {
            forms.push(name.clone());
        }
        forms.push(format!("{name}:{asked}"));
    }
    forms
}

fn path(pattern: &TextPattern) -> String {
    match pattern {
        TextPattern::Any => "/*".to_owned(),
        other => other.to_string(),
    }
}

fn header(condition: &HeaderCondition) -> Condition {
    let texts = |patterns: &[TextPattern]| patterns.iter().map(ToString::to_string).collect();
    Condition {
        key: format!("request.headers[{}]", condition.name),
        values: texts(&condition.values),
        not_values: texts(&condition.not_values),
    }
}
