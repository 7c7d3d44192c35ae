//! The gateways' Envoy configuration, from the same index.

use std::collections::BTreeSet;

use anyhow::Result;
use sha2::{Digest, Sha256};

use super::options::Options;
use crate::gateway::{self, GatewayPolicy, OutboundPolicy, Rendered, Writer, from_index};
use crate::index::{Index, Key};

/// What the gateways let through, and the files that tell them.
#[derive(Debug)]
pub struct Gateways {
    trust_domain: String,
    cluster: Option<String>,
    outbound: OutboundPolicy,
    policy: GatewayPolicy,
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
            policy: GatewayPolicy::default(),
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
        self.policy = policy;
        if let Some(output) = &mut self.output {
            output.rendered = gateway::render(&self.policy, &output.settings);
        }
    }

    /// Whether some gateway may let this service account through to something.
    pub fn admits(&self, account: &Key) -> bool {
        self.policy.admits(&account.namespace, &account.name)
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
