//! The policy as native Istio objects, for gateways that shall ask nobody for each request.
//!
//! For each `VirtualGateway` an `AuthorizationPolicy` ALLOW on its pods for each host that it serves,
//! and one without rules, so that what no rule admits is refused. What it says is what
//! [`decide_access`](crate::gateway::decide_access) and
//! [`decide_connection`](crate::gateway::decide_connection) say, of the service accounts that
//! exist when it is rendered: labels of new ones count after the next rendering.
//!
//! * Client: `principals`. An entry for every client is `<trust domain>/ns/*`.
//! * Host: `hosts` in all forms that a client may write for its port (`a.org`, `a.org:80`, with a
//!   trailing dot); Istio compares them in any case. The names that decide for themselves below a
//!   wildcard are its `notHosts`. Of a wildcard Istio compares the end alone, also of an authority
//!   that is no host name (`a..example.com`): that too is a name below it or none.
//! * Paths are compared as the gateway has normalized them. The mesh needs
//!   `pathNormalization: DECODE_AND_MERGE_SLASHES`.
//! * Address: `ipBlocks`, the connection's peer. `remoteIpBlocks` would believe a header.
//! * Dry runs: one policy with `istio.io/dry-run`, with all rules as they would be, since Istio's
//!   shadow verdict looks at dry-run policies alone.
//!
//! What Istio can't say is refused and admits nobody: see [`render`].

mod custom;
pub mod object;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::host::HostPattern;
use super::path::TextPattern;
use super::policy::{Effect, Entry, Listener, ObjectName, Problem, Rules};
use super::{GatewayObject, GatewayObjects, GatewayPolicy};
use object::{
    API_VERSION, Action, AuthorizationPolicy, DRY_RUN, KIND, Metadata, Rule, Selector, Spec,
};
use rules::{Origin, Place};

pub use custom::{Provider, custom};

/// What the API server takes in one policy.
const MAX_RULES: usize = 512;

/// How to render.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Renders paths that are no whole ones (`/v1/*`, `*.json`, `*`). Then a client may reach what
    /// a server makes of `/v1/%2e%2e;/x`: Istio has no pattern for dot segments that hide behind
    /// path parameters, and refuses none.
    pub accept_hidden_dot_segments: bool,
}

/// Native objects.
#[derive(Clone, Debug, Default)]
pub struct Rendered {
    pub policies: Vec<Document>,
    /// What could not be said. It admits nobody.
    pub problems: Vec<Problem>,
}

/// An object, and what a reader should know of it.
#[derive(Clone, Debug)]
pub struct Document {
    pub comments: Vec<String>,
    pub policy: AuthorizationPolicy,
}

/// Pods of a gateway: one policy each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Workload {
    namespace: String,
    labels: BTreeMap<String, String>,
}

/// Renders the policy of every gateway.
///
/// Refused, since Istio would admit more: a bare `*` as host (it admits addresses too), paths that
/// are no whole ones (see [`Options`]), and a listener of a second gateway on the same pods and
/// port (Istio adds policies up).
pub fn render(objects: &GatewayObjects<'_>, policy: &GatewayPolicy, options: Options) -> Rendered {
    let mut rendered = Rendered::default();
    let mut taken = BTreeSet::new();
    let mut gateways: Vec<&GatewayObject<'_>> = objects.gateways.iter().collect();
    gateways.sort_by(|a, b| a.id.cmp(&b.id));
    for object in gateways {
        let Some(gateway) = policy.gateways.get(&object.id) else {
            continue;
        };
        for workload in workloads(objects, object) {
            let mut writer = Writer {
                objects,
                options,
                id: &object.id,
                workload: &workload,
                trial: Vec::new(),
                has_trial: false,
                out: &mut rendered,
            };
            writer.default_deny();
            for (&port, listener) in &gateway.listeners {
                if taken.insert((workload.clone(), port)) {
                    writer.listener(&policy.trust_domain, port, listener);
                } else {
                    let reason = format!(
                        "another VirtualGateway has port {port} of the same pods; Istio adds \
                         policies up, so only the first by name is rendered: merge them"
                    );
                    writer.refuse(
                        &format!("VirtualGateway/{}", object.id),
                        "spec.listeners",
                        reason,
                    );
                }
            }
            writer.dry_run();
        }
    }
    rendered.problems.sort();
    rendered.problems.dedup();
    rendered
}

