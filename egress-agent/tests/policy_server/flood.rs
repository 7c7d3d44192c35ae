//! Many connections and streams, and slow ones: memory stays bounded, gateways are answered.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use h2::client::Builder;
use prost::Message as _;
use prost::bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use egress_agent::tls::{MinVersion, client_config};

use crate::child::Victim;
use crate::grpc::{CHECK, Client, connect_from, frame, head, shake};
use crate::policy_server::server_id;
use crate::world::{ELSEWHERE, GATEWAY, GATEWAY_ID, question};

/// An address of loopback that is no gateway's.
fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 1, last).into()
}

#[tokio::test]
async fn slow_handshakes_keep_no_gateway_out() {
    let victim = Victim::start().await;
    let standing = victim.gateway().await;
    let mut slow = Vec::new();
    for last in 1..=40 {
        for _ in 0..10 {
            let mut stream = connect_from(address(last), victim.address)
                .await
                .expect("a connection");
            // The head of a ClientHello of 512 bytes, whose rest never comes.
            let begun = stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]).await;
            if begun.is_ok() {
                slow.push(stream);
            }
        }
    }
    victim.answers().await;
    Victim::answers_to(&standing).await;
    victim.is_bounded();
    // Each is told to go in the end.
    for mut stream in slow {
        let end = timeout(Duration::from_secs(8), stream.read(&mut [0; 64])).await;
        assert!(matches!(end.expect("closed in time"), Ok(0) | Err(_)));
    }
    // And then there is room again, for anybody.
    assert!(victim.stranger(ELSEWHERE).await.is_some());
    victim.survived().await;
}

#[tokio::test]
async fn a_flood_of_connections() {
    let victim = Victim::start().await;
    let standing = victim.gateway().await;
    let mut open = Vec::new();
    for round in 0..4000_u32 {
        let from = address(u8::try_from(round % 200 + 1).expect("small"));
        if let Ok(mut stream) = connect_from(from, victim.address).await {
            let _ = stream.write_all(&[0xff; 64]).await;
            open.push(stream);
        }
        if open.len() > 400 {
            open.drain(..200);
        }
        if round % 1000 == 999 {
            victim.answers().await;
            Victim::answers_to(&standing).await;
        }
    }
    drop(open);
    victim.survived().await;
}

#[tokio::test]
async fn strangers_are_few_and_soon_gone() {
    let victim = Victim::start().await;
    let mut strangers = Vec::new();
    for _ in 0..40 {
        if let Some(stranger) = victim.stranger(ELSEWHERE).await
            && let Ok(answer) = stranger.check(&question()).await
        {
            assert_eq!(answer.status, 7);
            strangers.push(stranger);
        }
    }
    assert_eq!(strangers.len(), 16);
    victim.answers().await;
    sleep(Duration::from_secs(11)).await;
    for stranger in strangers {
        assert!(stranger.check(&question()).await.is_err());
    }
    let stranger = victim.stranger(ELSEWHERE).await.expect("there is room");
    assert!(stranger.check(&question()).await.is_ok());
    victim.survived().await;
}

#[tokio::test]
async fn calls_that_never_end() {
    let victim = Victim::start().await;
    let standing = victim.gateway().await;
    let attacker = victim.gateway().await;
    let mut open = Vec::new();
    // More than one connection may have at once: the rest waits on our side.
    for _ in 0..2000 {
        let ready = timeout(Duration::from_millis(200), attacker.send.clone().ready()).await;
        let Ok(Ok(mut send)) = ready else { break };
        let (response, mut stream) = send.send_request(head(CHECK), false).expect("a stream");
        // The head of a message of 200 KiB.
        let _ = stream.send_data(Bytes::from_static(&[0, 0, 3, 0x20, 0]), false);
        open.push((response, stream));
    }
    assert!(open.len() >= 512, "{} streams", open.len());
    victim.answers().await;
    Victim::answers_to(&standing).await;
    victim.is_bounded();
    // Each has its time.
    let (first, _stream) = open.swap_remove(0);
    let answer = timeout(Duration::from_secs(15), first).await;
    let answer = answer.expect("in time").expect("an answer");
    assert_ne!(answer.headers()["grpc-status"], "0");
    victim.survived().await;
}

#[tokio::test]
async fn streams_begun_and_reset() {
    let victim = Victim::start().await;
    let standing = victim.gateway().await;
    let body = frame(&question().encode_to_vec());
    let mut ended = 0;
    let mut attacker = victim.gateway().await;
    for _ in 0..20_000 {
        let ready = timeout(Duration::from_secs(1), attacker.send.clone().ready()).await;
        let Ok(Ok(mut send)) = ready else {
            ended += 1;
            attacker = victim.gateway().await;
            continue;
        };
        if let Ok((_, mut stream)) = send.send_request(head(CHECK), false) {
            let _ = stream.send_data(body.clone(), false);
            stream.send_reset(h2::Reason::CANCEL);
        }
        tokio::task::yield_now().await;
    }
    println!("{ended} connections were ended");
    victim.answers().await;
    Victim::answers_to(&standing).await;
    victim.survived().await;
}

#[tokio::test]
async fn a_client_that_never_reads() {
    let victim = Victim::start().await;
    let standing = victim.gateway().await;
    let identity = victim.authority.sign(&[GATEWAY_ID]);
    let identity = identity.identity(&[&victim.authority]);
    let body = frame(&question().encode_to_vec());
    let mut attackers = Vec::new();
    for _ in 0..8 {
        let config = client_config(&identity, server_id(), MinVersion::Tls13).expect("one");
        let stream = connect_from(GATEWAY, victim.address).await.expect("one");
        let stream = shake(stream, config).await.expect("a handshake");
        let mut settings = Builder::new();
        // No room for a single byte of an answer.
        settings.initial_window_size(0);
        let attacker = Client::with(stream, &settings).await.expect("HTTP/2");
        let mut answers = Vec::new();
        for _ in 0..2000 {
            let ready = timeout(Duration::from_millis(100), attacker.send.clone().ready()).await;
            let Ok(Ok(mut send)) = ready else { break };
            let Ok((response, mut stream)) = send.send_request(head(CHECK), false) else {
                break;
            };
            let _ = stream.send_data(body.clone(), true);
            answers.push((response, stream));
        }
        attackers.push((attacker, answers));
    }
    victim.answers().await;
    Victim::answers_to(&standing).await;
    victim.is_bounded();
    drop(attackers);
    victim.survived().await;
}
