//! Objects to gateway policy. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::virtual_gateway::{Listener as ListenerSpec, TlsMode};

use super::host::HostPattern;
use super::identity::check_trust_domain;
use super::policy::{
    Effect, Gateway, GatewayPolicy, HostRoutes, Listener, ObjectName, Passthrough,
    PassthroughRoute, Problem, Report, Route, Rules,
};
use super::rules;
use super::services::{self, Port, Service};
use super::{GatewayObject, GatewayObjects, passthrough};

/// Compiles the policy of every gateway, with what could not be done as written, sorted.
pub fn compile(objects: &GatewayObjects<'_>) -> (GatewayPolicy, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut policy = GatewayPolicy {
        trust_domain: objects.trust_domain.clone(),
        gateways: BTreeMap::new(),
    };
    if let Err(error) = check_trust_domain(&objects.trust_domain) {
        problems.push(Problem {
            object: "setting".to_owned(),
            field: "trust-domain".to_owned(),
            effect: Effect::Refused,
            reason: format!("{error}; no gateway is configured"),
        });
        return (policy, problems);
    }
    let mut services = read_services(objects, &mut problems);
    let policies = rules::read(objects, &services, &mut problems);
    for service in &mut services {
        rules::fill_in(&policies, service);
    }
    let registry = Registry {
        objects,
        services: &services,
    };
    for gateway in &objects.gateways {
        let id = gateway.id.clone();
        let mut report = Report {
            object: format!("VirtualGateway/{id}"),
            problems: &mut problems,
        };
        let compiled = registry.gateway(&id, gateway, &mut report);
        policy.gateways.insert(id, compiled);
    }
    problems.sort();
    problems.dedup();
    (policy, problems)
}

fn read_services(objects: &GatewayObjects<'_>, problems: &mut Vec<Problem>) -> Vec<Service> {
    let mut services: Vec<Service> = objects
        .external_services
        .iter()
        .map(|object| services::read(object, objects, problems))
        .collect();
    services.sort_by(|a, b| a.id.cmp(&b.id));
    services
}

struct Registry<'a> {
    objects: &'a GatewayObjects<'a>,
    services: &'a [Service],
}

