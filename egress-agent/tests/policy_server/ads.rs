//! Configuration streams that no proper Envoy would open.

use std::net::IpAddr;
use std::time::Duration;

use egress_agent::gateway::envoy::{CLUSTERS, LISTENERS};
use egress_agent::tls::{MinVersion, client_config};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use envoy_types::pb::google::rpc::Status;
use h2::client::{Builder, ResponseFuture};
use h2::{RecvStream, SendStream};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};
use prost::Message as _;
use prost::bytes::{Buf as _, Bytes, BytesMut};
use tokio::time::timeout;

use crate::child::Victim;
use crate::grpc::{Client, connect_from, frame, head, shake};
use crate::policy_server::server_id;
use crate::world::{ELSEWHERE, GATEWAY, GATEWAY_ID, HOSTS};

const ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// gRPC's status for one who wants too much.
const EXHAUSTED: i32 = 8;
/// Streams that one caller may have.
const OF_ONE: usize = 16;
const SOON: Duration = Duration::from_secs(10);

/// The first request of a stream; it asks for everything of this type.
fn first(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node {
            id: "pod-1".to_owned(),
            cluster: "istio-egress/vg".to_owned(),
            ..Node::default()
        }),
        type_url: type_url.to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn for_names(names: Vec<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: CLUSTERS.to_owned(),
        resource_names_subscribe: names,
        ..DeltaDiscoveryRequest::default()
    }
}

fn long_name(at: usize) -> String {
    format!("{at}-{}", "x".repeat(200_000))
}

/// A stream, message by message.
struct Stream {
    requests: SendStream<Bytes>,
    responses: Option<RecvStream>,
    head: Option<ResponseFuture>,
    rest: BytesMut,
}

impl Stream {
    async fn open(client: &Client) -> Self {
        let mut send = client.send.clone().ready().await.expect("a connection");
        let (head, requests) = send.send_request(head(ADS), false).expect("a stream");
        Self {
            requests,
            responses: None,
            head: Some(head),
            rest: BytesMut::new(),
        }
    }

    /// Sends without a look at how much the server wants; false once it wants no more.
    fn send(&mut self, request: &DeltaDiscoveryRequest) -> bool {
        let framed = frame(&request.encode_to_vec());
        self.requests.send_data(framed, false).is_ok()
    }

    /// Sends as the server has room; false once it wants no more.
    async fn push(&mut self, request: &DeltaDiscoveryRequest) -> bool {
        let mut rest = frame(&request.encode_to_vec());
        while !rest.is_empty() {
            self.requests.reserve_capacity(rest.len());
            let room = std::future::poll_fn(|context| self.requests.poll_capacity(context));
            let Ok(Some(Ok(room))) = timeout(SOON, room).await else {
                return false;
            };
            let part = rest.split_to(room.min(rest.len()));
            if self.requests.send_data(part, false).is_err() {
                return false;
            }
        }
        true
    }

    /// The next response, or the status with which the stream ends.
    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, i32> {
        timeout(SOON, self.read()).await.expect("an answer in time")
    }

    async fn read(&mut self) -> Result<DeltaDiscoveryResponse, i32> {
        let status = |headers: &http::HeaderMap| -> Option<i32> {
            headers.get("grpc-status")?.to_str().ok()?.parse().ok()
        };
        if let Some(head) = self.head.take() {
            let response = head.await.map_err(|_| -1)?;
            if let Some(status) = status(response.headers()) {
                return Err(status);
            }
            self.responses = Some(response.into_body());
        }
        let responses = self.responses.as_mut().expect("it has begun");
        loop {
            if self.rest.len() >= 5 {
                let length = (&self.rest[1..5]).get_u32() as usize;
                if self.rest.len() >= 5 + length {
                    let message = self.rest.split_to(5 + length);
                    return Ok(DeltaDiscoveryResponse::decode(&message[5..]).expect("a response"));
                }
            }
            match responses.data().await {
                Some(Ok(data)) => {
                    let _ = responses.flow_control().release_capacity(data.len());
                    self.rest.extend_from_slice(&data);
                }
                Some(Err(_)) => return Err(-1),
                None => {
                    let trailers = responses.trailers().await.ok().flatten();
                    return Err(trailers.as_ref().and_then(status).unwrap_or(-1));
                }
            }
        }
    }

    /// The status with which it ends, whatever comes before.
    async fn end(&mut self) -> i32 {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}

/// A proper stream gets all there is.
async fn is_served(client: &Client) {
    let mut stream = Stream::open(client).await;
    assert!(stream.send(&first(CLUSTERS)));
    let response = stream.next().await.expect("clusters");
    assert_eq!(response.resources.len(), HOSTS);
}

async fn gateway_from(victim: &Victim, from: IpAddr, settings: &Builder) -> Client {
    let leaf = victim.authority.sign(&[GATEWAY_ID]);
    let identity = leaf.identity(&[&victim.authority]);
    let config = client_config(&identity, server_id(), MinVersion::Tls13).expect("a client");
    let stream = connect_from(from, victim.address)
        .await
        .expect("a connection");
    let stream = shake(stream, config).await.expect("a handshake");
    Client::with(stream, settings).await.expect("HTTP/2")
}

fn requests() -> impl Strategy<Value = Vec<u8>> {
    let mut good = first(CLUSTERS);
    good.resource_names_subscribe = vec!["outbound|443||host-1.example|alpn|tls||".to_owned()];
    good.initial_resource_versions = [("a".to_owned(), "b".to_owned())].into();
    let good = good.encode_to_vec();
    let length = good.len();
    let changes = prop::collection::vec((0..length, any::<u8>()), 0..4);
    let cut = prop_oneof![4 => Just(length), 1 => 0..=length];
    let mutated = (changes, cut, 1..4_usize).prop_map(move |(changes, cut, times)| {
        let mut bytes = good.clone();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(cut);
        bytes.repeat(times)
    });
    let deep = (1..40_000_usize, any::<u8>()).prop_map(|(depth, tag)| vec![tag; depth]);
    prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 0..4096),
        6 => mutated,
        1 => deep,
    ]
}

