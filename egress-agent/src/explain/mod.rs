//! Two layers, one answer: may this pod reach that, who decides, by which rule, what to change.
//!
//! [`explain`] is pure: it joins what the kernel's maps say ([`kernel`]) with what the gateways'
//! policy says ([`crate::policy_server::query`]).
#![forbid(unsafe_code)]

pub mod frame;
pub mod kernel;
mod target;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use egress_common::decide::Outcome;
use egress_common::{Reason, Verdict};
use serde::Serialize;

use crate::policy_server::query::{PolicyAnswer, Way};
use kernel::{PodView, named_rule};
pub use target::{Target, TargetError};

/// All that an answer is made from.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// `namespace/name`.
    pub pod: &'a str,
    pub target: &'a Target,
    /// Addresses of the target's host.
    pub addresses: &'a [IpAddr],
    /// None for a pod that the kernel does not know.
    pub view: Option<&'a PodView>,
    /// Why the pod is not held by what should hold it.
    pub uncovered: Option<&'a str>,
    /// Rules of the pod's policy in words.
    pub rules: &'a BTreeMap<u16, String>,
    /// None if no agent answers.
    pub policy: Option<&'a PolicyAnswer>,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Result {
    Allowed,
    Denied,
    /// Something that decides could not be asked.
    Unknown,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    pub pod: String,
    pub target: String,
    pub result: Result,
    /// `kernel`, `gateway`, or `nobody`.
    pub decided_by: &'static str,
    /// The answer in a sentence.
    pub summary: String,
    pub kernel: KernelLayer,
    pub gateway: GatewayLayer,
    /// What would make it otherwise.
    pub change: Vec<String>,
}

/// The kernel's side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelLayer {
    /// Straight to the target.
    pub direct: Vec<Step>,
    /// To the gateways.
    pub to_gateways: Vec<Step>,
}

/// A packet's fate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    pub destination: String,
    pub verdict: &'static str,
    pub reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// The gateways' side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayLayer {
    /// An agent answered.
    pub asked: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    pub ways: Vec<Way>,
    /// Gateways that run on older configuration, since they refused the latest.
    pub rejected: Vec<String>,
}

/// Joins both layers.
pub fn explain(evidence: &Evidence<'_>) -> Answer {
    let Evidence {
        pod,
        target,
        addresses,
        view,
        ..
    } = *evidence;
    let mut answer = Answer {
        pod: pod.to_owned(),
        target: target.to_string(),
        result: Result::Unknown,
        decided_by: "nobody",
        summary: String::new(),
        kernel: KernelLayer::default(),
        gateway: gateway_layer(evidence.policy),
        change: Vec::new(),
    };
    let Some(view) = view else {
        answer.summary = format!(
            "UNKNOWN: the kernel of this node knows no pod {pod}; ask on the node that it runs on"
        );
        return answer;
    };
    let direct: Vec<(IpAddr, Outcome)> = addresses
        .iter()
        .filter_map(|&address| Some((address, view.verdict(target.kind, address, target.port)?)))
        .collect();
    answer.kernel.direct = direct
        .iter()
        .map(|(address, outcome)| step(evidence, *address, target.port, *outcome))
        .collect();
    answer.kernel.to_gateways = to_gateways(evidence, view);
    judge(evidence, view, &direct, &mut answer);
    if let Some(problem) = evidence.uncovered {
        // What the tables say is not what happens.
        answer.result = Result::Unknown;
        answer.decided_by = "nobody";
        answer.summary = format!(
            "UNKNOWN: {pod} is UNCOVERED ({problem}), so nothing holds it; covered it would be: {}",
            answer.summary
        );
    }
    answer
}

fn gateway_layer(policy: Option<&PolicyAnswer>) -> GatewayLayer {
    let Some(policy) = policy else {
        return GatewayLayer::default();
    };
    let told = |node: &crate::policy_server::xds::NodeState| {
        let kinds: Vec<&str> = node.rejected.keys().map(String::as_str).collect();
        format!("{} ({}): {}", node.gateway, node.node, kinds.join(", "))
    };
    GatewayLayer {
        asked: true,
        client: policy.client.clone(),
        ways: policy.ways.clone(),
        rejected: policy.rejected.iter().map(told).collect(),
    }
}

