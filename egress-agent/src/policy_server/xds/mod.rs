//! Envoy's aggregated discovery service, incremental variant: each gateway's Envoy gets its whole
//! configuration over one stream, and afterwards only what changes.
//!
//! [`Session`](session::Session) is the protocol, pure; here are the stream around it and who may
//! have it.

mod session;
mod status;
mod stream;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures::Stream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub use status::{NodeState, Rejection, XdsStatus};

use super::metrics::PolicyMetrics;
use super::places::Places;
use super::{Caller, Served};
use crate::gateway::SpiffeId;

/// Streams at once: an Envoy keeps one.
const MAX_STREAMS: usize = 512;
/// Streams at once of one caller: those of an Envoy that was restarted end after a while.
const MAX_STREAMS_OF_ONE: usize = 16;
/// Responses that wait for the network. Only one of a type is under way, so this never fills.
const BACKLOG: usize = 8;

/// The service.
#[derive(Debug)]
pub struct Xds {
    served: watch::Receiver<Arc<Served>>,
    status: XdsStatus,
    metrics: PolicyMetrics,
    streams: Arc<Semaphore>,
    callers: Places<(SpiffeId, IpAddr)>,
}

impl Xds {
    pub fn new(
        served: watch::Receiver<Arc<Served>>,
        status: XdsStatus,
        metrics: PolicyMetrics,
    ) -> Self {
        Self {
            served,
            status,
            metrics,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            callers: Places::default(),
        }
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Xds {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented(
            "only the incremental protocol is served: set `api_type: DELTA_GRPC` in the bootstrap",
        ))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Status::unauthenticated("no client certificate"))?;
        let key = (caller.identity.clone(), caller.address.ip().to_canonical());
        let place = self.callers.take(key, MAX_STREAMS_OF_ONE);
        let permit = self.streams.clone().try_acquire_owned().ok();
        let (Some(place), Some(permit)) = (place, permit) else {
            self.metrics.caller_refused("too-many-streams");
            return Err(Status::resource_exhausted(
                "too many streams; they are tried again",
            ));
        };
        let (sender, responses) = mpsc::channel(BACKLOG);
        let task = stream::Task {
            caller,
            served: self.served.clone(),
            status: self.status.clone(),
            metrics: self.metrics.clone(),
        };
        let requests = request.into_inner();
        tokio::spawn(async move {
            let _held = (place, permit);
            if let Err(refusal) = task.run(requests, &sender).await {
                // The other end may be gone already.
                let _ = sender.send(Err(refusal)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}
