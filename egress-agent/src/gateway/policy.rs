//! What the gateways enforce: one value from which both the decision and Envoy's configuration
//! are made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use super::host::{HostName, HostPattern};
use super::identity::SpiffeId;
use super::path::TextPattern;
pub use super::verdict::Rules;

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
}

impl ObjectName {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What happens to an exposed host that no external service names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutboundPolicy {
    /// It is refused.
    #[default]
    RegistryOnly,
    /// It is open to authenticated clients, by HTTPS on port 443.
    AllowAny,
}

/// The policy of every gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayPolicy {
    /// SPIFFE trust domain of the clients.
    pub trust_domain: String,
    pub gateways: BTreeMap<ObjectName, Gateway>,
}

/// One `VirtualGateway`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// By the port on which the gateway's pods listen.
    pub listeners: BTreeMap<u16, Listener>,
}

/// What one port of a gateway serves. A host that no key matches is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// Only the most specific pattern that matches the request's host counts, even where it
    /// serves nothing: a wildcard is no way around a name that is refused.
    pub hosts: BTreeMap<HostPattern, HostRoutes>,
    /// What is passed on as it is: by the server name that the gateway's own TLS was asked for. No
    /// pattern stands here and in `hosts`, and of both together the most specific one counts.
    pub passthrough: BTreeMap<HostPattern, Passthrough>,
}

/// From (listener, server name) to the outside, without a look at what is inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passthrough {
    /// None for a server name that is named but not served.
    pub served: Option<PassthroughRoute>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassthroughRoute {
    /// The `ExternalService`.
    pub service: ObjectName,
    /// None for a wildcard: the server name itself.
    pub host: Option<HostName>,
    /// Port of the outside host.
    pub port: u16,
    pub rules: Rules,
}

/// What a host pattern serves, by the port that the client names.
pub type HostRoutes = BTreeMap<u16, Route>;

/// From (listener, host, client's port) to the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The `ExternalService`; none for a host that is open by `ALLOW_ANY` alone.
    pub service: Option<ObjectName>,
    pub upstream: Upstream,
    pub rules: Rules,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// None for a wildcard: the request's own host.
    pub host: Option<HostName>,
    pub port: u16,
    pub http: UpstreamHttp,
    /// TLS that the gateway originates.
    pub tls: Option<UpstreamTls>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamHttp {
    Http1,
    Http2,
    /// Whichever the server picks by ALPN.
    Negotiated,
}

/// How the server of a route proves itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Server name to send; none for the request's own host.
    pub sni: Option<HostName>,
    /// Names of which the certificate must bear one; empty for the request's own host.
    pub subject_alt_names: Vec<String>,
}

/// One entry of an access policy: all conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub policy: ObjectName,
    /// Position: `authz` is 0, those of `authzList` follow.
    pub index: usize,
    pub clients: Clients,
    /// Empty is any.
    pub methods: BTreeSet<String>,
    /// Empty is any.
    pub paths: BTreeSet<TextPattern>,
    /// Empty is any.
    pub ip_blocks: BTreeSet<IpNet>,
    pub headers: Vec<HeaderCondition>,
    /// Reported, not enforced.
    pub dry_run: bool,
}

impl Entry {
    /// Whether it asks for what only a request has.
    pub fn needs_http(&self) -> bool {
        !self.methods.is_empty() || !self.paths.is_empty() || !self.headers.is_empty()
    }

    /// Name in access logs, such as `AccessPolicy/istio-egress/web#0`.
    pub fn label(&self) -> String {
        format!("AccessPolicy/{}#{}", self.policy, self.index)
    }
}

/// Which clients an entry admits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Every client with an identity of the trust domain.
    Every,
    /// These; nobody if empty.
    These(BTreeSet<SpiffeId>),
}

impl Clients {
    pub fn admits(&self, client: &SpiffeId) -> bool {
        match self {
            Self::Every => true,
            Self::These(ids) => ids.contains(client),
        }
    }
}