fn to_gateways(evidence: &Evidence<'_>, view: &PodView) -> Vec<Step> {
    let ends = view.gateways().into_iter();
    ends.filter_map(|end| {
        let outcome = view.verdict(frame::Kind::Tcp, end.address, end.port)?;
        Some(step(evidence, end.address, end.port, outcome))
    })
    .collect()
}

fn step(evidence: &Evidence<'_>, address: IpAddr, port: u16, outcome: Outcome) -> Step {
    Step {
        destination: std::net::SocketAddr::new(address, port).to_string(),
        verdict: outcome.verdict.as_str(),
        reason: outcome.reason.as_str(),
        rule: named_rule(outcome).and_then(|rule| evidence.rules.get(&rule).cloned()),
    }
}

fn judge(
    evidence: &Evidence<'_>,
    view: &PodView,
    direct: &[(IpAddr, Outcome)],
    answer: &mut Answer,
) {
    let Evidence { pod, target, .. } = *evidence;
    let passes = |outcome: &Outcome| matches!(outcome.verdict, Verdict::Pass | Verdict::Audit);
    if let Some((index, (_, outcome))) = direct.iter().enumerate().find(|(_, (_, it))| passes(it)) {
        let step = &answer.kernel.direct[index];
        let rule = step
            .rule
            .as_ref()
            .map_or(String::new(), |rule| format!(" by {rule}"));
        answer.decided_by = "kernel";
        answer.result = Result::Allowed;
        answer.summary = match (outcome.verdict, outcome.reason) {
            (Verdict::Audit, reason) => format!(
                "ALLOWED for now: {pod} is only audited; enforced, {} would be dropped in the \
                 kernel ({})",
                step.destination,
                reason.as_str()
            ),
            (_, Reason::NotHeld) => {
                format!(
                    "ALLOWED: no lockdown holds {pod}, so it reaches {} straight",
                    step.destination
                )
            }
            (_, reason) => format!(
                "ALLOWED in the kernel: {} ({}){rule}",
                step.destination,
                reason.as_str()
            ),
        };
        match (outcome.verdict, outcome.reason) {
            (Verdict::Audit, _) => answer.change.push(
                "to cut it, set `mode: Enforce` in the lockdown that selects the pod".to_owned(),
            ),
            (_, Reason::NotHeld) => answer
                .change
                .push("to hold the pod, select it by an EgressLockdown".to_owned()),
            _ => {}
        }
        return;
    }
    let dropped = match answer.kernel.direct.first() {
        Some(step) => format!(
            "straight to {} it is dropped ({})",
            step.destination, step.reason
        ),
        None if evidence.addresses.is_empty() => {
            format!(
                "{} has no address here; give one with --resolve",
                target.host
            )
        }
        None => "the pod has no address of the target's family".to_owned(),
    };
    if target.kind != frame::Kind::Tcp || !target.is_web() {
        answer.decided_by = "kernel";
        answer.result = Result::Denied;
        answer.summary = format!(
            "DENIED in the kernel: {dropped}; gateways pass on only HTTP, and TLS and TCP by name"
        );
        answer.change.push(exception(target, direct));
        return;
    }
    by_gateway(evidence, view, &dropped, direct, answer);
}

