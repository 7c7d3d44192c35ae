//! One stream: who asks, and what it gets when something changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, sleep_until};
use tonic::{Status, Streaming};

use super::session::{Event, Session};
use super::status::{Entry, Rejection, XdsStatus};
use crate::gateway::ObjectName;
use crate::policy_server::metrics::PolicyMetrics;
use crate::policy_server::{Caller, Served};

/// How long the Envoy of a gateway that is gone may take to give up what it has.
const FAREWELL: Duration = Duration::from_secs(10);

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
        let mut farewell: Option<Instant> = None;
        loop {
            if let Some(request) = request.take() {
                let event = session
                    .request(&request)
                    .map_err(|error| Status::resource_exhausted(error.to_string()))?;
                self.tell(&gateway, &entry, &sent, event);
            }
            let served = self.served.borrow_and_update().clone();
            let refusal = self.check(&served, &gateway).err();
            let gone = !served.policy.gateways.contains_key(&gateway);
            if let Some(refusal) = &refusal
                && !gone
            {
                return Err(self.refuse(refusal.clone()));
            }
            // A gateway that is gone has nothing any more; its Envoy gives it up before it loses
            // the stream, or it would go on with the last policy it was told.
            let resources = served.resources.get(&gateway).filter(|_| !gone);
            let resources = resources.cloned().unwrap_or_default();
            while let Some(response) = session.respond(&resources, &served.revision) {
                sent.insert(response.type_url.clone(), served.revision.clone());
                if responses.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            if session.is_current(&resources) {
                entry.current(&served.revision);
            }
            match refusal {
                Some(refusal) => {
                    let end = *farewell.get_or_insert_with(|| Instant::now() + FAREWELL);
                    if session.is_answered() || Instant::now() >= end {
                        return Err(self.refuse(refusal));
                    }
                }
                None => farewell = None,
            }
            tokio::select! {
                () = responses.closed() => return Ok(()),
                () = sleep_until(farewell.unwrap_or_else(Instant::now)), if farewell.is_some() => {}
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
        let allowed = self.check(&self.served.borrow(), &gateway);
        allowed.map_err(|refusal| self.refuse(refusal))?;
        Ok(gateway)
    }

    /// Whether the caller is a pod of that gateway, as things are now.
    fn check(&self, served: &Served, gateway: &ObjectName) -> Result<(), Status> {
        let identity = &self.caller.identity;
        if served.gateways_of(identity).contains(gateway) {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "{identity} is not the service account of a pod that VirtualGateway {gateway} selects"
        )))
    }

    fn refuse(&self, refusal: Status) -> Status {
        self.metrics.caller_refused("no-gateway");
        refusal
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
                if settled {
                    entry.settled(kind(type_url));
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
