//! Certificates from the SPIFFE Workload API, served over a socket as its specification says.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use egress_agent::tls::{Identities, Source};
use futures::{Stream, StreamExt as _};
use http::{Request, Response};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::Status;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::transport::Server;
use tonic_prost::ProstCodec;
use tower::Service;

use crate::pki::{Authority, Leaf};
use crate::policy_server::SERVER_ID;

/// `X509SVIDRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Ask {}

/// `X509SVIDResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Told {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
}

/// `X509SVID`.
#[derive(Clone, PartialEq, prost::Message)]
#[expect(clippy::struct_field_names, reason = "named as its specification does")]
struct Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
}

fn told(leaf: &Leaf, authority: &Authority) -> Told {
    Told {
        svids: vec![Svid {
            spiffe_id: SERVER_ID.to_owned(),
            x509_svid: leaf.der.to_vec(),
            x509_svid_key: leaf.key_der.clone(),
            bundle: authority.der().to_vec(),
        }],
    }
}

/// `FetchX509SVID`: what is known, and each change.
#[derive(Clone)]
struct Api(watch::Receiver<Told>);

impl ServerStreamingService<Ask> for Api {
    type Response = Told;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Told, Status>> + Send>>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Ask>) -> Self::Future {
        let asked = request.metadata().get("workload.spiffe.io");
        std::future::ready(match asked {
            Some(value) if value == "true" => {
                let news = WatchStream::new(self.0.clone()).map(Ok);
                Ok(tonic::Response::new(Box::pin(news)))
            }
            _ => Err(Status::invalid_argument("the security header is missing")),
        })
    }
}

impl Service<Request<Body>> for Api {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let api = self.clone();
        Box::pin(async move {
            let codec: ProstCodec<Told, Ask> = ProstCodec::default();
            Ok(
                if request.uri().path() == "/SpiffeWorkloadAPI/FetchX509SVID" {
                    Grpc::new(codec).server_streaming(api, request).await
                } else {
                    Status::unimplemented("only certificates").into_http()
                },
            )
        })
    }
}

impl NamedService for Api {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

fn serve(socket: &Path, news: &watch::Sender<Told>) -> JoinHandle<()> {
    // As an agent that starts again does.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).expect("a socket");
    let api = Api(news.subscribe());
    tokio::spawn(async move {
        let _ = Server::builder()
            .add_service(api)
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await;
    })
}

async fn next(identities: &mut Identities) -> u64 {
    timeout(Duration::from_secs(15), identities.changed())
        .await
        .expect("in time")
        .expect("followed still");
    let identity = identities.borrow_and_update().clone();
    let identity = identity.expect("a good one");
    assert_eq!(identity.id().to_string(), SERVER_ID);
    identity.not_after_seconds()
}

fn follow(socket: &Path) -> Identities {
    let source = Source::WorkloadApi {
        endpoint: format!("unix://{}", socket.display()),
        trust_domain: "cluster.local".to_owned(),
    };
    let (identities, following) = source.follow();
    tokio::spawn(following);
    identities
}

#[tokio::test]
async fn certificates_come_from_the_workload_api_and_outlive_its_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket: PathBuf = directory.path().join("api.sock");
    let authority = Authority::new("mesh");
    let certificate = |until| told(&authority.sign_for(&[SERVER_ID], -60, until), &authority);

    // It is asked before it is there.
    let mut identities = follow(&socket);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(identities.borrow().is_none());
    let (news, _) = watch::channel(certificate(1000));
    let serving = serve(&socket, &news);
    let first = next(&mut identities).await;

    news.send_replace(certificate(2000));
    let second = next(&mut identities).await;
    assert!((990..=1010).contains(&(second - first)), "{first} {second}");

    // One that is useless changes nothing.
    let mut wrong = certificate(9000);
    wrong.svids[0]
        .x509_svid_key
        .clone_from(&certificate(1).svids[0].x509_svid_key);
    news.send_replace(wrong);
    let changed = timeout(Duration::from_secs(1), identities.changed()).await;
    assert!(changed.is_err());

    // With the sender its streams end, as with the agent's process.
    serving.abort();
    let _ = serving.await;
    drop(news);
    let changed = timeout(Duration::from_secs(1), identities.changed()).await;
    assert!(changed.is_err(), "the last good one stands");
    assert_eq!(
        identities
            .borrow()
            .as_ref()
            .map(|it| it.not_after_seconds()),
        Some(second)
    );
    let (news, _) = watch::channel(certificate(3000));
    let serving = serve(&socket, &news);
    let third = next(&mut identities).await;
    assert!((990..=1010).contains(&(third - second)), "{second} {third}");
    serving.abort();
}

/// The clock is behind for a while, and nothing new comes when it is right.
#[tokio::test]
async fn a_certificate_that_is_early_is_tried_again_without_news() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket: PathBuf = directory.path().join("api.sock");
    let authority = Authority::new("mesh");
    let early = told(&authority.sign_for(&[SERVER_ID], 4, 1000), &authority);
    let (news, _) = watch::channel(early);
    let serving = serve(&socket, &news);
    let mut identities = follow(&socket);
    let changed = timeout(Duration::from_secs(2), identities.changed()).await;
    assert!(changed.is_err(), "it is not valid yet");
    next(&mut identities).await;
    serving.abort();
}
