//! What the container runtime tells of pods, into the index, and what a pass says of them, back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::index::{Announced, Index, Key, Pod};
use crate::nri::{Sandbox, Sandboxes, Standing};
use crate::reconcile::{Coverage, NodeStatus, PodStatus};

/// The sandboxes as pods of this node.
pub fn pods(sandboxes: &Sandboxes, node: &str) -> BTreeMap<String, Announced> {
    let pods = sandboxes.by_uid.iter();
    pods.map(|(uid, sandbox)| (uid.clone(), pod(sandbox, node)))
        .collect()
}

fn pod(sandbox: &Sandbox, node: &str) -> Announced {
    let pod = Pod {
        uid: sandbox.uid.clone(),
        node: node.to_owned(),
        labels: sandbox.labels.clone(),
        // The runtime doesn't tell its service account: no access policy admits it until its
        // object comes.
        service_account: String::new(),
        host_network: sandbox.host_network,
        ips: sandbox.ips.clone(),
        ..Pod::default()
    };
    Announced {
        key: Key::new(&sandbox.namespace, &sandbox.name),
        pod,
        early: !sandbox.running_before,
    }
}

/// The files of network namespaces, by UID, as the agent sees them: the runtime's `/var/run` is a
/// link to `/run`, which the agent's own file system need not have.
pub fn namespaces(sandboxes: &Sandboxes) -> BTreeMap<String, PathBuf> {
    let below_run = |path: &Path| match path.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => path.to_owned(),
    };
    let pods = sandboxes.by_uid.values();
    pods.filter_map(|it| Some((it.uid.clone(), below_run(it.netns.as_deref()?))))
        .collect()
}

/// What `status` says of the sandboxes' pods. `strict`: a namespace that is not known may have
/// labels by which a lockdown selects it.
pub fn standings(
    sandboxes: &Sandboxes,
    status: &NodeStatus,
    index: &Index,
    strict: bool,
) -> BTreeMap<String, Standing> {
    let pods = status.pods.iter();
    pods.filter(|pod| sandboxes.by_uid.contains_key(&pod.uid))
        .map(|pod| {
            let known = !strict || index.namespace(&pod.namespace).is_some();
            (pod.uid.clone(), standing(pod, known))
        })
        .collect()
}

fn standing(pod: &PodStatus, namespace_known: bool) -> Standing {
    // A pod is held by all of the lockdowns that select it.
    if !namespace_known {
        return Standing::Waits {
            reason: format!("namespace {} is not known yet", pod.namespace),
            audited: false,
        };
    }
    let reason = match pod.coverage {
        // What can't be held is not held by waiting either.
        Coverage::Covered | Coverage::HostNetwork | Coverage::NodeAccess | Coverage::NotHeld => {
            return Standing::Ready;
        }
        Coverage::Waiting => "it has neither a process nor a device yet",
        Coverage::Uncovered => pod.reason.as_deref().unwrap_or("it is uncovered"),
    };
    Standing::Waits {
        reason: reason.to_owned(),
        audited: pod.mode == "audit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(coverage: Coverage, mode: &'static str) -> PodStatus {
        PodStatus {
            uid: "u".into(),
            namespace: "shop".into(),
            name: "web".into(),
            service_account: String::new(),
            mode,
            gateway: false,
            coverage,
            reason: Some("a macvlan".into()),
            slot: None,
            cgroup: None,
            policy: None,
            lockdowns: Vec::new(),
            devices: Vec::new(),
        }
    }

    #[test]
    fn a_pod_is_ready_when_its_hooks_stand_or_nothing_holds_it() {
        for coverage in [
            Coverage::Covered,
            Coverage::HostNetwork,
            Coverage::NodeAccess,
            Coverage::NotHeld,
        ] {
            let pod = status(coverage, "enforce");
            assert_eq!(standing(&pod, true), Standing::Ready);
            // Its namespace's labels may name another lockdown.
            assert_ne!(standing(&pod, false), Standing::Ready);
        }
        for (mode, expected) in [("enforce", false), ("audit", true)] {
            let told = standing(&status(Coverage::Uncovered, mode), true);
            let reason = "a macvlan".to_owned();
            let audited = expected;
            assert_eq!(told, Standing::Waits { reason, audited });
        }
    }

    #[test]
    fn namespaces_files_are_looked_for_where_the_agent_has_them() {
        let sandbox = |uid: &str, path: &str| Sandbox {
            uid: uid.to_owned(),
            netns: Some(path.into()),
            ..Sandbox::default()
        };
        let by_uid = [
            sandbox("a", "/var/run/netns/cni-1"),
            sandbox("b", "/run/netns/cni-2"),
        ];
        let by_uid = by_uid.map(|sandbox| (sandbox.uid.clone(), sandbox)).into();
        let files = namespaces(&Sandboxes { version: 1, by_uid });
        assert_eq!(files["a"], Path::new("/run/netns/cni-1"));
        assert_eq!(files["b"], Path::new("/run/netns/cni-2"));
    }
}
