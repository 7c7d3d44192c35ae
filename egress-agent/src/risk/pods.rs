//! What pods can do to get around, or help others to.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, SecurityContext};

use super::{Kind, Risk, Standing};
use crate::api::lockdown::ClusterPart;
use crate::compile::{Compiled, DesiredPod, Hold};
use crate::index::{Index, Key, selects};

/// User id of Istio's sidecar, whose packets its redirection leaves alone.
const SIDECAR_UID: i64 = 1337;
const SIDECARS: [&str; 2] = ["istio-proxy", "istio-init"];
/// By which a pod takes some of its traffic from its sidecar.
const EXCLUSIONS: [&str; 6] = [
    "traffic.sidecar.istio.io/excludeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeOutboundPorts",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "traffic.sidecar.istio.io/includeOutboundPorts",
    "traffic.sidecar.istio.io/excludeInterfaces",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
];
/// These two ask for what is the default.
const ALL: [&str; 2] = ["", "*"];
const INJECT: &str = "sidecar.istio.io/inject";
const CAPABILITIES: [&str; 4] = ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "ALL"];

/// Whether a pod's own means to get around are of use to it.
fn standing(pod: Option<&DesiredPod>) -> (Standing, &'static str, &'static str) {
    match pod {
        Some(pod) if pod.gateway => (
            Standing::Open,
            "it is a gateway, and not held",
            "look whether a gateway needs it",
        ),
        Some(pod) if pod.hold == Hold::Enforce && !pod.host_network => (
            Standing::Neutralized,
            "it is held below its reach",
            "nothing has to be done",
        ),
        Some(pod) if pod.hold == Hold::Audit => (
            Standing::Open,
            "its lockdown only reports",
            "set the lockdown to `mode: Enforce`",
        ),
        _ => (
            Standing::Open,
            "no lockdown holds it",
            "select it by an EgressLockdown",
        ),
    }
}

struct Container<'a> {
    name: &'a str,
    security: Option<&'a SecurityContext>,
}

fn containers(pod: &Pod) -> Vec<Container<'_>> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let first = spec.init_containers.iter().flatten();
    let ordinary = first.chain(&spec.containers).map(|it| Container {
        name: &it.name,
        security: it.security_context.as_ref(),
    });
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    ordinary
        .chain(ephemeral.map(|it| Container {
            name: &it.name,
            security: it.security_context.as_ref(),
        }))
        .collect()
}

/// What one pod has. `desired` is what is compiled of it; none for a pod that is over.
pub(super) fn of_pod(pod: &Pod, desired: Option<&DesiredPod>) -> Vec<Risk> {
    let Some(desired) = desired else {
        return Vec::new();
    };
    let object = format!("Pod/{}/{}", desired.namespace, desired.name);
    let (standing, why, advice) = standing(Some(desired));
    let mut risks = Vec::new();
    let mut add = |kind, at: String, text: String| {
        risks.push(Risk {
            standing,
            kind,
            object: object.clone(),
            at,
            text: format!("{text}; {why}"),
            advice: advice.to_owned(),
        });
    };
    for (name, value) in pod.metadata.annotations.iter().flatten() {
        let narrows = EXCLUSIONS.contains(&name.as_str())
            && !(name.contains("/include") && ALL.contains(&value.trim()));
        if narrows && !(name.contains("/exclude") && value.trim().is_empty()) {
            let at = format!("metadata.annotations[{name}]");
            add(
                Kind::SidecarExclusion,
                at,
                format!("traffic goes past its sidecar: {value}"),
            );
        }
    }
    let meta = &pod.metadata;
    for (part, map) in [("labels", &meta.labels), ("annotations", &meta.annotations)] {
        if map
            .iter()
            .flatten()
            .any(|(k, v)| k == INJECT && v == "false")
        {
            let at = format!("metadata.{part}[{INJECT}]");
            add(Kind::NoSidecar, at, "it has no sidecar".to_owned());
        }
    }
    let spec = pod.spec.as_ref();
    let of_the_pod = spec
        .and_then(|spec| spec.security_context.as_ref())
        .and_then(|security| security.run_as_user);
    for container in containers(pod) {
        let security = container.security;
        let at = |field: &str| format!("container {}: securityContext.{field}", container.name);
        if SIDECARS.contains(&container.name) {
            continue;
        }
        if security.and_then(|it| it.run_as_user).or(of_the_pod) == Some(SIDECAR_UID) {
            let text = format!("it runs as user {SIDECAR_UID}, whose packets sidecars let pass");
            add(Kind::SidecarUid, at("runAsUser"), text);
        }
        let added = security
            .and_then(|it| it.capabilities.as_ref())
            .and_then(|it| it.add.as_ref());
        let added: Vec<&str> = added
            .into_iter()
            .flatten()
            .map(|name| name.strip_prefix("CAP_").unwrap_or(name))
            .filter(|name| CAPABILITIES.contains(name))
            .collect();
        if !added.is_empty() {
            let text = format!(
                "it may change its pod's network or write packets by itself ({})",
                added.join(", ")
            );
            add(Kind::NetworkCapability, at("capabilities.add"), text);
        }
    }
    risks.extend(node_access(pod, &object, desired.hold == Hold::Enforce));
    risks
}

