//! What the gateways are told, from the same index.

use std::collections::BTreeSet;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::options::Options;
use crate::gateway::{self, OutboundPolicy, Problem};
use crate::index::{Index, Key};
use crate::policy_server::Served;

/// What the gateways let through, and the files that tell them.
#[derive(Debug)]
pub struct Gateways {
    trust_domain: String,
    cluster: Option<String>,
    outbound: OutboundPolicy,
    /// The latest; served once everything it rests on could be read.
    compiled: Arc<Served>,
    served: watch::Sender<Arc<Served>>,
    problems: BTreeSet<Problem>,
    /// None if gateways get no configuration from here.
    rendering: Option<gateway::Settings>,
}

impl Gateways {
    pub fn new(options: &Options) -> Self {
        // The command line takes both or none.
        let files = (
            options.gateway_cert_dir.clone(),
            options.gateway_upstream_ca.clone(),
        );
        let rendering = match files {
            (Some(cert_dir), Some(upstream_ca)) => Some(gateway::Settings {
                cert_dir,
                upstream_ca,
                authorization: options.gateway_authz.into(),
                binding: options.client_binding.into(),
            }),
            _ => None,
        };
        Self {
            trust_domain: options.trust_domain.clone(),
            cluster: options.cluster_name.clone(),
            outbound: options.outbound_policy.into(),
            compiled: Arc::default(),
            served: watch::Sender::new(Arc::default()),
            problems: BTreeSet::new(),
            rendering,
        }
    }

    /// Compiles and renders anew, and says what is wrong, each once.
    pub fn compile(&mut self, index: &Index) {
        let (served, problems) = Served::from_index(
            index,
            &self.trust_domain,
            self.cluster.as_deref(),
            self.outbound,
            self.rendering.as_ref(),
        );
        let now: BTreeSet<Problem> = problems.into_iter().collect();
        for problem in now.difference(&self.problems) {
            tracing::warn!(
                event = "gateway_problem",
                object = problem.object,
                field = problem.field,
                reason = problem.reason
            );
        }
        self.problems = now;
        self.compiled = Arc::new(served);
    }

    /// What is wrong with objects.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    /// What the policy server answers from, from now on.
    pub fn served(&self) -> watch::Receiver<Arc<Served>> {
        self.served.subscribe()
    }

    /// Hands the compiled state to the policy server.
    pub fn publish(&self) {
        self.served.send_if_modified(|served| {
            let news = served.revision != self.compiled.revision;
            if news {
                tracing::info!(
                    event = "policy_served",
                    revision = self.compiled.revision,
                    gateways = self.compiled.policy.gateways.len(),
                    clients = self.compiled.clients.len()
                );
                *served = self.compiled.clone();
            }
            news
        });
    }

    /// Whether some gateway may let this service account through to something.
    pub fn admits(&self, account: &Key) -> bool {
        self.compiled
            .policy
            .admits(&account.namespace, &account.name)
    }

    pub fn hash(&self, hash: &mut Sha256) {
        hash.update(&self.compiled.revision);
    }
}
