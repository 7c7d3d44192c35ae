//! What came of a pass: said in the log, the metrics, the status file and Events, and each thing once.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::core::Core;
use super::status::{Notice, Regarding};
use crate::reconcile::{Coverage, NodeStatus, PodStatus, Report};

impl Core {
    /// Says each failure once, for as long as it lasts.
    pub(super) fn log_failures(&mut self, report: &Report) {
        let mut failures = BTreeSet::new();
        for failure in &report.failures {
            let text = format!(
                "{}: can't {}: {}",
                failure.subject, failure.op, failure.error
            );
            if !self.failures.contains(&text) {
                tracing::error!(
                    event = "reconcile_failed", subject = %failure.subject, op = failure.op,
                    error = failure.error, "tried again until it works"
                );
            }
            failures.insert(text);
        }
        for (uid, reason) in &report.refused {
            let text = format!("pod {uid}: {reason}");
            if !self.failures.contains(&text) {
                tracing::error!(event = "pod_refused", uid, reason);
            }
            failures.insert(text);
        }
        self.failures = failures;
    }

    /// Says which devices the fence can't be closed for, once.
    pub(super) fn tell_left_out(&self, now: &BTreeSet<u32>) {
        if self.observed.fence.is_none() {
            return;
        }
        for ifindex in now.difference(&self.observed.shared) {
            tracing::warn!(
                event = "fence_left_out",
                ifindex,
                "somebody else's program sees what comes in by this device, too, and might take off the mark of \
                 ours: what the kernel hands on past both is not stopped"
            );
        }
    }

    /// Logs who became covered or uncovered, and writes the status file if it is news.
    pub(super) fn publish(&mut self, status: NodeStatus) -> Result<()> {
        let before: BTreeMap<&str, (Coverage, Option<&String>)> = self
            .status
            .pods
            .iter()
            .map(|pod| (pod.uid.as_str(), (pod.coverage, pod.reason.as_ref())))
            .collect();
        for pod in &status.pods {
            let now = (pod.coverage, pod.reason.as_ref());
            if before.get(pod.uid.as_str()) == Some(&now) {
                continue;
            }
            let (namespace, name) = (&pod.namespace, &pod.name);
            let was = before.get(pod.uid.as_str()).map(|(coverage, _)| *coverage);
            if pod.coverage.is_open() {
                let reason = pod.reason.as_deref().unwrap_or_default();
                let note = format!("its egress is not held (mode {}): {reason}", pod.mode);
                let notice = notice(pod, true, "EgressUncovered", note);
                self.board.notice(notice);
                tracing::warn!(
                    event = "pod_uncovered",
                    namespace,
                    name,
                    mode = pod.mode,
                    reason = pod.reason.as_deref().unwrap_or_default()
                );
            } else if pod.coverage == Coverage::Covered {
                if was.is_some_and(Coverage::is_open) {
                    let note = "its egress is held".to_owned();
                    self.board.notice(notice(pod, false, "EgressCovered", note));
                }
                tracing::info!(event = "pod_covered", namespace, name, mode = pod.mode);
            }
        }
        let counted = status.pods.iter();
        self.metrics
            .set_pods(counted.map(|pod| (pod.mode, pod.coverage.name())));
        if self.status != status || !self.announced || !self.run_dir.has_told("status.json") {
            let text = serde_json::to_vec_pretty(&status)?;
            self.run_dir.tell("status.json", &text);
            self.status = status;
        }
        Ok(())
    }
}

/// What happened to a pod.
pub(super) fn notice(pod: &PodStatus, warning: bool, reason: &'static str, note: String) -> Notice {
    Notice {
        regarding: Regarding {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            // Of a static pod the hash, by which kubelet's Events are found too.
            uid: pod.uid.clone(),
        },
        warning,
        reason,
        action: "Hold",
        note,
    }
}
