//! The decision about one request.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

pub use super::decision::{AccessReason, Decision};
use super::host::{HostName, HostPattern, split_authority};
use super::identity::SpiffeId;
use super::path::{TextPattern, is_refused, normalize, normalize_again};
use super::policy::{
    Entry, GatewayPolicy, HeaderCondition, HostRoutes, Listener, ObjectName, PassthroughRoute,
    Route,
};

/// A request as it reached a gateway.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub gateway: &'a ObjectName,
    /// Port of the gateway's pod on which it arrived.
    pub listener: u16,
    /// Identity that the gateway verified.
    pub client: &'a SpiffeId,
    /// Address of the connection, not of a header.
    pub client_ip: IpAddr,
    /// `Host` or `:authority`: a host, maybe with the port that the client asked for.
    pub authority: &'a str,
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// The path is as a gateway passes it on, not as the client sent it.
    pub normalized: bool,
    /// Names in lower case. A name that comes more than once has several values, each for itself;
    /// a comma inside a value separates nothing.
    pub headers: &'a [(&'a str, &'a str)],
}

/// A connection whose own TLS a gateway would pass on as it is.
#[derive(Clone, Debug)]
pub struct Connection<'a> {
    pub gateway: &'a ObjectName,
    /// Port of the gateway's pod on which it arrived.
    pub listener: u16,
    /// Identity that the gateway verified.
    pub client: &'a SpiffeId,
    /// Address of the connection.
    pub client_ip: IpAddr,
    /// Server name that the gateway's TLS was asked for.
    pub sni: &'a str,
}

/// How the lines of one header reached us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderLines {
    /// Each for itself.
    #[default]
    Apart,
    /// Joined by commas, as HTTP allows: nobody can tell them from commas inside a line.
    Joined,
}

/// Decides as the rendered Envoy does.
pub fn decide_access(policy: &GatewayPolicy, request: &Request<'_>) -> Decision {
    decide_access_with(policy, request, HeaderLines::Apart)
}

/// The same, where headers may have been joined. Then `values` must match all of it, and
/// `notValues` neither all of it nor a part: in doubt less is admitted.
pub fn decide_access_with(
    policy: &GatewayPolicy,
    request: &Request<'_>,
    lines: HeaderLines,
) -> Decision {
    match find_route(policy, request) {
        Ok(route) => decide_route(route, request, lines),
        Err(reason) => Decision::refused(reason),
    }
}

/// Decides about a connection as the rendered Envoy does: by client, address and server name. An
/// entry that asks for more (methods, paths, headers) admits no connection: nobody can see them.
pub fn decide_connection(policy: &GatewayPolicy, connection: &Connection<'_>) -> Decision {
    match find_passthrough(policy, connection) {
        Ok(route) => decide_passthrough(route, connection),
        Err(reason) => Decision::refused(reason),
    }
}

pub(super) fn find_passthrough<'a>(
    policy: &'a GatewayPolicy,
    connection: &Connection<'_>,
) -> Result<&'a PassthroughRoute, AccessReason> {
    if connection.client.trust_domain() != policy.trust_domain {
        return Err(AccessReason::TrustDomain);
    }
    let listener = policy
        .gateways
        .get(connection.gateway)
        .and_then(|gateway| gateway.listeners.get(&connection.listener))
        .ok_or(AccessReason::NoListener)?;
    // Envoy compares server names as they are; RFC 6066 has them without the dot.
    if connection.sni.ends_with('.') {
        return Err(AccessReason::BadHost);
    }
    let host = HostName::of_request(connection.sni).map_err(|_| AccessReason::BadHost)?;
    let (pattern, found) = lookup(&listener.passthrough, &host).ok_or(AccessReason::UnknownHost)?;
    // Of a host that is served for requests the gateway expects requests.
    if is_narrower(&listener.hosts, &host, pattern) {
        return Err(AccessReason::UnknownHost);
    }
    found.served.as_ref().ok_or(AccessReason::UnknownHost)
}

fn decide_passthrough(route: &PassthroughRoute, connection: &Connection<'_>) -> Decision {
    let holds = |entry: &Entry| !entry.needs_http() && entry.holds_for(connection.client_ip);
    let verdict = route.rules.ask(connection.client, holds);
    Decision::of(&route.rules, Some(&route.service), &verdict)
}

pub(super) fn find_route<'a>(
    policy: &'a GatewayPolicy,
    request: &Request<'_>,
) -> Result<&'a Route, AccessReason> {
    if request.client.trust_domain() != policy.trust_domain {
        return Err(AccessReason::TrustDomain);
    }
    let listener = policy
        .gateways
        .get(request.gateway)
        .and_then(|gateway| gateway.listeners.get(&request.listener))
        .ok_or(AccessReason::NoListener)?;
    let (host, port) = split_authority(request.authority).map_err(|_| AccessReason::BadHost)?;
    if is_refused(request.path) {
        return Err(AccessReason::BadPath);
    }
    let (pattern, routes) = lookup(&listener.hosts, &host).ok_or(AccessReason::UnknownHost)?;
    if routes.is_empty() || is_narrower(&listener.passthrough, &host, pattern) {
        return Err(AccessReason::UnknownHost);
    }
    routes.get(&port).ok_or(AccessReason::UnknownPort)
}

