//! From all nodes' reports to the statuses of objects. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::findings::{Findings, IGNORED, PART_REFUSED, REFUSED, text};
use super::history::{History, KINDS, Mark};
use super::nodes::Nodes;
use crate::api::status::{
    ACCEPTED, COVERED, EgressNodeSpec, Finding, MAX_BEHIND, MAX_FINDINGS, NodeCounts, PROGRAMMED,
    PodCounts, REALIZED, SUPPORTED,
};
use crate::index::ObjectId;
use crate::source::Declared;

/// Pods that a message names.
const NAMED: usize = 3;
/// Nodes without an agent that a message names.
const NAMED_NODES: usize = 5;
/// Letters of a message.
const LONGEST: usize = 2000;

/// A condition, before it is known since when it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holds {
    pub kind: &'static str,
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
}

/// What is to be told of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Of the object: one of the same name that is made anew has no status.
    pub uid: String,
    pub generation: i64,
    pub conditions: Vec<Holds>,
    pub nodes: NodeCounts,
    /// Of lockdowns alone.
    pub pods: Option<PodCounts>,
    pub unsupported: Vec<Finding>,
}

/// What is to be told of each of Sallyport's own objects. Only nodes that are in `present` count:
/// what a node that is gone has reported may outlive it a little. Nor does what one of those `without`
/// an agent reported once.
pub fn statuses(
    declared: &BTreeMap<ObjectId, Declared>,
    findings: &Findings,
    present: &BTreeMap<String, String>,
    nodes: &Nodes,
    without: &BTreeSet<String>,
    history: &History,
) -> BTreeMap<ObjectId, Status> {
    let counts_here =
        |(name, ..): &(&str, _, _)| present.contains_key(*name) && !without.contains(*name);
    let known: Vec<_> = nodes.reports().filter(counts_here).collect();
    let reports: Vec<_> = known
        .iter()
        .map(|(name, report, _)| (*name, *report))
        .collect();
    // By kind: the nodes by how far they have come, those furthest behind first.
    let order: Vec<Vec<(Option<Mark>, &str)>> = (0..KINDS.len())
        .map(|kind| {
            let mut order: Vec<_> = known
                .iter()
                .map(|(name, _, marks)| (marks[kind], *name))
                .collect();
            order.sort_unstable();
            order
        })
        .collect();
    let own = declared.iter().filter(|(_, declared)| declared.is_own());
    own.filter_map(|(id, declared)| {
        let kind = KINDS.iter().position(|kind| *kind == id.kind)?;
        let findings = findings.get(id).map_or(&[][..], Vec::as_slice);
        let refused = findings.iter().any(|finding| finding.effect == REFUSED);
        let mut count = counts(&order[kind], history.since(id), refused);
        count.without_agent = u32::try_from(without.len()).unwrap_or(u32::MAX);
        let mut conditions = vec![
            accepted(findings),
            realized(&count, refused, without),
            supported(findings),
        ];
        let mut pods = None;
        if id.kind == "EgressLockdown" {
            let (counts, condition) = covered(&id.name, &reports, without);
            pods = Some(counts);
            conditions.push(condition);
        }
        conditions.extend(programmed(declared));
        let status = Status {
            uid: declared.uid.clone(),
            generation: declared.generation,
            conditions,
            nodes: count,
            pods,
            unsupported: findings.iter().take(MAX_FINDINGS).cloned().collect(),
        };
        Some((id.clone(), status))
    })
    .collect()
}

fn counts(order: &[(Option<Mark>, &str)], since: Option<Mark>, refused: bool) -> NodeCounts {
    let behind = match since {
        Some(since) if !refused => order.partition_point(|(mark, _)| *mark < Some(since)),
        _ => order.len(),
    };
    let total = u32::try_from(order.len()).unwrap_or(u32::MAX);
    let mut names: Vec<String> = order[..behind]
        .iter()
        .filter(|_| !refused)
        .take(MAX_BEHIND)
        .map(|(_, name)| (*name).to_owned())
        .collect();
    names.sort_unstable();
    NodeCounts {
        total,
        realized: total - u32::try_from(behind).unwrap_or(total),
        since: None,
        behind: names,
        without_agent: 0,
    }
}

