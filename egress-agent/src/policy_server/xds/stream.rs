//! One stream: who asks, and what it gets when something changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};

use super::session::{Event, Session};
use super::status::{Entry, Rejection, XdsStatus};
use crate::gateway::ObjectName;
use crate::policy_server::metrics::PolicyMetrics;
use crate::policy_server::{Caller, Served};

/// What a stream needs.
pub(super) struct Task {
    pub(super) caller: Caller,
    pub(super) served: watch::Receiver<Arc<Served>>,
    pub(super) status: XdsStatus,
    pub(super) metrics: PolicyMetrics,
}

type Responses = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

impl Task {
    /// Serves until the client ends the stream, or may no longer have it.
    pub(super) async fn run(
        mut self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        responses: &Responses,
    ) -> Result<(), Status> {
        let Some(first) = requests.message().await? else {
            return Ok(());
        };
        let gateway = self.identify(&first)?;
        let node = first.node.as_ref().map_or("", |node| node.id.as_str());
        let entry = self.status.begin(&gateway, node, self.caller.address);
        let _counted = self.metrics.stream();
        tracing::info!(
            event = "gateway_connected", %gateway, node, address = %self.caller.address
        );
        let mut session = Session::default();
        // Revision of the last response, by type.
        let mut sent: BTreeMap<String, String> = BTreeMap::new();
        let mut request = Some(first);
        loop {
            if let Some(request) = request.take() {
                let event = session
                    .request(&request)
                    .map_err(|error| Status::resource_exhausted(error.to_string()))?;
                self.tell(&gateway, &entry, &sent, event);
            }
            let served = self.served.borrow_and_update().clone();
            self.check(&served, &gateway)?;
            // A gateway that is gone has nothing any more.
            let resources = served.resources.get(&gateway).cloned().unwrap_or_default();
            while let Some(response) = session.respond(&resources, &served.revision) {
                sent.insert(response.type_url.clone(), served.revision.clone());
                if responses.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            tokio::select! {
                () = responses.closed() => return Ok(()),
                message = requests.message() => match message? {
                    Some(message) => request = Some(message),
                    None => return Ok(()),
                },
                changed = self.served.changed() => {
                    changed.map_err(|_| Status::unavailable("the agent is stopping"))?;
                }
            }
        }
    }

    /// Which gateway it is, by its node's `cluster`.
    fn identify(&self, first: &DeltaDiscoveryRequest) -> Result<ObjectName, Status> {
        let node = first
            .node
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("the first request has no node"))?;
        let (namespace, name) = node.cluster.split_once('/').ok_or_else(|| {
            Status::invalid_argument(
                "node.cluster is not `namespace/name` of a VirtualGateway; set it in the bootstrap",
            )
        })?;
        let gateway = ObjectName::new(namespace, name);
        self.check(&self.served.borrow(), &gateway)?;
        Ok(gateway)
    }

    /// Whether the caller is a pod of that gateway, as things are now.
    fn check(&self, served: &Served, gateway: &ObjectName) -> Result<(), Status> {
        let identity = &self.caller.identity;
        if served.gateways_of(identity).contains(gateway) {
            return Ok(());
        }
        self.metrics.caller_refused("no-gateway");
        Err(Status::permission_denied(format!(
            "{identity} is not the service account of a pod that VirtualGateway {gateway} selects"
        )))
    }

    fn tell(
        &self,
        gateway: &ObjectName,
        entry: &Entry,
        sent: &BTreeMap<String, String>,
        event: Event,
    ) {
        match event {
            Event::Acked { type_url, settled } => {
                if let Some(revision) = sent.get(type_url) {
                    entry.acked(kind(type_url), revision, settled);
                }
            }
            Event::Nacked { type_url, message } => {
                let revision = sent.get(type_url).cloned().unwrap_or_default();
                tracing::error!(
                    event = "gateway_rejected", %gateway, kind = kind(type_url), revision,
                    reason = message, "what it had before stands"
                );
                self.metrics.rejected(gateway, kind(type_url));
                entry.nacked(kind(type_url), Rejection { revision, message });
            }
            Event::Subscribed | Event::Foreign => {}
        }
    }
}

/// `Cluster` of `type.googleapis.com/envoy.config.cluster.v3.Cluster`.
fn kind(type_url: &'static str) -> &'static str {
    type_url.rsplit('.').next().unwrap_or(type_url)
}
