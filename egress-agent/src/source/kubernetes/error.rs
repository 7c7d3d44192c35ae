//! What goes wrong between the agent and the API server, said so that it can be mended.

use std::fmt;
use std::time::Duration;

use super::watches::Resource;

/// Why the agent has no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("can't read the kubeconfig {file}: {error}")]
    Kubeconfig {
        file: String,
        error: kube::config::KubeconfigError,
    },
    #[error(
        "there is neither a kubeconfig ($KUBECONFIG, ~/.kube/config or --kubeconfig: {0}) nor a \
         service account of a pod ({1}); give one, or --source directory"
    )]
    Nothing(kube::config::KubeconfigError, kube::config::InClusterError),
    #[error("can't make a client of the API server {server}: {error}")]
    Client { server: String, error: kube::Error },
}

/// Why a list or watch failed.
#[derive(Debug)]
pub enum Trouble {
    Client(kube::Error),
    /// No answer for so long.
    Silent(Duration),
    /// What came is no list.
    Unreadable(serde_json::Error),
    /// There is nothing to go on from.
    NoVersion,
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        Self::Client(error)
    }
}

impl Trouble {
    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Client(kube::Error::Api(status)) => Some(status),
            _ => None,
        }
    }

    /// The API server answered.
    pub fn is_answer(&self) -> bool {
        self.status().is_some()
    }

    /// It is necessary to list anew: the version is too old, or one that the API server never had
    /// (its store was put back to an older state).
    pub fn is_expired(&self) -> bool {
        self.status().is_some_and(|status| {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            status.code == 410
                || matches!(status.reason.as_str(), "Expired" | "Gone")
                || causes
                    .into_iter()
                    .any(|cause| cause.reason == "ResourceVersionTooLarge")
        })
    }

    /// There is no such resource.
    pub fn is_absent(&self) -> bool {
        self.status().is_some_and(|status| status.code == 404)
    }

    /// The agent may not.
    pub fn is_forbidden(&self) -> bool {
        self.status().is_some_and(|status| status.code == 403)
    }

    /// How long the API server wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        let details = self.status()?.details.as_ref()?;
        // An hour of silence is nobody's right.
        let seconds = details.retry_after_seconds.min(60);
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }

    /// What to tell about it.
    pub fn explain(&self, resource: &Resource) -> String {
        match self.status() {
            Some(status) if status.code == 403 => format!(
                "the agent may not list and watch {resource}: {}. Its ClusterRole needs a rule \
                 with apiGroups [\"{}\"], resources [\"{}\"]{}, verbs [\"list\", \"watch\"]",
                status.message,
                resource.group,
                resource.plural,
                resource.only_name().map_or_else(String::new, |name| {
                    format!(", resourceNames [\"{name}\"]")
                })
            ),
            Some(status) if status.code == 401 => format!(
                "the API server doesn't accept the agent's credentials: {}",
                status.message
            ),
            Some(status) if status.code == 404 => format!(
                "the API server doesn't know {resource} of version {}; is its \
                 CustomResourceDefinition installed, and does it serve that version?",
                resource.version
            ),
            _ => format!("can't list and watch {resource}: {self}"),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(kube::Error::Api(status)) => {
                write!(f, "{} {}: {}", status.code, status.reason, status.message)
            }
            Self::Client(error) => chain(f, error),
            Self::Silent(wait) => write!(f, "no answer for {} s", wait.as_secs()),
            Self::Unreadable(error) => write!(f, "what came is no list: {error}"),
            Self::NoVersion => f.write_str("what came has no resourceVersion"),
        }
    }
}

/// An error with what caused it, which the client's errors leave out.
fn chain(f: &mut fmt::Formatter<'_>, error: &dyn std::error::Error) -> fmt::Result {
    let mut said = error.to_string();
    f.write_str(&said)?;
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            write!(f, ": {text}")?;
            said = text;
        }
        cause = error.source();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::super::watches::{Policy, Watch};
    use super::*;

    fn trouble(code: u16, reason: &str) -> Trouble {
        let status = Status::failure("User \"agent\" cannot list it", reason).with_code(code);
        kube::Error::Api(status.boxed()).into()
    }

    #[test]
    fn a_missing_rule_is_named() {
        let resource = Watch::Own(Policy::EgressLockdown).resource("a");
        let told = trouble(403, "Forbidden").explain(&resource);
        for part in [
            "egresslockdowns.sallyport.dev",
            "User \"agent\"",
            "apiGroups [\"sallyport.dev\"]",
            "resources [\"egresslockdowns\"]",
            "[\"list\", \"watch\"]",
        ] {
            assert!(told.contains(part), "no {part} in {told}");
        }
        let resource = Watch::Definition(Policy::AccessPolicy).resource("a");
        let told = trouble(403, "Forbidden").explain(&resource);
        let name = "resourceNames [\"accesspolicies.security.policy.gloo.solo.io\"]";
        assert!(told.contains(name), "{told}");
        let resource = Watch::Own(Policy::EgressLockdown).resource("a");
        let told = trouble(404, "NotFound").explain(&resource);
        assert!(
            told.contains("CustomResourceDefinition") && told.contains("v1alpha1"),
            "{told}"
        );
    }

    #[test]
    fn what_calls_for_a_new_list_is_known() {
        assert!(trouble(410, "Expired").is_expired());
        assert!(trouble(200, "Gone").is_expired());
        assert!(!trouble(500, "InternalError").is_expired());
        assert!(trouble(404, "NotFound").is_absent());
    }
}
