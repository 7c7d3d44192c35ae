//! What the gateways are told, from the same index.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::options::Options;
use crate::gateway::{self, OutboundPolicy, Rendered, Writer, from_index};
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
    /// None if no directory was given.
    output: Option<Output>,
}

#[derive(Debug)]
struct Output {
    settings: gateway::Settings,
    writer: Writer,
    rendered: Rendered,
}

impl Gateways {
    pub fn new(options: &Options) -> Self {
        // The command line takes all three or none.
        let directories = (
            options.gateway_config_dir.clone(),
            options.gateway_cert_dir.clone(),
            options.gateway_upstream_ca.clone(),
        );
        let output = match directories {
            (Some(config_dir), Some(cert_dir), Some(upstream_ca)) => Some(Output {
                writer: Writer::new(config_dir.clone()),
                settings: gateway::Settings {
                    cert_dir,
                    upstream_ca,
                    config_dir,
                },
                rendered: Rendered::default(),
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
            output,
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
        if let Some(output) = &mut self.output {
            output.rendered = gateway::render(&policy, &output.settings);
        }
        let mut served = Served {
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

    /// Writes the files that differ.
    pub fn write(&self) -> Result<()> {
        let Some(output) = &self.output else {
            return Ok(());
        };
        let written = output.writer.write(&output.rendered)?;
        for path in written {
            tracing::info!(event = "gateway_written", path = %path.display());
        }
        Ok(())
    }

    pub fn hash(&self, hash: &mut Sha256) {
        hash.update(&self.compiled.revision);
        let rendered = self
            .output
            .iter()
            .flat_map(|output| &output.rendered.gateways);
        for (name, files) in rendered {
            hash.update(name);
            for file in files {
                hash.update(&file.content);
            }
        }
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
