//! Messages and headers that nobody proper sends.

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use http::HeaderValue;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};
use prost::Message as _;
use prost::bytes::Bytes;

use crate::child::Victim;
use crate::grpc::{CHECK, frame, head};
use crate::world::question;

/// Bytes instead of a question, and how many of them a run tries.
const CASES: u32 = 2000;

#[tokio::test]
async fn megabyte_headers() {
    let victim = Victim::start().await;
    let standing = victim.gateway().await;
    for size in [15 << 10, 64 << 10, 1 << 20, 8 << 20] {
        let attacker = victim.gateway().await;
        let mut request = head(CHECK);
        let value = HeaderValue::from_maybe_shared(Bytes::from(vec![b'a'; size])).expect("text");
        request.headers_mut().insert("x-large", value);
        let mut send = attacker.send.clone().ready().await.expect("a connection");
        let (response, mut stream) = send.send_request(request, false).expect("a stream");
        let _ = stream.send_data(frame(&question().encode_to_vec()), true);
        match response.await {
            Ok(response) if size < 16 << 10 => assert_eq!(response.status(), 200),
            Ok(response) => assert_eq!(response.status(), 431, "{size} bytes"),
            Err(_) => assert!(size > 16 << 10, "{size} bytes"),
        }
        victim.is_bounded();
    }
    // The same in many small ones.
    let attacker = victim.gateway().await;
    let mut request = head(CHECK);
    for index in 0..10_000 {
        let name = http::HeaderName::try_from(format!("x-{index}")).expect("a name");
        request
            .headers_mut()
            .insert(name, HeaderValue::from_static("v"));
    }
    let mut send = attacker.send.clone().ready().await.expect("a connection");
    let (response, _stream) = send.send_request(request, true).expect("a stream");
    if let Ok(response) = response.await {
        assert_eq!(response.status(), 431);
    }
    Victim::answers_to(&standing).await;
    victim.survived().await;
}

#[tokio::test]
async fn huge_messages() {
    let victim = Victim::start().await;
    let standing = victim.gateway().await;
    let mut large = question();
    let attributes = large.attributes.as_mut().expect("it has them");
    attributes.request = Some(Request {
        http: Some(HttpRequest {
            body: "x".repeat(8 << 20),
            ..HttpRequest::default()
        }),
        ..Request::default()
    });
    for _ in 0..8 {
        let answer = standing.check(&large).await;
        // Too large: told so, or cut off before it was all sent.
        if let Ok(answer) = answer {
            assert_eq!(answer.status, 11, "out of range");
        }
    }
    // Only said to be huge.
    let claims = Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]);
    let answer = standing.call(CHECK, claims).await.expect("an answer");
    assert_eq!(answer.status, 11);
    // Compressed, which was never offered.
    let mut squeezed = frame(&question().encode_to_vec()).to_vec();
    squeezed[0] = 1;
    let answer = standing
        .call(CHECK, squeezed.into())
        .await
        .expect("an answer");
    assert_ne!(answer.status, 0);
    Victim::answers_to(&standing).await;
    victim.survived().await;
}

/// Raw bytes, and good questions with some of their bytes changed, cut or doubled.
fn questions() -> impl Strategy<Value = Vec<u8>> {
    let good = question().encode_to_vec();
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
    // Groups and messages in each other, as deep as it goes.
    let deep = (1..40_000_usize, any::<u8>()).prop_map(|(depth, tag)| vec![tag; depth]);
    prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 0..4096),
        6 => mutated,
        1 => deep,
    ]
}

#[tokio::test]
async fn fuzzed_questions() {
    let victim = Victim::start().await;
    let standing = victim.gateway().await;
    let mut runner = TestRunner::new(Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    });
    let mut refused = 0;
    for _ in 0..CASES {
        let bytes = questions().new_tree(&mut runner).expect("bytes").current();
        let answer = standing.call(CHECK, frame(&bytes)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{error} for {bytes:02x?}"));
        // A panic would show as no status (2), or as unknown (2).
        assert_ne!(answer.status, 2, "{bytes:02x?}");
        if answer.status == 0 {
            assert_ne!(answer.verdict(), 0, "allowed: {bytes:02x?}");
        } else {
            refused += 1;
        }
    }
    println!("{refused} of {CASES} are no questions");
    assert!(refused > CASES / 20 && refused < CASES);
    Victim::answers_to(&standing).await;
    victim.survived().await;
}
