//! Why an entry of an access policy does not admit a request: for people who ask.

use super::access::{Connection, Request, failed_conditions, find_passthrough, find_route};
use super::policy::{Entry, GatewayPolicy, Rules};

/// An entry that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// `AccessPolicy/namespace/name#position`.
    pub entry: String,
    /// Its verdict is only reported.
    pub dry_run: bool,
    /// What does not hold, in the words of the object's fields; empty if it admits.
    pub failed: Vec<&'static str>,
}

/// The entries that a request meets, in their order; none where no rule was reached.
pub fn of_request(policy: &GatewayPolicy, request: &Request<'_>) -> Vec<Trial> {
    find_route(policy, request)
        .map(|route| trials(&route.rules, |entry| failed_conditions(entry, request)))
        .unwrap_or_default()
}

/// As [`of_request`].
pub fn of_connection(policy: &GatewayPolicy, connection: &Connection<'_>) -> Vec<Trial> {
    find_passthrough(policy, connection)
        .map(|route| {
            trials(&route.rules, |entry| {
                let mut failed = Vec::new();
                if !entry.clients.admits(connection.client) {
                    failed.push("allowedClients");
                }
                if !entry.holds_for(connection.client_ip) {
                    failed.push("allowedIpBlocks");
                }
                if entry.needs_http() {
                    failed
                        .push("allowedMethods, allowedPaths or headers, which nobody sees in TLS");
                }
                failed
            })
        })
        .unwrap_or_default()
}

/// The port outside to which a connection is passed on; none if it is not.
pub fn port_of_connection(policy: &GatewayPolicy, connection: &Connection<'_>) -> Option<u16> {
    let route = find_passthrough(policy, connection).ok()?;
    Some(route.port)
}

fn trials(rules: &Rules, failed: impl Fn(&Entry) -> Vec<&'static str>) -> Vec<Trial> {
    rules
        .entries()
        .map(|entry| Trial {
            entry: entry.label(),
            dry_run: entry.dry_run,
            failed: failed(entry),
        })
        .collect()
}