/// A header of the request; its name is in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderCondition {
    pub name: String,
    /// One must match; empty is no condition.
    pub values: Vec<TextPattern>,
    /// None may match.
    pub not_values: Vec<TextPattern>,
}

impl GatewayPolicy {
    /// Whether this service account can have any request admitted by this gateway. Conditions
    /// on the request itself are taken as fulfilled.
    pub fn may_use(&self, gateway: &ObjectName, client: &SpiffeId) -> bool {
        client.trust_domain() == self.trust_domain
            && self.gateways.get(gateway).is_some_and(|gateway| {
                gateway
                    .listeners
                    .values()
                    .any(|listener| listener.may_use(client))
            })
    }
}

impl GatewayPolicy {
    /// Every route's rules, with the `ExternalService` that it leads to.
    pub fn rules(&self) -> impl Iterator<Item = (Option<&ObjectName>, &Rules)> {
        let listeners = self
            .gateways
            .values()
            .flat_map(|gateway| gateway.listeners.values());
        listeners.flat_map(|listener| {
            let requests = listener.hosts.values().flat_map(BTreeMap::values);
            let requests = requests.map(|route| (route.service.as_ref(), &route.rules));
            let connections = listener
                .passthrough
                .values()
                .filter_map(|it| it.served.as_ref());
            requests.chain(connections.map(|route| (Some(&route.service), &route.rules)))
        })
    }

    /// Whether this service account can have any request admitted by any gateway.
    pub fn admits(&self, namespace: &str, service_account: &str) -> bool {
        SpiffeId::new(&self.trust_domain, namespace, service_account).is_ok_and(|client| {
            self.gateways
                .keys()
                .any(|gateway| self.may_use(gateway, &client))
        })
    }
}

impl Listener {
    fn may_use(&self, client: &SpiffeId) -> bool {
        let requests = self.hosts.values().flat_map(BTreeMap::values);
        let requests = requests.map(|route| (&route.rules, false));
        let connections = self
            .passthrough
            .values()
            .filter_map(|it| it.served.as_ref());
        let connections = connections.map(|route| (&route.rules, true));
        requests.chain(connections).any(|(rules, blind)| {
            !rules.closed
                || rules
                    .of_client(client)
                    .any(|entry| !(entry.dry_run || blind && entry.needs_http()))
        })
    }
}

/// Something in an object that can't be done as it is written. Of an `index::Problem` it differs in
/// what is refused: there the object as a whole, whose last good version stands; here the part that
/// the field is in, which then serves and admits nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// `Kind/namespace/name`.
    pub object: String,
    /// Path of the field in the object.
    pub field: String,
    pub effect: Effect,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// The part that holds the field is refused: it serves and admits nothing.
    Refused,
    /// The field has no effect.
    Ignored,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = match self.effect {
            Effect::Refused => "refused",
            Effect::Ignored => "ignored",
        };
        write!(
            f,
            "{} {} {effect}: {}",
            self.object, self.field, self.reason
        )
    }
}

/// Collects problems of one object.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) object: String,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Report<'_> {
    pub(super) fn refused(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.push(Effect::Refused, field.into(), reason.into());
    }

    pub(super) fn ignored(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.push(Effect::Ignored, field.into(), reason.into());
    }

    /// Reports fields without a type; true if there are any.
    pub(super) fn unsupported(&mut self, prefix: &str, other: &crate::api::Unsupported) -> bool {
        for field in other.keys() {
            let path = if prefix.is_empty() {
                field.clone()
            } else {
                format!("{prefix}.{field}")
            };
            self.refused(path, "not supported; remove it");
        }
        !other.is_empty()
    }

    fn push(&mut self, effect: Effect, field: String, reason: String) {
        let problem = Problem {
            object: self.object.clone(),
            field,
            effect,
            reason,
        };
        self.problems.push(problem);
    }
}
