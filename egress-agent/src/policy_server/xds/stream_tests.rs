//! The service with a real client of it; only mutual TLS is left out, so callers are given.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status, Streaming};

use super::tests::{answer, names, resources, subscribe};
use super::{Xds, XdsStatus};
use crate::gateway::envoy::{CLUSTERS, LISTENERS, Resources};
use crate::gateway::policy::Gateway;
use crate::gateway::{ObjectName, SpiffeId};
use crate::policy_server::metrics::PolicyMetrics;
use crate::policy_server::{Caller, GatewayPod, Served};

const SOON: Duration = Duration::from_secs(10);

fn gateway() -> ObjectName {
    ObjectName::new("egress", "vg")
}

fn identity(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "egress", account).unwrap()
}

/// A state in which the gateway has these resources.
fn state(revision: &str, of_gateway: Resources) -> Served {
    let pod = GatewayPod {
        identity: identity("gateway"),
        gateways: BTreeSet::from([gateway()]),
    };
    let mut served = Served {
        revision: revision.to_owned(),
        gateway_pods: BTreeMap::from([(IpAddr::V4(Ipv4Addr::LOCALHOST), pod)]),
        resources: BTreeMap::from([(gateway(), Arc::new(of_gateway))]),
        ..Served::default()
    };
    let gateways = &mut served.policy.gateways;
    gateways.insert(gateway(), Gateway::default());
    served
}

struct World {
    served: watch::Sender<Arc<Served>>,
    status: XdsStatus,
    client: AggregatedDiscoveryServiceClient<Channel>,
}

impl World {
    /// A server whose every caller is this one.
    async fn start(served: Served, caller: Option<SpiffeId>) -> Self {
        let (served, follower) = watch::channel(Arc::new(served));
        let status = XdsStatus::default();
        let metrics = PolicyMetrics::register(&mut Registry::default());
        let xds = Xds::new(follower, status.clone(), metrics);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let caller = caller.map(|identity| Caller { identity, address });
        let known = move |mut request: Request<()>| -> Result<Request<()>, Status> {
            if let Some(caller) = &caller {
                request.extensions_mut().insert(caller.clone());
            }
            Ok(request)
        };
        let service = AggregatedDiscoveryServiceServer::new(xds);
        let server = Server::builder()
            .add_service(InterceptedService::new(service, known))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        let client = AggregatedDiscoveryServiceClient::connect(format!("http://{address}"));
        Self {
            served,
            status,
            client: client.await.unwrap(),
        }
    }

    fn serve(&self, served: Served) {
        self.served.send_replace(Arc::new(served));
    }

    async fn open(&mut self) -> Open {
        let (requests, receiver) = mpsc::channel(8);
        let responses = self
            .client
            .delta_aggregated_resources(ReceiverStream::new(receiver));
        Open {
            responses: responses.await.unwrap().into_inner(),
            requests,
        }
    }

    /// Why a stream that begins so is refused.
    async fn refusal(&mut self, first: DeltaDiscoveryRequest) -> Status {
        let mut open = self.open().await;
        open.send(first).await;
        open.end().await
    }
}

struct Open {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Open {
    async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = timeout(SOON, self.responses.message()).await;
        message
            .expect("an answer in time")
            .map(|it| it.expect("no plain end"))
    }

    async fn end(&mut self) -> Status {
        self.next().await.expect_err("the stream ends")
    }
}

fn begin(type_url: &str, cluster: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node {
            id: "pod-1".to_owned(),
            cluster: cluster.to_owned(),
            ..Node::default()
        }),
        ..subscribe(type_url, &[])
    }
}

#[tokio::test]
async fn who_may_not_is_told_why() {
    let mut world = World::start(state("r", Resources::default()), Some(identity("gateway"))).await;
    let nameless = world.refusal(subscribe(CLUSTERS, &[])).await;
    assert_eq!(nameless.code(), Code::InvalidArgument);
    let odd = world.refusal(begin(CLUSTERS, "vg")).await;
    assert_eq!(odd.code(), Code::InvalidArgument);
    let foreign = world.refusal(begin(CLUSTERS, "egress/other")).await;
    assert_eq!(foreign.code(), Code::PermissionDenied);

    let served = state("r", Resources::default());
    let mut world = World::start(served.clone(), Some(identity("other"))).await;
    let stranger = world.refusal(begin(CLUSTERS, "egress/vg")).await;
    assert_eq!(stranger.code(), Code::PermissionDenied);
    assert!(stranger.message().contains("egress/sa/other"), "{stranger}");

    let mut world = World::start(served, None).await;
    let stream = tokio_stream::iter([begin(CLUSTERS, "egress/vg")]);
    let unknown = world.client.delta_aggregated_resources(stream).await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn state_of_the_world_is_refused_with_what_to_do() {
    let served = state("r", Resources::default());
    let mut world = World::start(served, Some(identity("gateway"))).await;
    let stream = tokio_stream::iter([DiscoveryRequest::default()]);
    let status = world.client.stream_aggregated_resources(stream).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("DELTA_GRPC"), "{status}");
}