impl Listener {
    /// What is served for a host, by the port that clients name; none for a host it does not know.
    pub fn routes_of(&self, host: &str) -> Option<&HostRoutes> {
        let host = HostName::of_request(host).ok()?;
        lookup(&self.hosts, &host).map(|(_, routes)| routes)
    }
}

/// The most specific pattern that matches, and what it stands for.
fn lookup<'a, T>(
    hosts: &'a BTreeMap<HostPattern, T>,
    host: &HostName,
) -> Option<(&'a HostPattern, &'a T)> {
    if let Some(exact) = hosts.get_key_value(&HostPattern::Exact(host.clone())) {
        return Some(exact);
    }
    // The longest parent first.
    let mut rest = host.as_str();
    while let Some((_, parent)) = rest.split_once('.') {
        let below = HostName::parent(parent).map(HostPattern::Below);
        if let Some(found) = below.and_then(|below| hosts.get_key_value(&below)) {
            return Some(found);
        }
        rest = parent;
    }
    hosts.get_key_value(&HostPattern::Any)
}

/// Whether a narrower pattern than this one names the host there.
fn is_narrower<T>(there: &BTreeMap<HostPattern, T>, host: &HostName, than: &HostPattern) -> bool {
    !there.is_empty() && lookup(there, host).is_some_and(|(pattern, _)| pattern < than)
}

fn decide_route(route: &Route, request: &Request<'_>, lines: HeaderLines) -> Decision {
    // Most entries don't ask for it.
    let path = LazyCell::new(|| read_path(request));
    let holds = |entry: &Entry| {
        let path = if entry.paths.is_empty() {
            None
        } else {
            path.as_deref()
        };
        conditions_hold(entry, request, path, lines)
    };
    let verdict = route.rules.ask(request.client, holds);
    Decision::of(&route.rules, route.service.as_ref(), &verdict)
}

/// The path in the form in which it is compared.
fn read_path(request: &Request<'_>) -> Option<String> {
    if request.normalized {
        normalize_again(request.path)
    } else {
        normalize(request.path)
    }
}

/// Whether all conditions of an entry hold but that on the client.
fn conditions_hold(
    entry: &Entry,
    request: &Request<'_>,
    path: Option<&str>,
    lines: HeaderLines,
) -> bool {
    let paths = || path.is_some_and(|path| entry.paths.iter().any(|pattern| pattern.matches(path)));
    (entry.methods.is_empty() || entry.methods.contains(request.method))
        && entry.holds_for(request.client_ip)
        && (entry.paths.is_empty() || paths())
        && entry
            .headers
            .iter()
            .all(|condition| header_holds(condition, request.headers, lines))
}

/// The fields of an entry that don't hold for a request, as objects name them.
pub(super) fn failed_conditions(entry: &Entry, request: &Request<'_>) -> Vec<&'static str> {
    let path = read_path(request);
    let path = |pattern: &TextPattern| path.as_ref().is_some_and(|path| pattern.matches(path));
    let lines = HeaderLines::Apart;
    let holds = [
        ("allowedClients", entry.clients.admits(request.client)),
        (
            "allowedMethods",
            entry.methods.is_empty() || entry.methods.contains(request.method),
        ),
        (
            "allowedPaths",
            entry.paths.is_empty() || entry.paths.iter().any(path),
        ),
        ("allowedIpBlocks", entry.holds_for(request.client_ip)),
        (
            "match.request.headers",
            entry
                .headers
                .iter()
                .all(|condition| header_holds(condition, request.headers, lines)),
        ),
    ];
    holds
        .into_iter()
        .filter(|(_, holds)| !holds)
        .map(|(name, _)| name)
        .collect()
}

impl Entry {
    pub(super) fn holds_for(&self, client: IpAddr) -> bool {
        let client = unmapped(client);
        self.ip_blocks.is_empty() || self.ip_blocks.iter().any(|block| block.contains(&client))
    }
}

/// `::ffff:10.0.0.1` is 10.0.0.1.
fn unmapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

fn header_holds(condition: &HeaderCondition, headers: &[(&str, &str)], lines: HeaderLines) -> bool {
    let values = || {
        headers
            .iter()
            .filter(|(name, _)| *name == condition.name)
            .map(|(_, value)| *value)
    };
    let any = |patterns: &[TextPattern], value: &str| {
        patterns.iter().any(|pattern| pattern.matches(value))
    };
    let forbidden = |value: &str| {
        let part = |part: &str| any(&condition.not_values, part.trim_matches([' ', '\t']));
        any(&condition.not_values, value)
            || (lines == HeaderLines::Joined && value.split(',').any(part))
    };
    (condition.values.is_empty() || values().any(|value| any(&condition.values, value)))
        && !values().any(forbidden)
}