/// Reason of conditions that are false because of nodes that nobody reports from.
const WITHOUT_AGENT: &str = "NodesWithoutAgent";

fn holds(kind: &'static str, status: &'static str, reason: &'static str, message: &str) -> Holds {
    Holds {
        kind,
        status,
        reason,
        message: message.chars().take(LONGEST).collect(),
    }
}

fn accepted(findings: &[Finding]) -> Holds {
    let refused = text(findings, REFUSED);
    if refused.is_empty() {
        return holds(ACCEPTED, "True", "Accepted", "the object is in use");
    }
    let message = format!("{refused}; the last good version stands, if there is one");
    holds(ACCEPTED, "False", "Refused", &message)
}

fn supported(findings: &[Finding]) -> Holds {
    for (effect, reason) in [
        (REFUSED, "Refused"),
        (PART_REFUSED, "PartRefused"),
        (IGNORED, "Ignored"),
    ] {
        let message = text(findings, effect);
        if !message.is_empty() {
            return holds(SUPPORTED, "False", reason, &message);
        }
    }
    holds(
        SUPPORTED,
        "True",
        "Supported",
        "everything in it is honoured",
    )
}

/// Which nodes have no agent; none if all have one.
fn unattended(without: &BTreeSet<String>) -> Option<String> {
    let named: Vec<&str> = without
        .iter()
        .take(NAMED_NODES)
        .map(String::as_str)
        .collect();
    (!named.is_empty()).then(|| {
        format!(
            "from {} nodes no agent reports, such as {}: their pods may not be held",
            without.len(),
            named.join(", ")
        )
    })
}

fn realized(count: &NodeCounts, refused: bool, without: &BTreeSet<String>) -> Holds {
    let unattended = unattended(without);
    let mut message = format!("{} of {} nodes hold it", count.realized, count.total);
    if refused {
        let message = "no node takes this generation; see Accepted";
        return holds(REALIZED, "False", "Refused", message);
    }
    match (count.total, count.behind.is_empty()) {
        (0, _) => holds(REALIZED, "Unknown", "NoNodes", "no node has reported"),
        (_, true) => match unattended {
            None => holds(REALIZED, "True", "OnAllNodes", &message),
            Some(unattended) => {
                message = format!("{message}; {unattended}");
                holds(REALIZED, "False", WITHOUT_AGENT, &message)
            }
        },
        (_, false) => {
            message = format!("{message}; not yet: {}", count.behind.join(", "));
            if let Some(unattended) = unattended {
                message = format!("{message}; {unattended}");
            }
            holds(REALIZED, "False", "InProgress", &message)
        }
    }
}

fn covered(
    lockdown: &str,
    reports: &[(&str, &EgressNodeSpec)],
    without: &BTreeSet<String>,
) -> (PodCounts, Holds) {
    let mut counts = PodCounts::default();
    let mut named = Vec::new();
    for (node, report) in reports {
        let Some(of) = report.lockdowns.get(lockdown) else {
            continue;
        };
        counts += *of;
        if of.uncovered > 0 {
            let pods = report
                .uncovered
                .iter()
                .map(|pod| format!("{}/{} on {node} ({})", pod.namespace, pod.name, pod.reason));
            named.extend(pods.take(NAMED.saturating_sub(named.len())));
        }
    }
    let condition = if counts.uncovered > 0 {
        let message = format!(
            "{} pods are not held by all hooks they need, such as {}",
            counts.uncovered,
            named.join(", ")
        );
        holds(COVERED, "False", "PodsUncovered", &message)
    } else if let Some(unattended) = unattended(without) {
        holds(COVERED, "False", WITHOUT_AGENT, &unattended)
    } else if counts == PodCounts::default() {
        holds(COVERED, "True", "NoPods", "no pod is selected")
    } else {
        holds(COVERED, "True", "AllCovered", "every selected pod is held")
    };
    (counts, condition)
}

