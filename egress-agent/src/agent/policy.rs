//! Starts the policy server. Enforcement in the kernel never waits for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::options::Options;
use super::run_dir;
use crate::policy_server::Served;
use crate::policy_server::metrics::PolicyMetrics;
use crate::policy_server::query::{self, QuerySocket};
use crate::policy_server::server::{self, PolicyServer};
use crate::policy_server::thread;
use crate::policy_server::xds::{NodeState, XdsStatus};
use crate::tls::Source;

/// Wait before a server that has ended, or could not listen, is started again.
const RETRY: Duration = Duration::from_secs(2);

/// The file of the run directory that lists the Envoys configured from here.
const GATEWAYS: &str = "gateways.json";
/// It is written so often at most.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves, if an address was given.
///
/// # Errors
/// If no certificate was named for it, the socket for questions can't be made, or the kernel
/// gives no thread.
pub fn serve(
    options: &Options,
    run_dir: &Path,
    served: watch::Receiver<Arc<Served>>,
    status: XdsStatus,
    metrics: &PolicyMetrics,
    tasks: &mut JoinSet<()>,
) -> Result<Stop> {
    let mut stop = Stop::default();
    let socket = QuerySocket::bind(run_dir, served.clone(), status.clone())
        .with_context(|| format!("can't make {}/{}", run_dir.display(), query::FILE))?;
    tasks.spawn(socket.run());
    let Some(address) = options.policy_address else {
        // An earlier agent may have served; most did not.
        let _ = std::fs::remove_file(options.run_dir.join(GATEWAYS));
        return Ok(stop);
    };
    let source = certificates(options, "--policy-address")?;
    let (identities, following) = source.follow();
    tasks.spawn(following);
    tasks.spawn(metrics.clone().follow_expiry(identities.clone()));
    tasks.spawn(list_gateways(status.clone(), options.run_dir.clone()));
    let options = server::Options {
        served,
        identities,
        oldest: options.policy_tls_min.into(),
        trust_domain: options.trust_domain.clone(),
        binding: options.client_binding.into(),
        metrics: metrics.clone(),
        status,
    };
    let (told, stopping) = watch::channel(false);
    let ended = thread::spawn("policy", keep_serving(address, options, stopping))
        .context("can't start the policy server's thread")?;
    stop.server = Some((told, ended));
    Ok(stop)
}

/// Where the certificate comes from that this flag needs.
///
/// # Errors
/// If none was named.
pub fn certificates(options: &Options, flag: &str) -> Result<Source> {
    Ok(
        match (&options.policy_cert_dir, &options.spiffe_endpoint_socket) {
            (Some(directory), _) => Source::files(directory),
            (None, Some(endpoint)) => Source::WorkloadApi {
                endpoint: endpoint.clone(),
                trust_domain: options.trust_domain.clone(),
            },
            (None, None) => bail!(
                "{flag} is given without a certificate: give --policy-cert-dir (tls.crt, tls.key, \
                 ca.crt) or --spiffe-endpoint-socket"
            ),
        },
    )
}

/// Ends the server, if there is one.
#[derive(Debug, Default)]
pub struct Stop {
    server: Option<(watch::Sender<bool>, oneshot::Receiver<()>)>,
}

impl Stop {
    /// Tells callers to go, and waits until what is under way has been answered.
    pub async fn stop(self) {
        if let Some((told, ended)) = self.server {
            told.send_replace(true);
            // It ends within its own grace; if it panicked there is nothing left to end.
            let _ = ended.await;
        }
    }
}

/// A server that can't listen is tried again for ever: gateways refuse meanwhile.
async fn keep_serving(
    address: SocketAddr,
    options: server::Options,
    mut stopping: watch::Receiver<bool>,
) {
    let metrics = options.metrics.clone();
    let told = |mut stopping: watch::Receiver<bool>| async move {
        // An agent that is gone has stopped too.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    loop {
        match PolicyServer::bind(address, options.clone()).await {
            Ok(server) => {
                tracing::info!(event = "policy_serving", %address);
                metrics.set_serving(true);
                server.run(told(stopping.clone())).await;
                metrics.set_serving(false);
            }
            Err(error) => {
                tracing::error!(event = "policy_server_failed", %error, "it is tried again");
            }
        }
        if timeout(RETRY, stopping.wait_for(|stop| *stop))
            .await
            .is_ok()
        {
            return;
        }
    }
}

/// Keeps the list of Envoys in the run directory, for `egressctl status`.
async fn list_gateways(status: XdsStatus, run_dir: PathBuf) {
    let mut nodes = status.follow();
    loop {
        let list: Vec<NodeState> = nodes.borrow_and_update().values().cloned().collect();
        if let Err(error) = write_list(&run_dir, &list) {
            tracing::warn!(event = "gateways_unwritten", error = format!("{error:#}"));
        }
        sleep(PAUSE).await;
        if nodes.changed().await.is_err() {
            return;
        }
    }
}

fn write_list(run_dir: &Path, list: &[NodeState]) -> Result<()> {
    run_dir::replace(run_dir, GATEWAYS, &serde_json::to_vec_pretty(list)?)
}