#[tokio::test]
async fn who_is_slow_gets_the_latest_state_only() {
    let at = |version: &str| {
        let of_gateway = resources(&[(CLUSTERS, "c", version), (CLUSTERS, "same", "1")]);
        state(version, of_gateway)
    };
    let mut world = World::start(at("1"), Some(identity("gateway"))).await;
    let mut open = world.open().await;
    open.send(begin(CLUSTERS, "egress/vg")).await;
    let first = open.next().await.unwrap();
    assert_eq!(names(&first), ["c", "same"]);
    for version in ["2", "3", "4"] {
        world.serve(at(version));
        sleep(Duration::from_millis(20)).await;
    }
    open.send(answer(&first, None)).await;
    let second = open.next().await.unwrap();
    assert_eq!(names(&second), ["c"]);
    assert_eq!(second.resources[0].version, "4");
    assert_eq!(second.system_version_info, "4");
    open.send(answer(&second, None)).await;
    let more = timeout(Duration::from_millis(200), open.responses.message()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn a_refusal_is_seen_until_it_is_settled() {
    let bad = resources(&[(LISTENERS, "l", "bad")]);
    let mut world = World::start(state("r1", bad), Some(identity("gateway"))).await;
    let mut open = world.open().await;
    open.send(begin(LISTENERS, "egress/vg")).await;
    let response = open.next().await.unwrap();
    open.send(answer(&response, Some("no such filter"))).await;
    let mut follower = world.status.follow();
    let refused = follower.wait_for(|nodes| nodes.values().any(|it| !it.rejected.is_empty()));
    let node = timeout(SOON, refused).await.unwrap().unwrap().clone();
    let node = node.into_values().next().unwrap();
    assert_eq!(
        (node.gateway.as_str(), node.node.as_str()),
        ("egress/vg", "pod-1")
    );
    assert_eq!(node.rejected["Listener"].message, "no such filter");
    assert_eq!(node.rejected["Listener"].revision, "r1");
    assert_eq!(node.revision, None);

    world.serve(state("r2", resources(&[(LISTENERS, "l", "good")])));
    let response = open.next().await.unwrap();
    open.send(answer(&response, None)).await;
    let settled = follower.wait_for(|nodes| {
        let mut nodes = nodes.values();
        nodes.any(|it| it.rejected.is_empty() && it.revision.as_deref() == Some("r2"))
    });
    timeout(SOON, settled).await.unwrap().unwrap();
    drop(open);
    let left = follower.wait_for(BTreeMap::is_empty);
    timeout(SOON, left).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_comes_back_unchanged_is_current_and_sent_nothing() {
    let served = state("r", resources(&[(LISTENERS, "l", "1")]));
    let mut world = World::start(served, Some(identity("gateway"))).await;
    let mut open = world.open().await;
    let mut first = begin(LISTENERS, "egress/vg");
    first
        .initial_resource_versions
        .insert("l".to_owned(), "1".to_owned());
    open.send(first).await;
    let mut follower = world.status.follow();
    let current = follower.wait_for(|nodes| {
        let mut nodes = nodes.values();
        nodes.any(|it| it.revision.as_deref() == Some("r"))
    });
    timeout(SOON, current).await.unwrap().unwrap();
    let more = timeout(Duration::from_millis(200), open.responses.message()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn a_pod_that_is_no_gateway_any_more_loses_its_stream_at_once() {
    let served = state("r1", resources(&[(LISTENERS, "l", "1")]));
    let mut world = World::start(served.clone(), Some(identity("gateway"))).await;
    let mut open = world.open().await;
    open.send(begin(LISTENERS, "egress/vg")).await;
    let response = open.next().await.unwrap();
    open.send(answer(&response, None)).await;
    world.serve(Served {
        gateway_pods: BTreeMap::new(),
        ..served
    });
    assert_eq!(open.end().await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn what_a_gateway_had_is_taken_back_when_it_is_gone() {
    let served = state(
        "r1",
        resources(&[(LISTENERS, "l", "1"), (CLUSTERS, "c", "1")]),
    );
    let mut world = World::start(served, Some(identity("gateway"))).await;
    let mut open = world.open().await;
    open.send(begin(CLUSTERS, "egress/vg")).await;
    open.send(subscribe(LISTENERS, &[])).await;
    for _ in 0..2 {
        let response = open.next().await.unwrap();
        open.send(answer(&response, None)).await;
    }
    world.serve(Served::default());
    let mut removed = Vec::new();
    let refusal = loop {
        match open.next().await {
            Ok(response) => {
                removed.extend(response.removed_resources.clone());
                // It may have ended with the last answer on its way.
                let _ = open.requests.send(answer(&response, None)).await;
            }
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(removed, ["l", "c"]);
    assert_eq!(refusal.code(), Code::PermissionDenied);
}