fn workloads(objects: &GatewayObjects<'_>, gateway: &GatewayObject<'_>) -> BTreeSet<Workload> {
    let selectors = gateway
        .spec
        .workloads
        .iter()
        .map(|workload| &workload.selector);
    selectors
        // An empty selector selects no pod.
        .filter(|selector| !selector.labels.is_empty())
        .filter(|selector| {
            let cluster = selector.cluster.as_deref();
            !cluster.is_some_and(|name| objects.is_foreign(name))
        })
        .map(|selector| Workload {
            namespace: selector
                .namespace
                .clone()
                .unwrap_or_else(|| gateway.id.namespace.clone()),
            labels: selector.labels.clone(),
        })
        .collect()
}

/// Writes the policies of one gateway for one set of pods.
struct Writer<'a, 'b> {
    objects: &'a GatewayObjects<'a>,
    options: Options,
    id: &'a ObjectName,
    workload: &'a Workload,
    /// All rules as they would be.
    trial: Vec<Origin>,
    has_trial: bool,
    out: &'b mut Rendered,
}

impl Writer<'_, '_> {
    fn default_deny(&mut self) {
        let comment = "What no other policy admits is refused.".to_owned();
        self.push("default-deny", vec![comment], Vec::new(), false);
    }

    fn listener(&mut self, trust_domain: &str, port: u16, listener: &Listener) {
        for (pattern, routes) in &listener.hosts {
            let mut origins = Vec::new();
            for (&asked, route) in routes {
                let owner = route.service.as_ref();
                if *pattern == HostPattern::Any {
                    self.refuse_any(owner);
                    continue;
                }
                let place = Place::new(trust_domain, port, listener, pattern, Some(asked));
                self.rules(&place, &route.rules, &mut origins);
            }
            self.host(port, pattern, origins);
        }
        for (pattern, passthrough) in &listener.passthrough {
            let Some(route) = &passthrough.served else {
                continue;
            };
            let mut origins = Vec::new();
            if *pattern == HostPattern::Any {
                self.refuse_any(Some(&route.service));
                continue;
            }
            let place = Place::new(trust_domain, port, listener, pattern, None);
            self.rules(&place, &route.rules, &mut origins);
            self.host(port, pattern, origins);
        }
    }

    fn refuse_any(&mut self, service: Option<&ObjectName>) {
        let (object, field) = match service {
            Some(service) => (format!("ExternalService/{service}"), "spec.hosts"),
            None => (
                format!("VirtualGateway/{}", self.id),
                "spec.listeners.exposedExternalServices",
            ),
        };
        let reason = "Istio's `*` admits addresses and what is no host name too; name domains, as in \
                      `*.example.com`";
        self.refuse(&object, field, reason.to_owned());
    }

    /// The enforced rules of a route, and what they would be.
    fn rules(&mut self, place: &Place<'_>, rules: &Rules, enforced: &mut Vec<Origin>) {
        if !rules.closed {
            enforced.push(place.open());
            if !rules.has_dry_run() {
                self.trial.push(place.open());
            }
        }
        self.has_trial |= rules.has_dry_run();
        for entry in rules.entries() {
            if place.asked.is_some() && !self.can_say(entry) {
                continue;
            }
            if !entry.dry_run {
                enforced.extend(place.entry(entry));
            }
            self.trial.extend(place.entry(entry));
        }
    }

    /// Whether Istio can say what this entry says; reported if not.
    fn can_say(&mut self, entry: &Entry) -> bool {
        let parts = entry
            .paths
            .iter()
            .find(|path| !matches!(path, TextPattern::Exact(_)));
        let (Some(path), false) = (parts, self.options.accept_hidden_dot_segments) else {
            return true;
        };
        let reason = format!(
            "`{path}`: Istio can't refuse dot segments behind path parameters (`/a/%2e%2e;/b`), so \
             this would admit more; give whole paths, ask the policy server (--custom), or take the \
             risk (--accept-hidden-dot-segments)"
        );
        let field = format!("{}.allowedPaths", self.field(entry));
        self.refuse(&format!("AccessPolicy/{}", entry.policy), &field, reason);
        false
    }

