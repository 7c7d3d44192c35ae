//! Policy that changes while requests are under way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http2::Http2;
use crate::objects::{PRODUCTPAGE, REVIEWS, base, clients, pod, policy, served, service};
use crate::world::World;

/// A pod that is of one service account in one state, and of another in the other.
const TURNING: &str = "127.0.1.3";

/// Two states that differ in three places: who is admitted, to which path, and whose an address is.
fn state(world: &World, account: &str, path: &str) -> Vec<Value> {
    let mut objects = base(&world.ports);
    objects.push(service("api"));
    objects.push(policy(
        "api",
        &json!([{ "allowedClients": clients(account), "allowedPaths": [path] }]),
    ));
    objects.push(pod("bookinfo", account, TURNING));
    objects
}

/// Service account, address, path; and whether the first or the second state lets it through.
/// What none of them lets through would get through with a mix of both.
const ASKS: [(&str, &str, &str, [bool; 2]); 8] = [
    ("productpage", PRODUCTPAGE, "/a", [true, false]),
    ("productpage", PRODUCTPAGE, "/b", [false, false]),
    ("reviews", REVIEWS, "/a", [false, false]),
    ("reviews", REVIEWS, "/b", [false, true]),
    ("productpage", TURNING, "/a", [true, false]),
    ("productpage", TURNING, "/b", [false, false]),
    ("reviews", TURNING, "/a", [false, false]),
    ("reviews", TURNING, "/b", [false, true]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_is_decided_by_one_state() {
    let world = tokio::task::block_in_place(World::start);
    let states = [("productpage", "/a"), ("reviews", "/b")]
        .map(|(account, path)| served(&state(&world, account, path), &world.ports));
    let revisions = states.clone().map(|state| state.revision);
    assert_ne!(revisions[0], revisions[1]);
    world.server().serve(states[0].clone());

    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for (account, from, path, expected) in ASKS {
        let leaf = world.identity(account);
        let client = Http2::connect(&world.mesh, &leaf, World::dial(from, world.ports.http)).await;
        for _ in 0..25 {
            let (client, stop) = (client.clone(), stop.clone());
            tasks.spawn(async move {
                let mut seen = [0_u64; 2];
                while !stop.load(Ordering::Relaxed) {
                    let reply = client.get("api.localhost", path).await;
                    if reply.status == 403 && reply.body.is_empty() {
                        // Refused by the gateway itself: no answer in time, on a busy machine.
                        continue;
                    }
                    assert!(reply.status == 200 || reply.is_denied(), "{reply:?}");
                    let allowed = reply.status == 200;
                    assert!(
                        !allowed || expected.contains(&true),
                        "{account} {from} {path}"
                    );
                    seen[usize::from(allowed)] += 1;
                }
                ((account, from, path), seen)
            });
        }
    }
    let begin = Instant::now();
    let mut changes = 0_usize;
    while begin.elapsed() < Duration::from_secs(4) {
        tokio::time::sleep(Duration::from_millis(7)).await;
        changes += 1;
        world.server().serve(states[changes % 2].clone());
    }
    stop.store(true, Ordering::Relaxed);
    let mut seen: BTreeMap<_, [u64; 2]> = BTreeMap::new();
    while let Some(ended) = tasks.join_next().await {
        let (ask, counts) = ended.expect("no answer was wrong");
        let sum = seen.entry(ask).or_default();
        sum[0] += counts[0];
        sum[1] += counts[1];
    }
    let requests: u64 = seen.values().flatten().sum();
    assert!(changes > 100 && requests > 500, "{changes} {requests}");
    for (account, from, path, expected) in ASKS {
        let [denied, allowed] = seen[&(account, from, path)];
        assert!(denied > 0, "{account} {from} {path}: {seen:?}");
        assert_eq!(
            allowed > 0,
            expected.contains(&true),
            "{account} {from} {path}"
        );
    }

    // Each entry of the access log names the state that decided it, and that state says so.
    let logged = |world: &World| world.access_log().len() as u64 >= requests;
    tokio::task::block_in_place(|| world.until("the access log is whole", || logged(&world)));
    let mut by_state = [0_u64; 2];
    for entry in world.access_log() {
        if entry["details"] == "ext_authz_error" {
            assert_eq!(
                (&entry["code"], &entry["verdict"]),
                (&json!(403), &Value::Null)
            );
            continue;
        }
        let at = revisions
            .iter()
            .position(|revision| entry["revision"] == **revision);
        let at = at.unwrap_or_else(|| panic!("decided by no state: {entry:#}"));
        by_state[at] += 1;
        let client = entry["client"].as_str().expect("a client");
        let (.., expected) = ASKS
            .iter()
            .find(|(account, from, path, _)| {
                client.ends_with(&format!("/sa/{account}"))
                    && entry["from"] == **from
                    && entry["path"] == **path
            })
            .expect("it was asked");
        let verdict = if expected[at] { "allowed" } else { "denied" };
        assert_eq!(entry["verdict"], verdict, "{entry:#}");
        let code = if expected[at] { 200 } else { 403 };
        assert_eq!(entry["code"], code, "{entry:#}");
        let owner = (
            account_of(client),
            entry["from"].as_str().expect("an address"),
        );
        let turned = owner.1 == TURNING && owner.0 != ["productpage", "reviews"][at];
        assert_eq!(entry["reason"] == "stolen-identity", turned, "{entry:#}");
    }
    assert!(by_state[0] > 100 && by_state[1] > 100, "{by_state:?}");
    println!("{requests} requests, {changes} changes, by state {by_state:?}");
}

fn account_of(client: &str) -> &str {
    client.rsplit('/').next().unwrap_or_default()
}