impl Registry<'_> {
    fn gateway(
        &self,
        id: &ObjectName,
        gateway: &GatewayObject<'_>,
        report: &mut Report<'_>,
    ) -> Gateway {
        let spec = gateway.spec;
        let refused = report.unsupported("spec", &spec.other);
        let mut compiled = Gateway::default();
        for (index, listener) in spec.listeners.iter().enumerate() {
            let field = format!("spec.listeners[{index}]");
            let Some(exposed) = read_listener(listener, &field, report) else {
                continue;
            };
            let exposed = if refused { BTreeSet::new() } else { exposed };
            let number = listener.port.number;
            let own = BTreeSet::from([number]);
            let ports = gateway.target_ports.get(&number).unwrap_or(&own);
            for &port in ports.iter().filter(|&&port| port != 0) {
                if compiled.listeners.contains_key(&port) {
                    report.refused(
                        format!("{field}.port"),
                        format!("another listener has port {port} of the gateway's pods already"),
                    );
                    continue;
                }
                compiled
                    .listeners
                    .insert(port, self.listener(id, &exposed, report));
            }
        }
        compiled
    }

    fn listener(
        &self,
        gateway: &ObjectName,
        exposed: &BTreeSet<HostPattern>,
        report: &mut Report<'_>,
    ) -> Listener {
        // Patterns are nested or apart. So the most specific one that matches a host, of those
        // that services or the listener name, stands for all that match it.
        let named = self.services.iter().flat_map(|service| &service.hosts);
        let patterns: BTreeSet<&HostPattern> = named.chain(exposed).collect();
        let mut compiled = Listener::default();
        for pattern in patterns {
            if !exposed.iter().any(|exposure| exposure.covers(pattern)) {
                continue;
            }
            match self.named(gateway, pattern, report) {
                Named::Requests(routes) => _ = compiled.hosts.insert(pattern.clone(), routes),
                Named::PassedOn(route) => {
                    _ = compiled.passthrough.insert(pattern.clone(), route);
                }
            }
        }
        compiled
    }

    /// What a gateway serves for hosts of a pattern that it exposes.
    fn named(&self, gateway: &ObjectName, pattern: &HostPattern, report: &mut Report<'_>) -> Named {
        let named = self.services.iter().flat_map(|service| &service.hosts);
        let Some(owner) = named.filter(|host| host.covers(pattern)).min() else {
            let upstream = services::any_host(self.objects.outbound, pattern);
            let open = |upstream| Route {
                service: None,
                upstream,
                rules: Rules::default(),
            };
            return Named::Requests(
                upstream
                    .map(open)
                    .map(|route| (80, route))
                    .into_iter()
                    .collect(),
            );
        };
        let owners: Vec<&Service> = self
            .services
            .iter()
            .filter(|service| service.hosts.contains(owner))
            .collect();
        let mut routes = HostRoutes::new();
        let mut twice = BTreeSet::new();
        let mut passed_on = Vec::new();
        for &service in &owners {
            for port in service
                .ports
                .iter()
                .filter(|port| port.is_served_by(gateway))
            {
                let rules = port.rules.clone();
                let Some(upstream) = port.upstream(pattern) else {
                    passed_on.push(PassthroughRoute {
                        service: service.id.clone(),
                        host: pattern.name().cloned(),
                        port: port.number,
                        rules,
                    });
                    continue;
                };
                let route = Route {
                    service: Some(service.id.clone()),
                    upstream,
                    rules,
                };
                if routes.insert(port.asked, route).is_some() {
                    twice.insert(port.asked);
                }
            }
        }
        if routes.is_empty() && !passed_on.is_empty() {
            return Named::PassedOn(passthrough::only(passed_on, pattern, report));
        }
        if !passed_on.is_empty() {
            passthrough::beside_requests(&passed_on, pattern, report);
        }
        for client_port in twice {
            routes.remove(&client_port);
            let claims: BTreeSet<String> = owners
                .iter()
                .map(|service| service.id.to_string())
                .collect();
            let claims = claims.into_iter().collect::<Vec<_>>().join(", ");
            report.refused(
                "spec.listeners",
                format!(
                    "host `{pattern}`, client port {client_port}: more than one port of the external services \
                      {claims} claim it, so none is served; leave one"
                ),
            );
        }
        Named::Requests(routes)
    }
}

/// What a listener takes in for a host that is named.
enum Named {
    Requests(HostRoutes),
    PassedOn(Passthrough),
}

impl Port {
    fn is_served_by(&self, gateway: &ObjectName) -> bool {
        self.gateways.is_empty() || self.gateways.contains(gateway)
    }
}

/// The hosts that a listener exposes; none if it can't be had at all.
fn read_listener(
    listener: &ListenerSpec,
    field: &str,
    report: &mut Report<'_>,
) -> Option<BTreeSet<HostPattern>> {
    let mode = listener.tls.as_ref().map(|tls| tls.mode);
    if !matches!(mode, Some(TlsMode::IstioMutual | TlsMode::Mutual)) {
        report.refused(
            format!("{field}.tls.mode"),
            "only ISTIO_MUTUAL and MUTUAL: without a client certificate nobody knows who asks",
        );
        return None;
    }
    if listener.port.number == 0 {
        report.refused(
            format!("{field}.port.number"),
            "a port from 1 to 65535 is needed",
        );
        return None;
    }
    let mut other = listener.other.clone();
    // Gloo's listeners say so what every listener here is.
    if other
        .get("http")
        .is_some_and(|http| http.as_object().is_some_and(serde_json::Map::is_empty))
    {
        other.remove("http");
    }
    let mut refused = report.unsupported(field, &other);
    if let Some(tls) = &listener.tls {
        refused |= report.unsupported(&format!("{field}.tls"), &tls.other);
    }
    let mut exposed = BTreeSet::new();
    for (at, service) in listener.exposed_external_services.iter().enumerate() {
        let field = format!("{field}.exposedExternalServices[{at}]");
        if report.unsupported(&field, &service.other) {
            continue;
        }
        match HostPattern::parse(&service.host) {
            Ok(pattern) => _ = exposed.insert(pattern),
            Err(error) => report.refused(format!("{field}.host"), error.to_string()),
        }
    }
    if refused {
        exposed.clear();
    }
    Some(exposed)
}
