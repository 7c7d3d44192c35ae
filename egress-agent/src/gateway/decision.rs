//! What was decided about one request or connection, and by what.

use super::policy::{ObjectName, Rules};
use super::verdict::Verdict;

/// What becomes of a request or connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// The `ExternalService` that names the host.
    pub service: Option<ObjectName>,
    /// Policy of the entry that admits it.
    pub object: Option<ObjectName>,
    /// Position of that entry in its policy.
    pub entry: Option<usize>,
    /// Where no entry admits: the first policy that names the host.
    pub closed_by: Option<ObjectName>,
    /// What it would be if the dry-run entries were enforced; none if there are none.
    pub dry_run: Option<bool>,
    /// Policy and position of the entry that would admit it then: the one that admits it now, else
    /// the first of the dry-run entries.
    pub would: Option<(ObjectName, usize)>,
    pub reason: AccessReason,
}

/// Why a request is allowed or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AccessReason {
    /// An entry admits it.
    Admitted,
    /// No access policy names the host.
    NoPolicy,
    /// No external service names the host, and the setting is `ALLOW_ANY`.
    AnyHost,
    /// The client's trust domain is another one.
    TrustDomain,
    /// No such gateway, or it does not listen there.
    NoListener,
    /// The host is not a host name, or its port not a port.
    BadHost,
    /// The path can't be read in one way only.
    BadPath,
    /// The gateway does not serve the host.
    UnknownHost,
    /// It serves the host, but not for the port that the client asked for.
    UnknownPort,
    /// Access policies name the host and no entry admits the request.
    NotAdmitted,
}

impl AccessReason {
    /// The stable name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::NoPolicy => "no-policy",
            Self::AnyHost => "any-host",
            Self::TrustDomain => "trust-domain",
            Self::NoListener => "no-listener",
            Self::BadHost => "bad-host",
            Self::BadPath => "bad-path",
            Self::UnknownHost => "unknown-host",
            Self::UnknownPort => "unknown-port",
            Self::NotAdmitted => "not-admitted",
        }
    }
}

impl Decision {
    /// A refusal before any rule was looked at.
    pub(super) fn refused(reason: AccessReason) -> Self {
        Self {
            allowed: false,
            service: None,
            object: None,
            entry: None,
            closed_by: None,
            dry_run: None,
            would: None,
            reason,
        }
    }

    /// What the rules of a route say.
    pub(super) fn of(rules: &Rules, service: Option<&ObjectName>, verdict: &Verdict<'_>) -> Self {
        let winner = verdict.winner;
        let reason = match (winner, rules.closed, service) {
            (Some(_), ..) => AccessReason::Admitted,
            (None, true, _) => AccessReason::NotAdmitted,
            (None, false, Some(_)) => AccessReason::NoPolicy,
            (None, false, None) => AccessReason::AnyHost,
        };
        let would = verdict.would.filter(|_| rules.has_dry_run());
        Self {
            allowed: winner.is_some() || !rules.closed,
            service: service.cloned(),
            object: winner.map(|entry| entry.policy.clone()),
            entry: winner.map(|entry| entry.index),
            closed_by: rules.closing().filter(|_| winner.is_none()).cloned(),
            dry_run: rules.has_dry_run().then_some(would.is_some()),
            would: would.map(|entry| (entry.policy.clone(), entry.index)),
            reason,
        }
    }

    /// The object that decided, and the entry of it that did: `AccessPolicy/namespace/name#entry`
    /// admits, `AccessPolicy/namespace/name` has no entry that does, `ExternalService/namespace/name`
    /// is open as nothing closes it, and `ALLOW_ANY` is a setting. None where no object knows of it.
    pub fn decided_by(&self) -> Option<String> {
        match (&self.object, self.entry, &self.closed_by, &self.service) {
            (Some(policy), Some(entry), ..) => Some(label(policy, entry)),
            (_, _, Some(policy), _) => Some(format!("AccessPolicy/{policy}")),
            _ if !self.allowed => None,
            (_, _, _, Some(service)) => Some(format!("ExternalService/{service}")),
            _ => Some(ANY_HOST.to_owned()),
        }
    }

    /// The entry that would admit it with the dry-run entries.
    pub fn would_be_by(&self) -> Option<String> {
        let (policy, entry) = self.would.as_ref()?;
        Some(label(policy, *entry))
    }
}

/// What decides about a host that nothing names.
pub(super) const ANY_HOST: &str = "ALLOW_ANY";

fn label(policy: &ObjectName, entry: usize) -> String {
    format!("AccessPolicy/{policy}#{entry}")
}
