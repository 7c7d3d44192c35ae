//! What policy itself leaves open.

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;

use super::{Kind, Risk, Standing};
use crate::api::AccessPolicySpec;
use crate::api::external_service::{ExternalPort, PortProtocol};
use crate::api::lockdown::Mode;
use crate::index::Index;

pub(super) fn of_policies(index: &Index, now: Timestamp) -> Vec<Risk> {
    let mut risks = lockdown_modes(index, now);
    risks.extend(exceptions(index));
    for (key, service) in index.external_services() {
        let object = format!("ExternalService/{key}");
        let wildcards = service.spec.hosts.iter().enumerate();
        for (at, host) in wildcards.filter(|(_, host)| host.starts_with('*')) {
            risks.push(Risk {
                standing: Standing::Open,
                kind: Kind::WildcardHost,
                object: object.clone(),
                at: format!("spec.hosts[{at}]"),
                text: format!(
                    "whoever may register a name below {host} can be reached by every client that \
                     is admitted here"
                ),
                advice: "name the hosts one by one".to_owned(),
            });
        }
        let ranges = service.spec.addresses.iter().enumerate();
        for (at, range) in ranges.filter(|(_, range)| is_range(range)) {
            risks.push(Risk {
                standing: Standing::Open,
                kind: Kind::WildcardHost,
                object: object.clone(),
                at: format!("spec.addresses[{at}]"),
                text: format!(
                    "whoever has an address in {range} can be reached by every client that is \
                     admitted here"
                ),
                advice: "name the addresses one by one".to_owned(),
            });
        }
        for (at, port) in service.spec.ports.iter().enumerate() {
            if is_unverified(port) {
                risks.push(Risk {
                    standing: Standing::Open,
                    kind: Kind::UnverifiedServer,
                    object: object.clone(),
                    at: format!("spec.ports[{at}]"),
                    text: format!(
                        "{} for port {}: no server is verified, and who is on the way reads along",
                        match port.protocol {
                            PortProtocol::Tcp | PortProtocol::Mongo =>
                                "what clients send in the clear leaves the gateway as it came",
                            _ => "requests leave the gateway in plain text",
                        },
                        port.number
                    ),
                    advice:
                        "let the gateway originate TLS (`clientsideTls: {}`, with the port that \
                             serves it)"
                            .to_owned(),
                });
            }
        }
    }
    for (key, policy) in index.access_policies() {
        for at in dry_runs(&policy.spec) {
            risks.push(Risk {
                standing: Standing::Open,
                kind: Kind::DryRun,
                object: format!("AccessPolicy/{key}"),
                at,
                text: "the entry decides nothing, it only reports what it would do".to_owned(),
                advice: "remove `dryRun` when its reports are as you want them".to_owned(),
            });
        }
    }
    risks
}

fn is_range(address: &str) -> bool {
    let net: Result<IpNet, _> = address.parse();
    net.is_ok_and(|net| net.prefix_len() < net.max_prefix_len())
}

/// Held pods reach these addresses as if nobody held them.
fn exceptions(index: &Index) -> Vec<Risk> {
    let mut risks = Vec::new();
    for (name, spec) in index.lockdowns() {
        if spec.mode == Mode::Off {
            continue;
        }
        let cidrs = spec.allow.cidrs.iter().enumerate();
        let cidrs = cidrs.map(|(at, it)| (format!("cidrs[{at}]"), it.cidr.to_string()));
        let resolvers = spec.allow.dns.resolvers.iter().enumerate();
        let resolvers =
            resolvers.map(|(at, it)| (format!("dns.resolvers[{at}]"), format!("resolver {it}")));
        for (at, what) in cidrs.chain(resolvers) {
            risks.push(Risk {
                standing: Standing::Open,
                kind: Kind::Exception,
                object: format!("EgressLockdown/{name}"),
                at: format!("spec.allow.{at}"),
                text: format!("its pods reach {what} without a gateway, and whoever answers there"),
                advice: "keep it as narrow as it can be, with ports, or name an ExternalService"
                    .to_owned(),
            });
        }
    }
    risks
}

/// Of the setting, which is no object's.
pub(super) fn allow_any() -> Risk {
    Risk {
        standing: Standing::Open,
        kind: Kind::AllowAny,
        object: "Setting/outbound-policy".to_owned(),
        at: "ALLOW_ANY".to_owned(),
        text: "the gateways let every client through to hosts that no ExternalService names"
            .to_owned(),
        advice: "set it to REGISTRY_ONLY, and name what is needed".to_owned(),
    }
}

fn lockdown_modes(index: &Index, now: Timestamp) -> Vec<Risk> {
    let mut risks = Vec::new();
    for (name, spec) in index.lockdowns() {
        let until = spec.audit_until.as_ref().map(|time| time.0);
        let text = match (spec.mode, until) {
            (Mode::Enforce, _) => continue,
            (Mode::Off, _) => "it holds nobody".to_owned(),
            (Mode::Audit, Some(until)) if until <= now => continue,
            (Mode::Audit, Some(until)) => format!("it lets everything through until {until}"),
            (Mode::Audit, None) => "it lets everything through, for ever".to_owned(),
        };
        risks.push(Risk {
            standing: Standing::Open,
            kind: Kind::LockdownMode,
            object: format!("EgressLockdown/{name}"),
            at: "spec.mode".to_owned(),
            text,
            advice:
                "set `mode: Enforce` when `egressctl events list` shows nothing that must go on"
                    .to_owned(),
        });
    }
    risks
}

/// The gateway sends requests as they are. What it passes on as TLS the client verifies.
fn is_unverified(port: &ExternalPort) -> bool {
    use PortProtocol::{Grpc, Http, Http2, Mongo, Tcp};
    matches!(port.protocol, Http | Http2 | Grpc | Tcp | Mongo) && port.clientside_tls.is_none()
}

fn dry_runs(policy: &AccessPolicySpec) -> Vec<String> {
    let config = &policy.config;
    let one = config.authz.iter().filter(|entry| entry.dry_run);
    let listed = config.authz_list.iter().enumerate();
    one.map(|_| "spec.config.authz.dryRun".to_owned())
        .chain(
            listed
                .filter(|(_, entry)| entry.dry_run)
                .map(|(at, _)| format!("spec.config.authzList[{at}].dryRun")),
        )
        .collect()
}
