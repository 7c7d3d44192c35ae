//! The source of objects that was chosen.

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use super::options::{Gloo, Options, Source};
use crate::index::Heritage;
use crate::source::kubernetes::{self, Kubernetes, Pace};
use crate::source::{Updates, YamlDir, feed};

/// Starts reading. The first update comes when everything was read once.
///
/// # Errors
/// If the directory can't be read, or there is no client of the API server. An API server that
/// doesn't answer is none: it is asked until it does.
pub async fn open(
    options: &Options,
    heritage: Heritage,
    tasks: &mut JoinSet<()>,
) -> Result<Updates> {
    match options.source {
        Source::Directory => {
            let directory = options.state_dir.as_deref();
            let directory = directory.context("--source directory needs --state-dir")?;
            let (source, mut snapshots) =
                YamlDir::open(directory).context("can't read the declared state")?;
            let (feed, updates) = feed(false);
            tasks.spawn(source.run());
            tasks.spawn(async move {
                loop {
                    let snapshot = snapshots.borrow_and_update().clone();
                    feed.reset(snapshot.objects.clone(), snapshot.problems.clone());
                    tokio::select! {
                        () = feed.closed() => return,
                        changed = snapshots.changed() => if changed.is_err() { return },
                    }
                }
            });
            Ok(updates)
        }
        Source::Kubernetes => {
            let client = kubernetes::client(options.kubeconfig.as_deref()).await?;
            let settings = kubernetes::Settings {
                node: options.node_name.clone(),
                cluster: options.cluster_name.clone(),
                // Whose address it is only the policy server asks.
                clients: options.policy_address.is_some(),
                gloo: options.gloo == Gloo::Auto,
                pace: Pace::default(),
            };
            let (mut source, updates) = Kubernetes::new(client, settings);
            source.inherit(heritage);
            tasks.spawn(source.run());
            Ok(updates)
        }
    }
}