fn by_gateway(
    evidence: &Evidence<'_>,
    view: &PodView,
    dropped: &str,
    direct: &[(IpAddr, Outcome)],
    answer: &mut Answer,
) {
    let Evidence { pod, target, .. } = *evidence;
    if view.gateways().is_empty() {
        answer.decided_by = "kernel";
        answer.result = Result::Denied;
        answer.summary = format!("DENIED in the kernel: {dropped}, and no gateway may be reached");
        answer.change.push(
            "let a VirtualGateway select Ready pods; if the lockdown says `gatewayAccess: Policy`, \
             let an AccessPolicy admit the pod's service account"
                .to_owned(),
        );
        answer.change.push(exception(target, direct));
        return;
    }
    let Some(policy) = evidence.policy else {
        answer.summary = format!(
            "UNKNOWN: {dropped}; a gateway can be reached, but no agent answers what it would say"
        );
        answer
            .change
            .push("start the agent, or look at its log".to_owned());
        return;
    };
    if policy.client.is_none() {
        answer.summary = format!(
            "UNKNOWN: {dropped}; the agent knows no address of {pod}, so no gateway would believe it"
        );
        return;
    }
    answer.decided_by = "gateway";
    let Some(way) = policy.ways.first() else {
        answer.result = Result::Denied;
        answer.summary = format!("DENIED: {dropped}, and no gateway serves {}", target.host);
        answer.change.push(format!(
            "expose {} in a VirtualGateway and name it in an ExternalService",
            target.host
        ));
        return;
    };
    if way.allowed {
        answer.result = Result::Allowed;
        let by = way.object.clone().unwrap_or_else(|| way.reason.clone());
        answer.summary = format!(
            "ALLOWED by gateway {}: asked as {}, by {by}; {dropped}",
            way.gateway, way.ask
        );
        if way.dry_run == Some(false) {
            answer
                .change
                .push("the dry-run entries would refuse it once they are enforced".to_owned());
        }
    } else {
        answer.result = Result::Denied;
        answer.summary = format!(
            "DENIED by gateway {} ({}): asked as {}; {dropped}",
            way.gateway, way.reason, way.ask
        );
        answer.change.extend(remedies(way, target, policy));
    }
}

/// What would let it through at the gateway.
fn remedies(way: &Way, target: &Target, policy: &PolicyAnswer) -> Vec<String> {
    let host = &target.host;
    let gateway = &way.gateway;
    match way.reason.as_str() {
        "unknown-host" => vec![
            format!("name {host} in an ExternalService with `egressGatewayRoutes`"),
            format!("expose {host} (or a wildcard above it) in VirtualGateway {gateway}"),
        ],
        "unknown-port" => vec![format!(
            "ask for a port that the ExternalService of {host} serves, or add one with \
             `egressGatewayRoutes.portMatch: {}`",
            target.port
        )],
        "not-admitted" => {
            let client = policy.client.as_deref().unwrap_or_default();
            let entries = way.trials.iter().filter(|trial| !trial.dry_run);
            let mut remedies: Vec<String> = entries
                .map(|trial| format!("{}: {} does not hold", trial.entry, trial.failed.join(", ")))
                .collect();
            if let Some((namespace, name)) = account(client) {
                remedies.push(format!(
                    "to admit it, add to one of these entries' allowedClients: \
                     serviceAccountSelector {{ name: {name}, namespace: {namespace} }}"
                ));
            }
            remedies
        }
        "bad-path" => {
            vec!["the path can be read in more than one way; write it plainly".to_owned()]
        }
        _ => Vec::new(),
    }
}

/// Namespace and name of `spiffe://domain/ns/namespace/sa/name`.
fn account(client: &str) -> Option<(&str, &str)> {
    let (_, rest) = client.split_once("/ns/")?;
    rest.split_once("/sa/")
}

/// The lockdown's own way to let it through.
fn exception(target: &Target, direct: &[(IpAddr, Outcome)]) -> String {
    let cidr = match direct.first() {
        Some((address @ IpAddr::V4(_), _)) => format!("{address}/32"),
        Some((address @ IpAddr::V6(_), _)) => format!("{address}/128"),
        None => "its CIDR".to_owned(),
    };
    match target.kind {
        frame::Kind::Icmp => {
            format!("or except it in the lockdown: allow.cidrs [{{ cidr: {cidr} }}]")
        }
        kind => format!(
            "or except it in the lockdown: allow.cidrs [{{ cidr: {cidr}, ports: [{{ protocol: {}, \
             port: {} }}] }}]",
            if kind == frame::Kind::Tcp {
                "TCP"
            } else {
                "UDP"
            },
            target.port
        ),
    }
}
