//! The gateways' Envoy configuration, from the same index.

use std::collections::BTreeSet;

use anyhow::Result;
use sha2::{Digest, Sha256};

use super::options::Options;
use crate::gateway::{self, OutboundPolicy, Rendered, Writer, from_index};
use crate::index::Index;

/// What is rendered for the gateways, and where it goes.
#[derive(Debug)]
pub struct Gateways {
    settings: gateway::Settings,
    trust_domain: String,
    cluster: Option<String>,
    outbound: OutboundPolicy,
    writer: Writer,
    rendered: Rendered,
    problems: BTreeSet<String>,
}

impl Gateways {
    /// None if no directory was given.
    pub fn new(options: &Options) -> Option<Self> {
        // The command line takes all three or none.
        let config_dir = options.gateway_config_dir.clone()?;
        let settings = gateway::Settings {
            cert_dir: options.gateway_cert_dir.clone()?,
            upstream_ca: options.gateway_upstream_ca.clone()?,
            config_dir: config_dir.clone(),
        };
        Some(Self {
            settings,
            trust_domain: options.trust_domain.clone(),
            cluster: options.cluster_name.clone(),
            outbound: options.outbound_policy.into(),
            writer: Writer::new(config_dir),
            rendered: Rendered::default(),
            problems: BTreeSet::new(),
        })
    }

    /// Renders anew, and says what is wrong, each once.
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
        self.rendered = gateway::render(&policy, &self.settings);
    }

    /// Writes the files that differ.
    pub fn write(&self) -> Result<()> {
        let written = self.writer.write(&self.rendered)?;
        for path in written {
            tracing::info!(event = "gateway_written", path = %path.display());
        }
        Ok(())
    }

    pub fn hash(&self, hash: &mut Sha256) {
        for (name, files) in &self.rendered.gateways {
            hash.update(name);
            for file in files {
                hash.update(&file.content);
            }
        }
    }
}
