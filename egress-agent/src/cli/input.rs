//! Objects from files, for commands that need no node.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::agent::Outbound;
use crate::gateway::{GatewayObjects, from_index};
use crate::index::{Index, Object};
use crate::source::{Files, Snapshot, YamlDir};

/// Where objects come from.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Input {
    /// Files with objects, as `kubectl get -o yaml` prints them, service accounts included; `-` is
    /// stdin
    #[arg(value_name = "FILE", required_unless_present = "state_dir")]
    files: Vec<PathBuf>,
    /// Directory that the agent reads objects from
    #[arg(
        long,
        env = "SALLYPORT_STATE_DIR",
        value_name = "DIR",
        conflicts_with = "files"
    )]
    state_dir: Option<PathBuf>,
}

impl Input {
    /// All of them; that one can't be read is an error, since half of the objects would say
    /// something else than all.
    pub fn read(&self) -> Result<(Vec<Object>, Index)> {
        let snapshot = if let Some(directory) = &self.state_dir {
            let (_, snapshot) = YamlDir::open(directory)?;
            let snapshot = snapshot.borrow();
            Snapshot::clone(&snapshot)
        } else {
            let mut readings = BTreeMap::new();
            for path in &self.files {
                let text = if path.as_os_str() == "-" {
                    let mut text = String::new();
                    io::stdin().read_to_string(&mut text).map(|_| text)
                } else {
                    std::fs::read_to_string(path)
                };
                let text = text.with_context(|| format!("can't read {}", path.display()))?;
                readings.insert(path.clone(), Ok(text));
            }
            let mut files = Files::default();
            files.update(readings);
            files.snapshot()
        };
        if let Some(problem) = snapshot.problems.first() {
            bail!("{problem}");
        }
        let mut index = Index::default();
        index.reset(snapshot.objects.clone());
        if let Some(problem) = index.problems().next() {
            bail!("{problem}");
        }
        Ok((snapshot.objects, index))
    }
}

/// What the objects don't say of the mesh they are in.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Mesh {
    /// SPIFFE trust domain of the clients
    #[arg(long, env = "SALLYPORT_TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Name of this cluster in selectors that give one [default: every name is this cluster]
    #[arg(long, env = "SALLYPORT_CLUSTER_NAME", value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// What happens to a host that no external service names
    #[arg(
        long,
        env = "SALLYPORT_OUTBOUND_POLICY",
        value_enum,
        default_value_t = Outbound::RegistryOnly
    )]
    outbound_policy: Outbound,
}

impl Mesh {
    /// What policy is compiled from.
    pub fn objects<'a>(&self, index: &'a Index) -> GatewayObjects<'a> {
        from_index::objects(
            index,
            &self.trust_domain,
            self.cluster_name.as_deref(),
            self.outbound_policy.into(),
        )
    }

    /// Whether hosts that no external service names are let through.
    pub fn allows_any(&self) -> bool {
        self.outbound_policy == Outbound::AllowAny
    }
}
