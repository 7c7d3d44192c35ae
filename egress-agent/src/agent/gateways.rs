//! What the gateways are told, from the same index.

use std::collections::BTreeSet;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::options::Options;
use crate::gateway::{self, OutboundPolicy, from_index};
use crate::index::{Index, Key};
use crate::policy_server::{self, Served};

/// What the gateways let through, and the files that tell them.
#[derive(Debug)]
pub struct Gateways {
    trust_domain: String,
    cluster: Option<String>,
    outbound: OutboundPolicy,
    /// The latest; served once everything it rests on could be read.
    compiled: Arc<Served>,
    served: watch::Sender<Arc<Served>>,
    problems: BTreeSet<String>,
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
        let objects = from_index::objects(
            index,
            &self.trust_domain,
            self.cluster.as_deref(),
            self.outbound,
        );
        let (policy, problems) = gateway::compile(&objects);
        let mut now = BTreeSet::new();
        for problem in problems {
            let text = format!("{}: {}: {}", problem.object, problem.field, problem.reason);
            if !self.problems.contains(&text) {
                tracing::warn!(
                    event = "gateway_problem",
                    object = problem.object,
                    field = problem.field,
                    reason = problem.reason
                );
            }
            now.insert(text);
        }
        self.problems = now;
        let resources = self
            .rendering
            .as_ref()
            .map(|settings| gateway::render(&policy, settings))
            .unwrap_or_default();
        let mut served = Served {
            resources,
            policy,
            gateway_pods: policy_server::gateway_pods(index, &self.trust_domain),
            clients: policy_server::clients(index),
            ..Served::default()
        };
        served.revision = revision(&served);
        self.compiled = Arc::new(served);
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

/// Names a state by its contents.
fn revision(served: &Served) -> String {
    let mut hash = Sha256::new();
    hash.update(format!(
        "{:?} {:?} {:?}",
        served.policy, served.gateway_pods, served.clients
    ));
    let bytes = hash.finalize();
    let (head, _) = bytes.split_first_chunk().expect("SHA-256 is longer");
    format!("{:016x}", u64::from_be_bytes(*head))
}