#[tokio::test]
async fn garbage() {
    const CASES: u32 = 500;
    let victim = Victim::start().await;
    let attacker = victim.gateway().await;
    let mut runner = TestRunner::new(Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    });
    let mut well = 0;
    for _ in 0..CASES {
        let bytes = requests().new_tree(&mut runner).expect("bytes").current();
        let answer = attacker.call(ADS, frame(&bytes)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{error} for {bytes:02x?}"));
        // A panic would show as no status (2), or as unknown (2).
        assert_ne!(answer.status, 2, "{bytes:02x?}");
        well += u32::from(answer.status == 0);
    }
    assert!(well > CASES / 20 && well < CASES, "{well} were requests");
    is_served(&attacker).await;
    victim.answers().await;
    victim.survived().await;
}

#[tokio::test]
async fn floods_of_requests() {
    let victim = Victim::start().await;
    let standing = victim.gateway().await;
    let attacker = victim.gateway().await;
    let mut stream = Stream::open(&attacker).await;
    assert!(stream.push(&first(CLUSTERS)).await);
    let clusters = stream.next().await.expect("clusters");
    for round in 0..20_000_u32 {
        let mut request = for_names(Vec::new());
        match round % 4 {
            // Answers to what was never sent, refusals, and the same name once more.
            0 => request.response_nonce = round.to_string(),
            1 => request.resource_names_subscribe = vec!["none".to_owned()],
            2 => request.type_url = format!("type.googleapis.com/{round}"),
            _ => {
                request.response_nonce = clusters.nonce.clone();
                request.error_detail = Some(Status::default());
            }
        }
        if !stream.push(&request).await {
            break;
        }
        if round % 5000 == 0 {
            Victim::answers_to(&standing).await;
        }
    }
    victim.is_bounded();
    is_served(&standing).await;
    victim.answers().await;
    victim.survived().await;
}

#[tokio::test]
async fn too_many_names_end_the_stream() {
    let victim = Victim::start().await;
    let attacker = victim.gateway().await;
    for names in [
        (0..6000).map(|at| at.to_string()).collect::<Vec<_>>(),
        (0..40).map(long_name).collect(),
    ] {
        let mut stream = Stream::open(&attacker).await;
        assert!(stream.push(&first(CLUSTERS)).await);
        for some in names.chunks(if names.len() > 1000 { 1000 } else { 1 }) {
            if !stream.push(&for_names(some.to_vec())).await {
                break;
            }
        }
        assert_eq!(stream.end().await, EXHAUSTED);
        victim.is_bounded();
    }
    // As many as are kept, in each of as many streams as one may have.
    let mut open = Vec::new();
    for _ in 0..OF_ONE - 1 {
        let mut stream = Stream::open(&attacker).await;
        assert!(stream.push(&first(LISTENERS)).await);
        for at in 0..9 {
            assert!(stream.push(&for_names(vec![long_name(at)])).await);
        }
        open.push(stream);
    }
    victim.is_bounded();
    is_served(&victim.gateway().await).await;
    drop(open);
    victim.survived().await;
}

#[tokio::test]
async fn one_caller_has_so_many_streams_and_none_is_read() {
    let victim = Victim::start().await;
    let standing = victim.gateway().await;
    let mut settings = Builder::new();
    // No room for a single byte of an answer.
    settings.initial_window_size(0);
    let (mut open, mut refused) = (Vec::new(), 0);
    for _ in 0..6 {
        let attacker = gateway_from(&victim, GATEWAY, &settings).await;
        for _ in 0..OF_ONE {
            let mut stream = Stream::open(&attacker).await;
            assert!(stream.push(&first(CLUSTERS)).await);
            let mut more = first(LISTENERS);
            more.node = None;
            stream.push(&more).await;
            let response = stream.head.take().expect("not read yet");
            let response = timeout(SOON, response).await.expect("in time");
            let response = response.expect("an answer");
            match response.headers().get("grpc-status") {
                Some(status) => {
                    assert_eq!(status, "8");
                    refused += 1;
                }
                None => open.push((stream, response)),
            }
        }
    }
    assert_eq!((open.len(), refused), (OF_ONE, 5 * OF_ONE));
    victim.is_bounded();
    // Questions are answered all the same, and another gateway's Envoy is configured.
    Victim::answers_to(&standing).await;
    is_served(&gateway_from(&victim, ELSEWHERE, &Builder::new()).await).await;
    drop(open);
    let mut again = None;
    for _ in 0..100 {
        let mut stream = Stream::open(&standing).await;
        stream.push(&first(CLUSTERS)).await;
        if stream.next().await.is_ok() {
            again = Some(stream);
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(again.is_some(), "their places are given back");
    victim.survived().await;
}