    /// Where an entry stands in its policy.
    fn field(&self, entry: &Entry) -> String {
        let policies = &self.objects.access_policies;
        let policy = policies.iter().find(|policy| policy.id == entry.policy);
        let single = policy.is_some_and(|policy| policy.spec.config.authz.is_some());
        match (single, entry.index) {
            (true, 0) => "spec.config.authz".to_owned(),
            (true, at) => format!("spec.config.authzList[{}]", at - 1),
            (false, at) => format!("spec.config.authzList[{at}]"),
        }
    }

    fn host(&mut self, port: u16, pattern: &HostPattern, origins: Vec<Origin>) {
        let slug = format!("{port}-{pattern}");
        self.push_all(&slug, &pattern.to_string(), origins, false);
    }

    fn dry_run(&mut self) {
        if self.has_trial {
            let origins = std::mem::take(&mut self.trial);
            let what = "All rules as they would be with the dry-run entries";
            if origins.is_empty() {
                // Nobody would get through, and that is worth knowing too.
                self.push("dry-run", vec![format!("{what}: none")], Vec::new(), true);
            }
            self.push_all("dry-run", what, origins, true);
        }
    }

    fn push_all(&mut self, slug: &str, what: &str, origins: Vec<Origin>, dry_run: bool) {
        let mut rest = origins.into_iter().peekable();
        for part in 1.. {
            if rest.peek().is_none() {
                return;
            }
            let (mut rules, mut comments) = (Vec::new(), vec![format!("{what}:")]);
            for origin in rest.by_ref().take(MAX_RULES) {
                comments.push(format!("  rules[{}]: {}", rules.len(), origin.origin));
                rules.push(origin.rule);
            }
            let name = match part {
                1 => slug.to_owned(),
                part => format!("{slug}-{part}"),
            };
            self.push(&name, comments, rules, dry_run);
        }
    }

    fn push(&mut self, slug: &str, comments: Vec<String>, rules: Vec<Rule>, dry_run: bool) {
        let mut annotations = BTreeMap::new();
        if dry_run {
            annotations.insert(DRY_RUN.to_owned(), "true".to_owned());
        }
        let selector = Selector {
            match_labels: self.workload.labels.clone(),
        };
        let policy = AuthorizationPolicy {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            metadata: Metadata {
                name: object_name(self.id, slug, &self.workload.labels),
                namespace: self.workload.namespace.clone(),
                labels: managed_by(),
                annotations,
            },
            spec: Spec {
                selector,
                action: Action::Allow,
                provider: None,
                rules,
            },
        };
        self.out.policies.push(Document { comments, policy });
    }

    fn refuse(&mut self, object: &str, field: &str, reason: String) {
        self.out.problems.push(Problem {
            object: object.to_owned(),
            field: field.to_owned(),
            effect: Effect::Refused,
            reason,
        });
    }
}

/// By which the rendered objects are found again.
fn managed_by() -> BTreeMap<String, String> {
    BTreeMap::from([(
        "app.kubernetes.io/managed-by".to_owned(),
        "egressctl".to_owned(),
    )])
}

/// A name that Kubernetes takes, of which no two are the same: the digest tells gateways of other
/// namespaces, workloads, and hosts that read alike apart.
fn object_name(gateway: &ObjectName, slug: &str, labels: &BTreeMap<String, String>) -> String {
    use sha2::{Digest, Sha256};
    let readable = format!("{}-{slug}", gateway.name);
    let readable = readable.replace('*', "wildcard").replace('_', "-");
    let readable: String = readable.chars().take(230).collect();
    let whole = format!("{gateway} {slug} {labels:?}");
    let mut digest = String::new();
    for byte in &Sha256::digest(whole.as_bytes())[..4] {
        // Writing to a String can't fail.
        let _ = write!(digest, "{byte:02x}");
    }
    format!("{}-{digest}", readable.trim_end_matches(['.', '-']))
}

impl Document {
    /// As `kubectl apply` takes it.
    ///
    /// # Errors
    /// What serde says of an object that has no YAML form: none of these.
    pub fn yaml(&self) -> Result<String, serde_yaml_ng::Error> {
        let mut text = "---\n".to_owned();
        for comment in &self.comments {
            text.push_str("# ");
            text.push_str(comment);
            text.push('\n');
        }
        text.push_str(&serde_yaml_ng::to_string(&self.policy)?);
        Ok(text)
    }
}
