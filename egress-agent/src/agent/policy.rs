//! Starts the policy server. Enforcement in the kernel never waits for it.

use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::options::Options;
use crate::policy_server::Served;
use crate::policy_server::metrics::PolicyMetrics;
use crate::policy_server::query::{self, QuerySocket};
use crate::policy_server::server::{self, PolicyServer};
use crate::policy_server::xds::XdsStatus;
use crate::tls::Source;

/// Wait before a server that has ended, or could not listen, is started again.
const RETRY: Duration = Duration::from_secs(2);

/// Serves, if an address was given.
///
/// # Errors
/// If no certificate was named for it, or the socket for questions can't be made.
pub fn serve(
    options: &Options,
    run_dir: &Path,
    served: watch::Receiver<Arc<Served>>,
    metrics: &PolicyMetrics,
    tasks: &mut JoinSet<()>,
) -> Result<()> {
    let status = XdsStatus::default();
    let socket = QuerySocket::bind(run_dir, served.clone(), status.clone())
        .with_context(|| format!("can't make {}/{}", run_dir.display(), query::FILE))?;
    tasks.spawn(socket.run());
    let Some(address) = options.policy_address else {
        return Ok(());
    };
    let source = match (&options.policy_cert_dir, &options.spiffe_endpoint_socket) {
        (Some(directory), _) => Source::files(directory),
        (None, Some(endpoint)) => Source::WorkloadApi {
            endpoint: endpoint.clone(),
            trust_domain: options.trust_domain.clone(),
        },
        (None, None) => bail!(
            "--policy-address is given without a certificate: give --policy-cert-dir (tls.crt, \
             tls.key, ca.crt) or --spiffe-endpoint-socket"
        ),
    };
    let (identities, following) = source.follow();
    tasks.spawn(following);
    tasks.spawn(metrics.clone().follow_expiry(identities.clone()));
    let options = server::Options {
        served,
        identities,
        oldest: options.policy_tls_min.into(),
        trust_domain: options.trust_domain.clone(),
        binding: options.client_binding.into(),
        metrics: metrics.clone(),
        status,
    };
    tasks.spawn(keep_serving(address, options));
    Ok(())
}

/// A server that can't listen is tried again for ever: gateways refuse meanwhile.
async fn keep_serving(address: SocketAddr, options: server::Options) {
    loop {
        match PolicyServer::bind(address, options.clone()).await {
            Ok(server) => {
                tracing::info!(event = "policy_serving", %address);
                if let Err(error) = server.run(pending()).await {
                    tracing::error!(event = "policy_server_ended", %error, "it is started again");
                }
            }
            Err(error) => {
                tracing::error!(event = "policy_server_failed", %error, "it is tried again");
            }
        }
        sleep(RETRY).await;
    }
}
