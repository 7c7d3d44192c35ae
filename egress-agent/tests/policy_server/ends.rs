//! How connections end: callers are told to go, and what is under way is answered.

use std::time::Duration;

use prost::Message as _;
use tokio::time::{sleep, timeout};

use crate::grpc::{CHECK, Client, frame, head};
use crate::world::{GATEWAY, GATEWAY_ID, World, client, question, until};

/// A gateway whose certificate expires after so many seconds.
async fn short_lived(world: &World, seconds: i64) -> Client {
    let leaf = world.authority.sign_for(&[GATEWAY_ID], -60, seconds);
    let identity = leaf.identity(&[&world.authority]);
    let client = client(&identity, GATEWAY, world.server.address).await;
    client.expect("it is good still")
}

/// Waits until the server has told the caller to go.
async fn is_told(gateway: &Client) {
    let told = timeout(Duration::from_secs(10), async {
        loop {
            match gateway.check(&question()).await {
                Ok(answer) => assert_eq!(answer.status, 0),
                Err(error) => return error,
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    let error = told.await.expect("it is told in time");
    assert!(
        error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR),
        "{error}"
    );
}

#[tokio::test]
async fn a_caller_is_told_to_go_before_its_certificate_expires() {
    let world = World::new();
    let gateway = short_lived(&world, 8).await;
    gateway.check(&question()).await.expect("an answer");
    // A call that has begun.
    let mut send = gateway.send.clone().ready().await.expect("a connection");
    let (response, mut body) = send.send_request(head(CHECK), false).expect("a stream");
    is_told(&gateway).await;
    // It is answered nevertheless.
    let question = frame(&question().encode_to_vec());
    body.send_data(question, true).expect("it is still taken");
    let response = timeout(Duration::from_secs(1), response).await;
    let response = response.expect("in time").expect("an answer");
    assert_eq!(response.status(), 200);
    assert!(response.headers().get("grpc-status").is_none(), "a message");
    drop((body, response));
    // With nothing under way there is no reason to wait for the end.
    until("it is closed", || {
        world.metric("sallyport_policy_connections") == 0
    })
    .await;
}

#[tokio::test]
async fn what_never_ends_is_cut_with_the_certificate() {
    let world = World::new();
    let gateway = short_lived(&world, 6).await;
    let mut send = gateway.send.clone().ready().await.expect("a connection");
    let (response, _body) = send.send_request(head(CHECK), false).expect("a stream");
    is_told(&gateway).await;
    assert_eq!(world.metric("sallyport_policy_connections"), 1);
    let end = timeout(Duration::from_secs(4), response).await;
    let error = end.expect("in time").expect_err("nobody answers it");
    assert!(error.is_io() || error.is_go_away(), "{error}");
    // It is counted after the caller has seen it.
    until("it is closed", || {
        world.metric("sallyport_policy_connections") == 0
    })
    .await;
}
