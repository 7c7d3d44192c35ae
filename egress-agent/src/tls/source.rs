//! Where certificates come from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::identity::Identity;
use super::{files, workload};

/// The latest identity; none before there was a good one.
pub type Identities = watch::Receiver<Option<Arc<Identity>>>;

/// Follows certificates until nobody asks for them any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of `tls.crt`, `tls.key` and `ca.crt`, in PEM form, as cert-manager's secrets
    /// and SPIFFE helpers write them.
    Files(PathBuf),
    /// The SPIFFE Workload API, such as `unix:///run/spire/agent-sockets/spire-agent.sock`; of
    /// several bundles the one of this trust domain is used.
    WorkloadApi {
        endpoint: String,
        trust_domain: String,
    },
}

impl Source {
    pub fn files(directory: &Path) -> Self {
        Self::Files(directory.to_owned())
    }

    /// Starts to follow it. What can't be used is logged once, with what to do, and the last good
    /// identity stands.
    pub fn follow(self) -> (Identities, impl Future<Output = ()> + Send) {
        let (sender, receiver) = watch::channel(None);
        let publisher = Publisher {
            sender,
            trouble: None,
        };
        let task = async move {
            match self {
                Self::Files(directory) => files::follow(&directory, publisher).await,
                Self::WorkloadApi {
                    endpoint,
                    trust_domain,
                } => workload::follow(&endpoint, &trust_domain, publisher).await,
            }
        };
        (receiver, task)
    }
}

/// The sending end: says each trouble once.
#[derive(Debug)]
pub(super) struct Publisher {
    sender: watch::Sender<Option<Arc<Identity>>>,
    trouble: Option<String>,
}

impl Publisher {
    /// Completes when nobody listens any more.
    pub(super) async fn closed(&self) {
        self.sender.closed().await;
    }

    /// Whether there was a good identity.
    pub(super) fn has_one(&self) -> bool {
        self.sender.borrow().is_some()
    }

    pub(super) fn good(&mut self, identity: Identity) {
        if self.trouble.take().is_some() {
            tracing::info!(event = "certificate_trouble_gone");
        }
        let news = self
            .sender
            .borrow()
            .as_ref()
            .is_none_or(|before| !before.same(&identity));
        if news {
            tracing::info!(
                event = "certificate_loaded",
                id = %identity.id(),
                not_after = identity.not_after_seconds(),
            );
            self.sender.send_replace(Some(Arc::new(identity)));
        }
    }

    pub(super) fn bad(&mut self, source: &str, trouble: &str) {
        if self.trouble.as_deref() == Some(trouble) {
            return;
        }
        tracing::error!(
            event = "certificate_trouble",
            source,
            reason = trouble,
            stands = if self.has_one() {
                "the last good one"
            } else {
                "none"
            },
        );
        self.trouble = Some(trouble.to_owned());
    }
}