/// What the gateway's Envoys say; none where they don't get their configuration from here.
fn programmed(declared: &Declared) -> Option<Holds> {
    if declared.envoys.is_empty() {
        return None;
    }
    let refusing: Vec<String> = declared
        .envoys
        .iter()
        .filter(|envoy| !envoy.programmed)
        .map(|envoy| match envoy.rejected.first() {
            Some(it) => format!("{} refuses a {}: {}", envoy.name, it.kind, it.message),
            None => format!("{} has not taken it yet", envoy.name),
        })
        .collect();
    Some(if refusing.is_empty() {
        let message = format!("{} Envoys took it", declared.envoys.len());
        holds(PROGRAMMED, "True", "Programmed", &message)
    } else {
        holds(PROGRAMMED, "False", "NotProgrammed", &refusing.join("; "))
    })
}

/// Fields of a status that are written here.
const FIELDS: [&str; 5] = [
    "observedGeneration",
    "conditions",
    "nodes",
    "pods",
    "unsupported",
];

/// What of a status as the API server has it was written here, in the form of [`Status::body`].
pub fn written(status: &Value) -> Value {
    let mut ours = json!({});
    for field in FIELDS {
        if let Some(value) = status.get(field) {
            ours[field] = value.clone();
        }
    }
    if let Some(conditions) = ours.get_mut("conditions").and_then(Value::as_array_mut) {
        conditions.sort_by_key(|condition| condition["type"].to_string());
    }
    ours
}

impl Status {
    /// The status as it is written over `old`: what still holds keeps the time since when it does.
    pub fn body(&self, old: &Value, now: &str) -> Value {
        let before = |kind: &str| {
            let conditions = old.get("conditions").and_then(Value::as_array);
            let mut conditions = conditions.into_iter().flatten();
            conditions.find(|condition| condition["type"] == kind)
        };
        let mut conditions: Vec<Value> = self
            .conditions
            .iter()
            .map(|holds| {
                let before = before(holds.kind).filter(|it| it["status"] == holds.status);
                let since = before.map_or(json!(now), |it| it["lastTransitionTime"].clone());
                json!({
                    "type": holds.kind,
                    "status": holds.status,
                    "observedGeneration": self.generation,
                    "lastTransitionTime": since,
                    "reason": holds.reason,
                    "message": holds.message,
                })
            })
            .collect();
        conditions.sort_by_key(|condition| condition["type"].to_string());
        let mut body = json!({
            "observedGeneration": self.generation,
            "conditions": conditions,
            "nodes": self.nodes,
        });
        let all = self.nodes.realized == self.nodes.total && self.nodes.without_agent == 0;
        if self.nodes.total > 0 && all {
            let same = old["observedGeneration"] == self.generation;
            let before = old["nodes"].get("since").filter(|_| same);
            body["nodes"]["since"] = before.cloned().unwrap_or_else(|| json!(now));
        }
        if let Some(pods) = &self.pods {
            body["pods"] = json!(pods);
        }
        if !self.unsupported.is_empty() {
            body["unsupported"] = json!(self.unsupported);
        }
        body
    }
}

/// Whether the difference is more than counts: another generation, or a condition that turned.
pub fn is_urgent(old: &Value, new: &Value) -> bool {
    let facts = |status: &Value| -> Vec<(Value, Value)> {
        let conditions = status.get("conditions").and_then(Value::as_array);
        let conditions = conditions.into_iter().flatten();
        conditions
            .map(|condition| (condition["type"].clone(), condition["status"].clone()))
            .collect()
    };
    old["observedGeneration"] != new["observedGeneration"] || facts(old) != facts(new)
}

#[cfg(test)]
#[path = "aggregate_tests.rs"]
mod tests;
