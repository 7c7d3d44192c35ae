//! The server: what it serves, within which bounds.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::service::Routes;

use super::Served;
use super::accept::{self, Gate};
use super::authz::{Authz, Binding};
use super::connection::http2;
use super::metrics::PolicyMetrics;
use super::xds::{Xds, XdsStatus};
use crate::tls::{Identities, MinVersion};

/// A question with more than this is refused: Envoy sends at most 60 KiB of headers.
const MAX_MESSAGE: usize = 256 << 10;
/// What is under way when the server is told to stop may take so long.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Connections that have shaken hands and wait for the server's loop.
const BACKLOG: usize = 64;

/// The server can't listen.
#[derive(Debug, Error)]
#[error("can't serve gateway policy at {address}: {source}; choose another --policy-address")]
pub struct ServerError {
    address: SocketAddr,
    source: std::io::Error,
}

/// What the server needs.
#[derive(Clone, Debug)]
pub struct Options {
    pub served: watch::Receiver<Arc<Served>>,
    pub identities: Identities,
    pub oldest: MinVersion,
    pub trust_domain: String,
    pub binding: Binding,
    pub metrics: PolicyMetrics,
    pub status: XdsStatus,
}

/// A server that listens.
#[derive(Debug)]
pub struct PolicyServer {
    listener: TcpListener,
    options: Options,
}

impl PolicyServer {
    /// Begins to listen; connections wait until [`PolicyServer::run`].
    pub async fn bind(address: SocketAddr, options: Options) -> Result<Self, ServerError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ServerError { address, source })?;
        Ok(Self { listener, options })
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` completes. Then callers are told to go, and questions under way are still
    /// answered for a moment.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) {
        let Options {
            served,
            identities,
            oldest,
            trust_domain,
            binding,
            metrics,
            status,
        } = self.options;
        let gate = Gate {
            identities,
            oldest,
            trust_domain,
            served: served.clone(),
            watcher: metrics.watcher(),
        };
        let (taken, mut connections) = mpsc::channel(BACKLOG);
        let (mut latest, counted) = (served.clone(), metrics.clone());
        let xds = Xds::new(served.clone(), status, metrics.clone());
        let xds = AggregatedDiscoveryServiceServer::new(xds).max_decoding_message_size(MAX_MESSAGE);
        let authz = AuthorizationServer::new(Authz::new(served, binding, metrics))
            .max_decoding_message_size(MAX_MESSAGE);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<AuthorizationServer<Authz>>().await;
        let routes = Routes::new(authz)
            .add_service(xds)
            .add_service(health_service)
            .prepare();
        let http2 = http2();
        // Dropped, it ends them all.
        let mut standing = JoinSet::new();
        let (tell, stopping) = watch::channel(false);
        {
            let mut stop = pin!(stop);
            // Dropped, it listens no more.
            let mut accepting = pin!(accept::accept(self.listener, gate, taken));
            loop {
                tokio::select! {
                    () = stop.as_mut() => break,
                    // It never ends while connections are taken here.
                    () = accepting.as_mut() => break,
                    Some(connection) = connections.recv() => {
                        let serving = connection.serve(http2.clone(), routes.clone(), stopping.clone());
                        standing.spawn(serving);
                    }
                    Some(_) = standing.join_next() => {}
                    Ok(()) = latest.changed() => {
                        let latest = latest.borrow_and_update().clone();
                        counted.keep(&latest.policy);
                    }
                }
            }
        }
        tell.send_replace(true);
        // Whoever is left has had time enough.
        let _ = timeout(STOP_GRACE, async {
            while standing.join_next().await.is_some() {}
        })
        .await;
    }
}
