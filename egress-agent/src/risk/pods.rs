//! What pods can do to get around by themselves.

use k8s_openapi::api::core::v1::{Pod, SecurityContext};

use super::{Kind, Risk, Standing, node_access};
use crate::compile::{DesiredPod, Hold};

/// User and group ids of sidecars, whose packets their redirection leaves alone.
const SIDECAR_IDS: [(i64, &str); 2] = [(1337, "Istio"), (2102, "Linkerd")];
/// Containers that may have them, and what redirects, where an injector has put them there.
const SIDECARS: [&str; 6] = [
    "istio-proxy",
    "istio-init",
    "istio-validation",
    "linkerd-proxy",
    "linkerd-init",
    "linkerd-network-validator",
];
/// What injectors write into the pods that they have been at.
const INJECTED: [&str; 2] = ["sidecar.istio.io/status", "linkerd.io/proxy-version"];
/// By which a pod takes some of its traffic from its sidecar.
const EXCLUSIONS: [&str; 9] = [
    "traffic.sidecar.istio.io/excludeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeOutboundPorts",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "traffic.sidecar.istio.io/includeOutboundPorts",
    "traffic.sidecar.istio.io/excludeInterfaces",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
    "istio.io/reroute-virtual-interfaces",
    "config.linkerd.io/skip-outbound-ports",
    "config.linkerd.io/skip-subnets",
];
/// These two ask for what is the default.
const ALL: [&str; 2] = ["", "*"];
/// Label or annotation, and the value, by which a pod keeps out of its mesh or of its redirection.
const NO_MESH: [(&str, &str); 4] = [
    ("sidecar.istio.io/inject", "false"),
    ("sidecar.istio.io/interceptionMode", "NONE"),
    ("istio.io/dataplane-mode", "none"),
    ("linkerd.io/inject", "disabled"),
];
const CAPABILITIES: [&str; 3] = ["NET_ADMIN", "NET_RAW", "ALL"];

/// Whether a pod's own means to get around are of use to it.
fn standing(kind: Kind, pod: &DesiredPod) -> (Standing, &'static str, &'static str) {
    if pod.gateway {
        return (
            Standing::Open,
            "it is a gateway, and not held",
            "look whether a gateway needs it",
        );
    }
    match (pod.hold, pod.host_network) {
        (Hold::Enforce, false) if kind == Kind::NetworkCapability => (
            Standing::Neutralized,
            "it is held below its reach, and what NET_ADMIN can send past that ends at the fence",
            "see that `egressctl status` on its node tells of a fence that is closed for all devices",
        ),
        (Hold::Enforce, false) => (
            Standing::Neutralized,
            "it is held below its reach",
            "nothing has to be done",
        ),
        (Hold::Enforce, true) if kind == Kind::NetworkCapability => (
            Standing::Open,
            "in the node's network that is beyond what holds it",
            "give it a network of its own, or take the capability from it",
        ),
        (Hold::Enforce, true) => (
            Standing::Neutralized,
            "what its sockets send is judged at its cgroup",
            "nothing has to be done",
        ),
        (Hold::Audit, _) => (
            Standing::Open,
            "its lockdown only reports",
            "set the lockdown to `mode: Enforce`",
        ),
        (Hold::Off, _) => (
            Standing::Open,
            "no lockdown holds it",
            "select it by an EgressLockdown",
        ),
    }
}

pub(super) struct Container<'a> {
    pub(super) name: &'a str,
    pub(super) security: Option<&'a SecurityContext>,
}

/// Init and ephemeral containers too.
pub(super) fn containers(pod: &Pod) -> Vec<Container<'_>> {
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

/// Names of capabilities that it adds, without the prefix that some write.
fn added<'a>(container: &Container<'a>) -> impl Iterator<Item = &'a str> {
    let capabilities = container.security.and_then(|it| it.capabilities.as_ref());
    let added = capabilities.and_then(|it| it.add.as_ref());
    added
        .into_iter()
        .flatten()
        .map(|name| name.strip_prefix("CAP_").unwrap_or(name))
}

/// What one pod has. `desired` is what is compiled of it; none for a pod that is over.
pub(super) fn of_pod(pod: &Pod, desired: Option<&DesiredPod>) -> Vec<Risk> {
    let Some(desired) = desired else {
        return Vec::new();
    };
    let object = format!("Pod/{}/{}", desired.namespace, desired.name);
    let mut risks = Vec::new();
    let mut add = |kind, at: String, text: String| {
        let (standing, why, advice) = standing(kind, desired);
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
        if narrows && (name.contains("/include") || !value.trim().is_empty()) {
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
        for (name, value) in map.iter().flatten() {
            if NO_MESH.contains(&(name, value)) {
                let at = format!("metadata.{part}[{name}]");
                let text = format!("no sidecar has its traffic ({value})");
                add(Kind::NoSidecar, at, text);
            }
        }
    }
    // A name alone makes no sidecar: the pod's author chooses it.
    let annotations = pod.metadata.annotations.iter().flatten();
    let injected = annotations
        .map(|(name, _)| name)
        .any(|name| INJECTED.contains(&name.as_str()));
    for container in containers(pod) {
        if injected && SIDECARS.contains(&container.name) {
            continue;
        }
        let at = |field: &str| format!("container {}: securityContext.{field}", container.name);
        for (field, id) in ids(pod, &container) {
            if let Some((_, mesh)) = SIDECAR_IDS.iter().find(|(known, _)| Some(*known) == id) {
                let text = format!(
                    "it runs as {} of {mesh}'s sidecars, whose packets they let pass",
                    if field == "runAsUser" {
                        "the user"
                    } else {
                        "the group"
                    }
                );
                add(Kind::SidecarUid, at(field), text);
            }
        }
        let network: Vec<&str> = added(&container)
            .filter(|name| CAPABILITIES.contains(name))
            .collect();
        if !network.is_empty() {
            let text = format!(
                "it may change its pod's network or write packets by itself ({})",
                network.join(", ")
            );
            add(Kind::NetworkCapability, at("capabilities.add"), text);
        }
    }
    risks.extend(node_access::of_pod(
        pod,
        &object,
        desired.hold == Hold::Enforce,
    ));
    risks
}

/// User and group that a container runs as; the pod's where it has none of its own.
fn ids(pod: &Pod, container: &Container<'_>) -> [(&'static str, Option<i64>); 2] {
    let of_pod = pod
        .spec
        .as_ref()
        .and_then(|it| it.security_context.as_ref());
    let own = container.security;
    let user = own.and_then(|it| it.run_as_user);
    let group = own.and_then(|it| it.run_as_group);
    [
        ("runAsUser", user.or(of_pod.and_then(|it| it.run_as_user))),
        (
            "runAsGroup",
            group.or(of_pod.and_then(|it| it.run_as_group)),
        ),
    ]
}
