//! How a pod gets out of its own namespaces, where nothing of the node can hold it.

use k8s_openapi::api::core::v1::Pod;

use super::pods::containers;
use super::{Kind, Risk, Standing};
use crate::index::node_access;

const BASELINE: &str = "forbid it by Pod Security admission (`baseline`)";

/// `held`: its packets are judged as long as it does not do so.
pub(super) fn of_pod(pod: &Pod, object: &str, held: bool) -> Vec<Risk> {
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
    for way in node_access(pod) {
        let text = format!(
            "{}; as long as it does not, its packets are judged as its pod's",
            way.why
        );
        add(Kind::NodeAccess, way.field, &text, BASELINE);
    }
    for container in containers(pod) {
        let proc_mount = container.security.and_then(|it| it.proc_mount.as_deref());
        if proc_mount == Some("Unmasked") {
            let at = format!("container {}: securityContext.procMount", container.name);
            let text = "it may write what the node's kernel runs by (/proc/sys)";
            add(Kind::NodeAccess, at, text, BASELINE);
        }
    }
    let Some(spec) = &pod.spec else {
        return risks;
    };
    if spec.host_pid == Some(true) {
        let text = "it sees the node's processes, whose namespaces it can enter with the right \
                    capabilities";
        add(Kind::NodeAccess, "spec.hostPID".to_owned(), text, BASELINE);
    }
    if spec.host_ipc == Some(true) {
        let text = "it shares memory with the node's processes, which may send for it";
        add(Kind::NodeAccess, "spec.hostIPC".to_owned(), text, BASELINE);
    }
    if spec.host_network == Some(true) {
        let text = "its packets are the node's: only those from its own sockets are judged, not \
                    those of packet sockets";
        let advice = "give it a network of its own, or forbid it by Pod Security admission";
        let at = "spec.hostNetwork".to_owned();
        add(Kind::HostNetwork, at, text, advice);
    }
    risks
}
