//! External services to routes: which hosts, on which ports, and how the gateway reaches them.

use std::collections::BTreeMap;

use crate::api::ExternalServiceSpec;
use crate::api::external_service::{ClientsideTls, ExternalPort, PortProtocol};

use super::host::{HostName, HostPattern};
use super::policy::{
    ObjectName, OutboundPolicy, Problem, Report, Rules, Upstream, UpstreamHttp, UpstreamTls,
};
use super::{Declared, GatewayObjects, passthrough};

/// An external service with what of it can be served.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) id: ObjectName,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) hosts: Vec<HostPattern>,
    /// Every declared port, for what access policies name.
    pub(super) declared: Vec<(u16, Option<String>)>,
    pub(super) ports: Vec<Port>,
}

/// A port that gateways serve.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) name: Option<String>,
    /// Port that clients ask for.
    pub(super) asked: u16,
    /// Gateways that serve it; empty is every gateway that exposes the host.
    pub(super) gateways: Vec<ObjectName>,
    pub(super) carries: Carries,
    /// Filled in once access policies are read.
    pub(super) rules: Rules,
}

/// What a gateway takes in for a port.
#[derive(Clone, Debug)]
pub(super) enum Carries {
    /// Requests, and how they go on.
    Requests(UpstreamHttp, Option<UpstreamTls>),
    /// Bytes of the client, passed on as they are.
    Bytes,
}

impl Port {
    /// Where a request for a host of this pattern goes; none for a port that takes no requests.
    pub(super) fn upstream(&self, pattern: &HostPattern) -> Option<Upstream> {
        let Carries::Requests(http, tls) = &self.carries else {
            return None;
        };
        Some(Upstream {
            host: pattern.name().cloned(),
            port: self.number,
            http: *http,
            tls: tls.clone(),
        })
    }
}

/// Where an exposed host goes that no external service names: by TLS, since a certificate is the
/// only proof that its name does not lead back into the cluster.
pub(super) fn any_host(outbound: OutboundPolicy, pattern: &HostPattern) -> Option<Upstream> {
    (outbound == OutboundPolicy::AllowAny).then(|| Upstream {
        host: pattern.name().cloned(),
        port: 443,
        http: UpstreamHttp::Negotiated,
        tls: Some(UpstreamTls::default()),
    })
}

/// Reads one external service. What can't be served is reported; its hosts stay named, so that
/// no wildcard serves them instead.
pub(super) fn read(
    object: &Declared<'_, ExternalServiceSpec>,
    objects: &GatewayObjects<'_>,
    problems: &mut Vec<Problem>,
) -> Service {
    let id = object.id.clone();
    let mut report = Report {
        object: format!("ExternalService/{id}"),
        problems,
    };
    let spec = object.spec;
    let mut refused = report.unsupported("spec", &spec.other);
    if !spec.addresses.is_empty() {
        report.refused(
            "spec.addresses",
            "external services by address are not supported yet; name them under `hosts`",
        );
        refused = true;
    }
    let mut hosts = Vec::new();
    for (index, text) in spec.hosts.iter().enumerate() {
        match HostPattern::parse(text) {
            Ok(pattern) => hosts.push(pattern),
            Err(error) => report.refused(format!("spec.hosts[{index}]"), error.to_string()),
        }
    }
    let wildcard = hosts.iter().max();
    let wildcard = wildcard.filter(|host| host.is_wildcard());
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        if let Some(port) = read_port(port, &id, objects, wildcard, &field, &mut report) {
            ports.push(port);
        }
    }
    if refused {
        ports.clear();
    }
    Service {
        id,
        labels: object.labels.cloned().unwrap_or_default(),
        hosts,
        declared: spec
            .ports
            .iter()
            .map(|port| (port.number, port.name.clone()))
            .collect(),
        ports,
    }
}

