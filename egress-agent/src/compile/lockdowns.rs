//! Which lockdowns hold a pod, and what they come to together.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::desired::Hold;
use crate::api::EgressLockdownSpec;
use crate::api::lockdown::{GatewayAccess, Mode, OnDeny};
use crate::api::selector;
use crate::index::{Index, Pod};

/// What a pod's lockdowns come to.
#[derive(Debug, Default)]
pub(super) struct Holding<'a> {
    pub hold: Hold,
    pub on_deny: OnDeny,
    /// The gateways are for pods that an access policy admits.
    pub by_policy: bool,
    /// Those that hold it, sorted by name.
    pub lockdowns: Vec<(&'a str, &'a EgressLockdownSpec)>,
}

/// The mode of a lockdown at a time.
pub(super) fn hold_at(spec: &EgressLockdownSpec, now: Timestamp) -> Hold {
    match spec.mode {
        Mode::Off => Hold::Off,
        Mode::Enforce => Hold::Enforce,
        Mode::Audit
            if spec
                .audit_until
                .as_ref()
                .is_some_and(|until| until.0 <= now) =>
        {
            Hold::Enforce
        }
        Mode::Audit => Hold::Audit,
    }
}

/// The next time at which a lockdown changes its mode by itself.
pub(super) fn next_change(index: &Index, now: Timestamp) -> Option<Timestamp> {
    let audited = index
        .lockdowns()
        .values()
        .filter(|spec| spec.mode == Mode::Audit);
    audited
        .filter_map(|spec| Some(spec.audit_until.as_ref()?.0))
        .filter(|at| *at > now)
        .min()
}

/// Lays the lockdowns that select the pod together: the strictest of each wins, and the lists of
/// what is allowed add up.
pub(super) fn holding<'a>(
    index: &'a Index,
    namespace: &str,
    pod: &Pod,
    now: Timestamp,
) -> Holding<'a> {
    let mut labels: BTreeMap<String, String> =
        index.namespace(namespace).cloned().unwrap_or_default();
    // Kubernetes sets this one itself; a directory of files need not.
    labels.insert(
        "kubernetes.io/metadata.name".to_owned(),
        namespace.to_owned(),
    );
    let mut holding = Holding {
        on_deny: OnDeny::Reject,
        ..Holding::default()
    };
    for (name, spec) in index.lockdowns() {
        let hold = hold_at(spec, now);
        if hold == Hold::Off
            || !selector::matches(spec.namespace_selector.as_ref(), &labels)
            || !selector::matches(spec.pod_selector.as_ref(), &pod.labels)
        {
            continue;
        }
        holding.hold = holding.hold.max(hold);
        if spec.on_deny == OnDeny::Drop {
            holding.on_deny = OnDeny::Drop;
        }
        holding.by_policy |= spec.gateway_access == GatewayAccess::Policy;
        holding.lockdowns.push((name, spec));
    }
    if holding.lockdowns.is_empty() {
        holding.on_deny = OnDeny::Drop;
    }
    holding
}
