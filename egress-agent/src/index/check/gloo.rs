//! The three kinds that share their `spec` with Gloo Mesh: fields that nothing here acts on.
//! They are ignored where that allows nothing more, and refuse the object where it would.

use crate::api::access_policy::{AccessConfig, Authz};
use crate::api::{
    AccessPolicySpec, ExternalServiceSpec, ObjectSelector, Unsupported, VirtualGatewaySpec,
};
use crate::index::Finding;

struct Fields(Vec<Finding>);

impl Fields {
    /// Fields without bearing on who may go where.
    fn ignore(&mut self, at: &str, other: &Unsupported) {
        for name in other.keys() {
            self.0.push(Finding::ignored(
                path(at, name),
                "is not supported and has no effect",
            ));
        }
    }

    /// Fields that may narrow what the object allows.
    fn refuse(&mut self, at: &str, other: &Unsupported) {
        for name in other.keys() {
            self.0.push(Finding::refused(
                path(at, name),
                "is not supported, and without it the object could allow more than it says; \
                 remove it",
            ));
        }
    }

    fn wrong(&mut self, field: String, reason: impl Into<String>) {
        self.0.push(Finding::refused(field, reason));
    }

    fn selector(&mut self, at: &str, selector: &ObjectSelector) {
        self.refuse(at, &selector.other);
    }
}

fn path(at: &str, name: &str) -> String {
    if at.is_empty() {
        name.to_owned()
    } else {
        format!("{at}.{name}")
    }
}

pub(in crate::index) fn virtual_gateway(spec: &VirtualGatewaySpec) -> Vec<Finding> {
    let mut fields = Fields(Vec::new());
    fields.ignore("spec", &spec.other);
    if spec.workloads.is_empty() {
        let reason = "no workloads: the gateway has no pods";
        fields.0.push(Finding::ignored("spec.workloads", reason));
    }
    for (i, workload) in spec.workloads.iter().enumerate() {
        let at = format!("spec.workloads[{i}]");
        fields.refuse(&at, &workload.other);
        fields.selector(&format!("{at}.selector"), &workload.selector);
        if workload.selector.labels.is_empty() {
            fields.0.push(Finding::ignored(
                format!("{at}.selector.labels"),
                "selects no pod without labels; name the labels of the gateway's pods",
            ));
        }
        if workload.selector.name.is_some() {
            fields.wrong(
                format!("{at}.selector.name"),
                "pods are selected by labels; remove the name",
            );
        }
    }
    for (i, listener) in spec.listeners.iter().enumerate() {
        let at = format!("spec.listeners[{i}]");
        fields.ignore(&at, &listener.other);
        fields.ignore(&format!("{at}.port"), &listener.port.other);
        if listener.port.number == 0 {
            fields.wrong(format!("{at}.port.number"), "must be a port (1 to 65535)");
        }
        if let Some(tls) = &listener.tls {
            fields.refuse(&format!("{at}.tls"), &tls.other);
        }
        for (j, exposed) in listener.exposed_external_services.iter().enumerate() {
            let at = format!("{at}.exposedExternalServices[{j}]");
            fields.refuse(&at, &exposed.other);
            if let Some(reason) = bad_host(&exposed.host) {
                fields.wrong(format!("{at}.host"), reason);
            }
        }
    }
    fields.0
}

pub(in crate::index) fn external_service(spec: &ExternalServiceSpec) -> Vec<Finding> {
    let mut fields = Fields(Vec::new());
    fields.ignore("spec", &spec.other);
    match (spec.hosts.is_empty(), spec.addresses.is_empty()) {
        (true, true) => fields.wrong("spec.hosts".into(), "needs hosts, or else addresses"),
        (false, false) => fields.wrong("spec.addresses".into(), "go without hosts; remove one"),
        _ => {}
    }
    for (i, host) in spec.hosts.iter().enumerate() {
        if let Some(reason) = bad_host(host) {
            fields.wrong(format!("spec.hosts[{i}]"), reason);
        }
    }
    for (i, address) in spec.addresses.iter().enumerate() {
        let net = address.parse::<ipnet::IpNet>().is_ok();
        if !net && address.parse::<std::net::IpAddr>().is_err() {
            let reason = format!("`{address}` is neither an address nor a CIDR");
            fields.wrong(format!("spec.addresses[{i}]"), reason);
        }
    }
    for (i, port) in spec.ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        fields.ignore(&at, &port.other);
        if port.number == 0 {
            fields.wrong(format!("{at}.number"), "must be a port (1 to 65535)");
        }
        if let Some(tls) = &port.clientside_tls {
            fields.refuse(&format!("{at}.clientsideTls"), &tls.other);
        }
        if let Some(routes) = &port.egress_gateway_routes {
            let at = format!("{at}.egressGatewayRoutes");
            fields.ignore(&at, &routes.other);
            for (j, gateway) in routes.virtual_gateway_refs.iter().enumerate() {
                // With a namespace misspelt it would name another gateway.
                fields.refuse(&format!("{at}.virtualGatewayRefs[{j}]"), &gateway.other);
            }
            if routes.port_match == Some(0) {
                fields.wrong(format!("{at}.portMatch"), "must be a port (1 to 65535)");
            }
        }
    }
    fields.0
}