fn read_port(
    port: &ExternalPort,
    id: &ObjectName,
    objects: &GatewayObjects<'_>,
    wildcard: Option<&HostPattern>,
    field: &str,
    report: &mut Report<'_>,
) -> Option<Port> {
    let routes = port.egress_gateway_routes.as_ref();
    let mut bad = report.unsupported(field, &port.other);
    if let Some(tls) = &port.clientside_tls {
        bad |= report.unsupported(&format!("{field}.clientsideTls"), &tls.other);
    }
    if let Some(routes) = routes {
        let field = format!("{field}.egressGatewayRoutes");
        bad |= report.unsupported(&field, &routes.other);
        for (at, gateway) in routes.virtual_gateway_refs.iter().enumerate() {
            bad |= report.unsupported(&format!("{field}.virtualGatewayRefs[{at}]"), &gateway.other);
        }
    }
    let Some(routes) = routes else {
        report.ignored(
            field,
            "no gateway serves it: it has no `egressGatewayRoutes`",
        );
        return None;
    };
    if port.number == 0 || routes.port_match == Some(0) {
        report.refused(field, "`number` and `portMatch` are from 1 to 65535");
        bad = true;
    }
    let carries = if passthrough::is_declared(port) {
        passthrough::read_port(port, routes, wildcard, field, report)
    } else {
        read_requests(port, wildcard.is_some(), field, report)
    };
    let gateways: Vec<ObjectName> = routes
        .virtual_gateway_refs
        .iter()
        // References to other clusters are for their own agents.
        .filter(|gateway| {
            !gateway
                .cluster
                .as_deref()
                .is_some_and(|name| objects.is_foreign(name))
        })
        .map(|gateway| ObjectName {
            namespace: gateway
                .namespace
                .clone()
                .unwrap_or_else(|| id.namespace.clone()),
            name: gateway.name.clone(),
        })
        .collect();
    if gateways.is_empty() && !routes.virtual_gateway_refs.is_empty() {
        report.ignored(
            format!("{field}.egressGatewayRoutes.virtualGatewayRefs"),
            format!("none is of this cluster (`{}`)", objects.cluster_name()),
        );
        return None;
    }
    let carries = carries?;
    (!bad).then(|| Port {
        number: port.number,
        name: port.name.clone(),
        asked: routes.port_match.unwrap_or(80),
        gateways,
        carries,
        rules: Rules::nobody(),
    })
}

fn read_requests(
    port: &ExternalPort,
    wildcard: bool,
    field: &str,
    report: &mut Report<'_>,
) -> Option<Carries> {
    let http = match port.protocol {
        PortProtocol::Http => UpstreamHttp::Http1,
        PortProtocol::Http2 | PortProtocol::Grpc => UpstreamHttp::Http2,
        PortProtocol::Https => UpstreamHttp::Negotiated,
        PortProtocol::Tcp | PortProtocol::Tls | PortProtocol::Mongo => {
            report.refused(
                format!("{field}.protocol"),
                "it is not supported: gateways serve HTTP, HTTP2, GRPC, HTTPS, TLS and TCP",
            );
            return None;
        }
    };
    let Some(tls) = &port.clientside_tls else {
        if wildcard {
            report.refused(
                format!("{field}.clientsideTls"),
                "a wildcard host needs TLS to the outside: whoever owns a name below it could point \
                 it into the cluster, and only a certificate shows that it is not",
            );
            return None;
        }
        return Some(Carries::Requests(http, None));
    };
    let tls = read_tls(tls, wildcard, field, report)?;
    Some(Carries::Requests(http, Some(tls)))
}

fn read_tls(
    tls: &ClientsideTls,
    wildcard: bool,
    field: &str,
    report: &mut Report<'_>,
) -> Option<UpstreamTls> {
    if wildcard && (tls.sni.is_some() || !tls.subject_alt_names.is_empty()) {
        report.refused(
            format!("{field}.clientsideTls"),
            "`sni` and `subjectAltNames` can't be set for a wildcard host: \
             each name under it proves itself",
        );
        return None;
    }
    let sni = match tls.sni.as_deref().map(HostName::parse) {
        Some(Err(error)) => {
            report.refused(format!("{field}.clientsideTls.sni"), error.to_string());
            return None;
        }
        Some(Ok(sni)) => Some(sni),
        None => None,
    };
    if tls.subject_alt_names.iter().any(String::is_empty) {
        report.refused(
            format!("{field}.clientsideTls.subjectAltNames"),
            "a name is empty",
        );
        return None;
    }
    Some(UpstreamTls {
        sni,
        subject_alt_names: tls.subject_alt_names.clone(),
    })
}