/// By which a pod gets out of its own namespaces, where nothing of the node can hold it.
fn node_access(pod: &Pod, object: &str, held: bool) -> Vec<Risk> {
    let mut risks = Vec::new();
    let mut add = |kind, at: String, text: &str, advice: &str| {
        risks.push(Risk {
            standing: if held {
                Standing::Partly
            } else {
                Standing::Open
            },
            kind,
            object: object.to_owned(),
            at,
            text: text.to_owned(),
            advice: advice.to_owned(),
        });
    };
    for container in containers(pod) {
        if container.security.and_then(|it| it.privileged) == Some(true) {
            let at = format!("container {}: securityContext.privileged", container.name);
            let text = "it can enter the node's namespaces and take the programs off; as long as it \
                        does not, its packets are judged as its pod's";
            add(
                Kind::NodeAccess,
                at,
                text,
                "forbid privileged pods by Pod Security admission (`baseline`)",
            );
        }
    }
    let Some(spec) = &pod.spec else {
        return risks;
    };
    if spec.host_pid == Some(true) {
        let text = "it sees the node's processes, whose namespaces it can enter with the right \
                    capabilities";
        let advice = "forbid it by Pod Security admission (`baseline`)";
        add(Kind::NodeAccess, "spec.hostPID".to_owned(), text, advice);
    }
    if spec.host_network == Some(true) {
        let text = "its packets are the node's: only those from its own sockets are judged, not \
                    those of packet sockets";
        let advice = "give it a network of its own, or forbid it by Pod Security admission";
        add(
            Kind::HostNetwork,
            "spec.hostNetwork".to_owned(),
            text,
            advice,
        );
    }
    risks
}

/// Pods that are held by nobody and can be reached from held ones: what listens there can pass
/// packets on. One for each namespace.
pub(super) fn ways_out(index: &Index, compiled: &Compiled) -> Vec<Risk> {
    let reaches = |pod: &&DesiredPod| {
        pod.hold == Hold::Enforce
            && pod.lockdowns.iter().any(|name| {
                index.lockdowns().get(name).is_some_and(|spec| {
                    let parts = &spec.allow.cluster;
                    parts.contains(&ClusterPart::Pods) || parts.contains(&ClusterPart::Services)
                })
            })
    };
    let pods = || compiled.desired.pods.values();
    let from: BTreeSet<&str> = pods()
        .filter(reaches)
        .flat_map(|pod| pod.lockdowns.iter().map(String::as_str))
        .collect();
    if from.is_empty() {
        return Vec::new();
    }
    let mut open: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pod in pods().filter(|pod| pod.hold != Hold::Enforce && !pod.gateway) {
        open.entry(&pod.namespace).or_default().push(&pod.name);
    }
    let from: Vec<&str> = from.into_iter().collect();
    open.into_iter()
        .map(|(namespace, names)| Risk {
            standing: Standing::Open,
            kind: Kind::WayOut,
            object: format!("Namespace/{namespace}"),
            at: String::new(),
            text: format!(
                "{} of its pods are not held (first {}), and pods that {} holds can reach them: one \
                 that passes packets on is a way out",
                names.len(),
                names[0],
                from.join(", ")
            ),
            advice: "hold them too, or close the cluster to held pods (`allow.cluster`, \
                     NetworkPolicy)"
                .to_owned(),
        })
        .collect()
}

/// Gateways' pods with another service account than most of them, and pods that have a gateway's
/// labels elsewhere.
pub(super) fn impostors(index: &Index, compiled: &Compiled) -> Vec<Risk> {
    let mut risks = Vec::new();
    let gateways: BTreeSet<Key> = compiled
        .desired
        .pods
        .values()
        .filter(|pod| pod.gateway)
        .map(|pod| Key::new(&pod.namespace, &pod.name))
        .collect();
    for (name, declared) in index.virtual_gateways() {
        for workload in &declared.spec.workloads {
            let selector = &workload.selector;
            let namespace = selector.namespace.as_ref().unwrap_or(&name.namespace);
            let alike = index
                .pods()
                .iter()
                .filter(|(_, pod)| !pod.finished && selects(&selector.labels, &pod.labels));
            let (own, others): (Vec<_>, Vec<_>) =
                alike.partition(|(key, _)| key.namespace == *namespace);
            let mut accounts: BTreeMap<&str, usize> = BTreeMap::new();
            for (_, pod) in &own {
                *accounts.entry(&pod.service_account).or_default() += 1;
            }
            let usual = accounts.iter().max_by_key(|(_, count)| **count);
            let usual = usual.map_or("", |(account, _)| *account);
            for (key, pod) in own.iter().filter(|(_, pod)| pod.service_account != usual) {
                risks.push(Risk {
                    standing: Standing::Open,
                    kind: Kind::Impostor,
                    object: format!("Pod/{key}"),
                    at: "metadata.labels".to_owned(),
                    text: format!(
                        "VirtualGateway/{name} takes it for a gateway, and it has the service account \
                         {} where the others have {usual}",
                        pod.service_account
                    ),
                    advice: format!(
                        "let nobody but the gateway's operators make pods in namespace {namespace}"
                    ),
                });
            }
            for (key, _) in others.iter().filter(|(key, _)| !gateways.contains(key)) {
                risks.push(Risk {
                    standing: Standing::Neutralized,
                    kind: Kind::Impostor,
                    object: format!("Pod/{key}"),
                    at: "metadata.labels".to_owned(),
                    text: format!(
                        "it has the labels of VirtualGateway/{name}, in another namespace: it is not \
                         taken for a gateway"
                    ),
                    advice: "nothing has to be done".to_owned(),
                });
            }
        }
    }
    risks
}
