//! The API server goes away, forgets and falls behind.

use std::time::Duration;

use egress_agent::source::kubernetes::Pace;
use tokio::time::{Instant, sleep};
use xtask::apiserver::{ApiServer, Fault, Faults};

use super::objects;
use super::world::{Follower, PACE, cluster};

async fn followed() -> (ApiServer, Follower) {
    let api = cluster();
    api.apply(&objects::lockdown("all", "bookinfo", &["192.0.2.0/24"]))
        .unwrap();
    let mut follower = Follower::new(&api).await;
    follower.until("the first state", |f| f.changes > 0).await;
    (api, follower)
}

fn lists(api: &ApiServer) -> usize {
    let asked = api.take_asked();
    asked.iter().filter(|(verb, _)| *verb == "list").count()
}

#[tokio::test]
async fn while_it_is_away_the_state_stands_and_its_age_is_known() {
    let (api, mut follower) = followed().await;
    lists(&api);
    api.set_away(true);
    follower.until("the loss", |f| !f.health.connected).await;
    assert!(follower.health.stale_since.is_some());
    sleep(Duration::from_millis(300)).await;
    follower.take();
    assert_eq!(follower.changes, 1, "nothing else has changed");
    api.set_away(false);
    follower.until("it is back", |f| f.health.connected).await;
    assert_eq!(follower.health.stale_since, None);
    follower.quiet().await;
    assert_eq!(follower.changes, 1, "and still nothing has");
    assert_eq!(lists(&api), 0, "watches go on where they broke off");
    // What changed meanwhile comes too.
    api.set_away(true);
    follower.until("the loss", |f| !f.health.connected).await;
    api.delete(&objects::lockdown("all", "bookinfo", &[]))
        .unwrap();
    api.set_away(false);
    follower
        .until("what was missed", |f| f.index.lockdowns().is_empty())
        .await;
}

#[tokio::test]
async fn what_is_forgotten_is_listed_once_and_the_same_is_no_change() {
    let (api, mut follower) = followed().await;
    lists(&api);
    api.set_away(true);
    follower.until("the loss", |f| !f.health.connected).await;
    // Something happens to every kind, so that no watch can go on.
    api.apply(&objects::lockdown("all", "bookinfo", &["192.0.2.0/24"]))
        .unwrap();
    api.compact();
    api.set_away(false);
    follower.until("it is back", |f| f.health.connected).await;
    sleep(Duration::from_millis(500)).await;
    follower.take();
    assert_eq!(follower.changes, 1, "the same objects are no change");
    let (lists, watches) = (lists(&api), 13);
    assert_eq!(lists, watches, "each is listed once");
    api.apply(&objects::lockdown("all", "bookinfo", &[]))
        .unwrap();
    follower
        .until("a change", |f| {
            f.index.lockdowns()["all"].allow.cidrs.is_empty()
        })
        .await;
}

#[tokio::test]
async fn a_watch_that_worked_is_taken_up_soon_however_often_it_has_broken() {
    let api = cluster();
    let pace = Pace {
        longest: Duration::from_mins(1),
        ..PACE
    };
    let mut follower = Follower::at(&api, pace).await;
    follower.until("the first state", |f| f.changes > 0).await;
    for round in 0..14 {
        let cidr = format!("192.0.2.{round}/32");
        api.apply(&objects::lockdown("all", "bookinfo", &[&cidr]))
            .unwrap();
        let start = Instant::now();
        follower
            .until("a change", |f| {
                let all = f.index.lockdowns().get("all");
                all.is_some_and(|all| all.allow.cidrs[0].cidr.to_string() == cidr)
            })
            .await;
        // Twice the wait each time would be half a minute by now.
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?} in round {round}");
        api.break_connections();
    }
}

#[tokio::test]
async fn a_server_that_is_behind_for_ever_is_listed_anew() {
    let (api, mut follower) = followed().await;
    api.set_faults(Faults {
        seed: 1,
        per_mille: 1000,
        budget: 200,
        kinds: vec![Fault::Behind],
        delay: Duration::ZERO,
    });
    api.break_connections();
    api.apply(&objects::lockdown("all", "bookinfo", &[]))
        .unwrap();
    follower
        .until("a change", |f| {
            f.index.lockdowns()["all"].allow.cidrs.is_empty()
        })
        .await;
}
