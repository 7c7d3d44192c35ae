//! Connections whose bytes a gateway passes on as they are.
//!
//! Clients that begin TLS themselves, and protocols that are no HTTP, still come to the gateway
//! inside the mesh's mutual TLS: so the gateway knows who asks. What it can't see is the request.
//!
//! * **Which ports.** Those of an external service with the protocol TLS or TCP, or HTTPS without
//!   `clientsideTls`. Like every other port they need `egressGatewayRoutes`. `clientsideTls` on a
//!   port of TLS or TCP is refused: the bytes are the client's, and the gateway adds nothing.
//! * **How a host is told.** By the server name (SNI) that the mesh's TLS asks the gateway for,
//!   which the client's side has to set to the outside host. It is compared like the host of a
//!   request: any case, the most specific pattern only. Nothing else tells where bytes
//!   should go: a connection without a server name is refused. This holds for plain TCP above all,
//!   which names nothing itself: two plain TCP services are told apart by nothing but that name.
//! * **Which port outside.** A server name names no port. So a host has one port of this kind on a
//!   gateway's listener; with more than one none is served. `portMatch` has no effect: the
//!   port outside is `number`.
//! * **Requests and bytes.** On one listener a host is served for requests or passed on, never
//!   both, since one TLS is terminated for either: where both are declared the requests stand and
//!   passing on is refused. The names of either kind hold against the wildcards of the other: the
//!   most specific of all patterns decides, and a request for a host that is passed on is refused.
//! * **Wildcards.** `*.example.com` is passed on to the server name itself. A bare `*` is refused:
//!   the gateway sees no certificate of the server, so any name could be pointed into the
//!   cluster, and with `*` the client picks the name. With a wildcard you trust whoever gives
//!   out names below it, with an exact name its owner.
//! * **Who is admitted.** By client and address of the connection. An entry that asks for methods,
//!   paths or headers admits no connection at all: nobody can see whether they hold.

use crate::api::external_service::{EgressGatewayRoutes, ExternalPort, PortProtocol};

use super::host::HostPattern;
use super::policy::{Passthrough, PassthroughRoute, Report};
use super::services::Carries;

/// Whether a port is declared as one whose bytes are passed on.
pub(super) fn is_declared(port: &ExternalPort) -> bool {
    match port.protocol {
        PortProtocol::Tls | PortProtocol::Tcp => true,
        PortProtocol::Https => port.clientside_tls.is_none(),
        PortProtocol::Http | PortProtocol::Http2 | PortProtocol::Grpc | PortProtocol::Mongo => {
            false
        }
    }
}

/// Checks a port that is passed on; none if it can't be served so. `wildcard` is the widest
/// wildcard among the hosts of its service.
pub(super) fn read_port(
    port: &ExternalPort,
    routes: &EgressGatewayRoutes,
    wildcard: Option<&HostPattern>,
    field: &str,
    report: &mut Report<'_>,
) -> Option<Carries> {
    if port.clientside_tls.is_some() {
        report.refused(
            format!("{field}.clientsideTls"),
            "the bytes of TLS and TCP are the client's own, and the gateway adds no TLS; remove it, \
             or declare HTTPS and let clients ask by HTTP",
        );
        return None;
    }
    if wildcard == Some(&HostPattern::Any) {
        report.refused(
            field,
            "`*` can't be passed on: the client picks the name, which may lead into the cluster, and \
             the gateway sees no certificate; name the hosts, or a domain as in `*.example.com`",
        );
        return None;
    }
    if routes.port_match.is_some_and(|asked| asked != port.number) {
        report.ignored(
            format!("{field}.egressGatewayRoutes.portMatch"),
            format!(
                "a server name names no port; what is passed on goes to port {}",
                port.number
            ),
        );
    }
    Some(Carries::Bytes)
}

/// The one route of a host that is passed on; none is served if several claim it.
pub(super) fn only(
    mut routes: Vec<PassthroughRoute>,
    pattern: &HostPattern,
    report: &mut Report<'_>,
) -> Passthrough {
    if routes.len() > 1 {
        report.refused(
            "spec.listeners",
            format!(
                "host `{pattern}` is passed on by server name, which tells no port, but {} claim it; \
                 none is served: leave one, or give the others to another gateway by \
                 `virtualGatewayRefs`",
                claims(&routes)
            ),
        );
        return Passthrough { served: None };
    }
    Passthrough {
        served: routes.pop(),
    }
}

/// Says that a host which is served for requests is not passed on.
pub(super) fn beside_requests(
    routes: &[PassthroughRoute],
    pattern: &HostPattern,
    report: &mut Report<'_>,
) {
    report.refused(
        "spec.listeners",
        format!(
            "host `{pattern}` is served for requests, so it is not passed on for {}; leave one kind, or \
             give one to another gateway by `virtualGatewayRefs`",
            claims(routes)
        ),
    );
}

fn claims(routes: &[PassthroughRoute]) -> String {
    let mut claims: Vec<String> = routes
        .iter()
        .map(|route| format!("port {} of {}", route.port, route.service))
        .collect();
    claims.sort();
    claims.join(", ")
}
