//! The server: what it serves, within which bounds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use futures::FutureExt as _;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use super::Served;
use super::accept::{self, Gate};
use super::authz::{Authz, Binding};
use super::metrics::PolicyMetrics;
use super::xds::{Xds, XdsStatus};
use crate::tls::{Identities, MinVersion};

/// A question with more than this is refused: Envoy sends at most 60 KiB of headers.
const MAX_MESSAGE: usize = 256 << 10;
/// Questions at once on one connection.
const MAX_STREAMS: u32 = 512;
/// All headers of one call, in bytes.
const MAX_HEADERS: u32 = 16 << 10;
/// From a call's headers to the beginning of its answer. Envoy waits less.
const CALL_TIME: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection is told to go after so long, so that certificates and authorities that have
/// changed are looked at again; what is under way may end.
const MAX_AGE: Duration = Duration::from_mins(30);
const MAX_AGE_GRACE: Duration = Duration::from_secs(30);
/// What is under way when the server is told to stop may take so long; configuration streams, which
/// never end by themselves, are cut then.
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
    pub async fn run(
        self,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), tonic::transport::Error> {
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
        let (taken, connections) = mpsc::channel(BACKLOG);
        let accepting = tokio::spawn(accept::accept(self.listener, gate, taken));
        let xds = Xds::new(served.clone(), status, metrics.clone());
        let xds = AggregatedDiscoveryServiceServer::new(xds).max_decoding_message_size(MAX_MESSAGE);
        let authz = AuthorizationServer::new(Authz::new(served, binding, metrics))
            .max_decoding_message_size(MAX_MESSAGE);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<AuthorizationServer<Authz>>().await;
        let stop = stop.shared();
        let over = async {
            stop.clone().await;
            sleep(STOP_GRACE).await;
        };
        let serving = Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_header_list_size(MAX_HEADERS)
            .timeout(CALL_TIME)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_connection_age(MAX_AGE)
            .max_connection_age_grace(MAX_AGE_GRACE)
            .add_service(authz)
            .add_service(xds)
            .add_service(health_service)
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.clone());
        let ended = tokio::select! {
            ended = serving => ended,
            () = over => Ok(()),
        };
        accepting.abort();
        ended
    }
}