/// A wildcard stands for whole labels and only in front.
fn bad_host(host: &str) -> Option<String> {
    let name = host
        .strip_prefix("*.")
        .unwrap_or(host)
        .trim_end_matches('.');
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let labels_good = name
        .split('.')
        .all(|l| !l.is_empty() && l.len() <= 63 && l.chars().all(good));
    (host != "*" && !(labels_good && name.len() <= 253))
        .then(|| format!("`{host}` is no host name; a wildcard is `*.` in front of one"))
}

pub(in crate::index) fn access_policy(spec: &AccessPolicySpec) -> Vec<Finding> {
    let mut fields = Fields(Vec::new());
    fields.refuse("spec", &spec.other);
    for (i, destination) in spec.apply_to_destinations.iter().enumerate() {
        let at = format!("spec.applyToDestinations[{i}]");
        fields.refuse(&at, &destination.other);
        fields.selector(&format!("{at}.selector"), &destination.selector);
        if let Some(port) = &destination.port {
            fields.refuse(&format!("{at}.port"), &port.other);
        }
        let kind = &destination.kind;
        if matches!(kind.as_str(), "SERVICE" | "VIRTUAL_DESTINATION") {
            let reason = "egress gateways know EXTERNAL_SERVICE only";
            fields
                .0
                .push(Finding::ignored(format!("{at}.kind"), reason));
        } else if kind != "EXTERNAL_SERVICE" {
            let reason = format!("`{kind}` is not supported; write EXTERNAL_SERVICE");
            fields.wrong(format!("{at}.kind"), reason);
        }
    }
    for (i, workload) in spec.apply_to_workloads.iter().enumerate() {
        let at = format!("spec.applyToWorkloads[{i}]");
        fields.refuse(&at, &workload.other);
        fields.selector(&format!("{at}.selector"), &workload.selector);
    }
    config(&spec.config, &mut fields);
    fields.0
}

fn config(config: &AccessConfig, fields: &mut Fields) {
    for (name, value) in &config.other {
        let field = format!("spec.config.{name}");
        // Listeners of an egress gateway require mutual TLS anyway, and these hold no condition.
        let harmless = match name.as_str() {
            "authn" => value.get("tlsMode").and_then(|mode| mode.as_str()) == Some("STRICT"),
            "enforcementLayers" => true,
            _ => false,
        };
        if harmless {
            fields.0.push(Finding::ignored(field, "has no effect here"));
        } else {
            fields.wrong(field, "is not supported, and may be a condition; remove it");
        }
    }
    if config.authz.is_some() && !config.authz_list.is_empty() {
        fields.wrong(
            "spec.config.authzList".into(),
            "goes without `authz`; remove one",
        );
    }
    if let Some(entry) = &config.authz {
        authz(entry, "spec.config.authz", fields);
    }
    for (i, entry) in config.authz_list.iter().enumerate() {
        authz(entry, &format!("spec.config.authzList[{i}]"), fields);
    }
}

fn authz(entry: &Authz, at: &str, fields: &mut Fields) {
    fields.refuse(at, &entry.other);
    for (i, client) in entry.allowed_clients.iter().enumerate() {
        let at = format!("{at}.allowedClients[{i}]");
        fields.refuse(&at, &client.other);
        fields.selector(
            &format!("{at}.serviceAccountSelector"),
            &client.service_account_selector,
        );
    }
    for (i, block) in entry.allowed_ip_blocks.iter().enumerate() {
        let net = block.parse::<ipnet::IpNet>().is_ok();
        if !net && block.parse::<std::net::IpAddr>().is_err() {
            let reason = format!("`{block}` is neither an address nor a CIDR");
            fields.wrong(format!("{at}.allowedIpBlocks[{i}]"), reason);
        }
    }
    if let Some(matches) = &entry.matches {
        fields.refuse(&format!("{at}.match"), &matches.other);
        let at = format!("{at}.match.request");
        fields.refuse(&at, &matches.request.other);
        for (name, values) in &matches.request.headers {
            fields.refuse(&format!("{at}.headers.{name}"), &values.other);
        }
    }
}
