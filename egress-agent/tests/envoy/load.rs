//! Policy that changes while requests are under way: whom it admits, to what, and where that leads.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use egress_agent::gateway::envoy::Authorization;
use serde_json::json;
use tokio::task::{JoinSet, block_in_place};

use crate::gateway::{Gateway, Objects, free_port};
use crate::http2::Http2;
use crate::mesh::Authority;
use crate::upstream;
use crate::world::{BOTH, guide};

const HOST: &str = "open.localhost:8080";
/// How often the policy changes, and for how long.
const PACE: Duration = Duration::from_millis(40);
const TIME: Duration = Duration::from_secs(4);

/// Who may have what, and at which port outside it is.
#[derive(Clone, Copy)]
struct State {
    account: &'static str,
    path: &'static str,
    port: u16,
}

/// `open.localhost:8080` in this state.
fn objects(listener: u16, state: State) -> Objects {
    let mut objects = guide(listener, 443, 444, state.port);
    objects
        .services
        .retain(|service| service.metadata.name.as_deref() == Some("open"));
    objects.policies[0].spec = serde_json::from_value(json!({
        "applyToDestinations":
            [{ "kind": "EXTERNAL_SERVICE", "selector": { "name": "open", "namespace": "global" } }],
        "config": { "authz": {
            "allowedClients": [{ "serviceAccountSelector": { "name": state.account } }],
            "allowedPaths": [state.path],
        } },
    }))
    .expect("a policy");
    objects
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_decided_by_parts_of_two_policies() {
    for authorization in BOTH {
        no_request_is_decided_by_parts_of_two_policies_by(authorization).await;
    }
}

async fn no_request_is_decided_by_parts_of_two_policies_by(authorization: Authorization) {
    let states = [("productpage", "/a"), ("reviews", "/b")].map(|(account, path)| State {
        account,
        path,
        port: upstream::serve_plain(),
    });
    let port = free_port();
    let first = objects(port, states[0]);
    let outside = Authority::new("outside");
    let mut gateway = block_in_place(|| Gateway::start(port, &first, &outside, authorization));

    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for account in ["productpage", "reviews"] {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("Envoy listens");
        let leaf = gateway.identity(account);
        let client = Http2::connect(&gateway.mesh, &leaf, stream).await;
        for path in ["/a", "/b"] {
            for _ in 0..10 {
                let (client, stop) = (client.clone(), stop.clone());
                tasks.spawn(ask(client, account, path, states, stop));
            }
        }
    }
    let begin = Instant::now();
    let mut changes = 0;
    while begin.elapsed() < TIME {
        tokio::time::sleep(PACE).await;
        changes += 1;
        gateway.apply(&objects(port, states[changes % 2]));
    }
    stop.store(true, Ordering::Relaxed);
    let (mut requests, mut admitted) = (0, [0; 2]);
    while let Some(ended) = tasks.join_next().await {
        let (asked, through) = ended.expect("no answer was wrong");
        requests += asked;
        for (sum, through) in admitted.iter_mut().zip(through) {
            *sum += through;
        }
    }
    println!("{authorization:?}: {requests} requests, {changes} changes, admitted {admitted:?}");
    assert!(changes > 30 && requests > 500, "{changes} {requests}");
    assert!(admitted.iter().all(|&times| times > 20), "{admitted:?}");

    // What it ends with holds, for the one and for the other.
    for state in states {
        gateway.apply(&objects(port, state));
        for (account, path) in [("productpage", "/a"), ("reviews", "/b")] {
            block_in_place(|| {
                gateway.until("the last state", || {
                    let status = gateway.get(account, HOST, path).status;
                    (status == 200) == (account == state.account)
                });
            });
        }
    }
}

/// Asks until it is told to stop; how often, and how often each state let it through.
async fn ask(
    client: Http2,
    account: &'static str,
    path: &'static str,
    states: [State; 2],
    stop: Arc<AtomicBool>,
) -> (u32, [u32; 2]) {
    let (mut asked, mut through) = (0, [0; 2]);
    while !stop.load(Ordering::Relaxed) {
        let reply = client.get(HOST, path).await;
        asked += 1;
        if reply.status == 403 {
            // Without a body: no answer in time, on a busy machine.
            assert!(reply.body.is_empty() || reply.is_denied(), "{reply:?}");
            continue;
        }
        if reply.status == 503 {
            // Where it led went while the policy server was asked about it.
            assert!(reply.body.is_empty(), "{reply:?}");
            continue;
        }
        assert_eq!(reply.status, 200, "{reply:?}");
        // The server says what it was asked for, with its port.
        let at = states.iter().position(|state| {
            let host = format!("host: open.localhost:{}\r\n", state.port);
            reply.body.contains(&host)
        });
        let at = at.expect("one of the two servers");
        assert_eq!(
            (states[at].account, states[at].path),
            (account, path),
            "{account} got {path} of the server of state {at}"
        );
        through[at] += 1;
    }
    (asked, through)
}
