//! Requests of clients that are who they say.

use serde_json::Value;

use crate::http2::Http2;
use crate::objects::{PRODUCTPAGE, REVIEWS, served, standard};
use crate::world::World;

/// Account, its address, authority, path, and the answer's status.
const ROWS: [(&str, &str, &str, &str, u16); 15] = [
    ("productpage", PRODUCTPAGE, "api.localhost", "/get?x=1", 200),
    ("productpage", PRODUCTPAGE, "API.localhost:80", "/", 200),
    (
        "productpage",
        PRODUCTPAGE,
        "api.localhost",
        "/status/200",
        200,
    ),
    (
        "productpage",
        PRODUCTPAGE,
        "api.localhost",
        "/x/../get",
        200,
    ),
    (
        "productpage",
        PRODUCTPAGE,
        "api.localhost",
        "/status/../x",
        403,
    ),
    (
        "productpage",
        PRODUCTPAGE,
        "api.localhost",
        "/status/..%2fx",
        403,
    ),
    ("productpage", PRODUCTPAGE, "api.localhost", "/admin", 403),
    (
        "productpage",
        PRODUCTPAGE,
        "api.localhost:8080",
        "/get",
        403,
    ),
    ("reviews", REVIEWS, "api.localhost", "/get", 403),
    ("reviews", REVIEWS, "open.localhost", "/any", 200),
    ("reviews", REVIEWS, "other.localhost", "/", 403),
    ("reviews", REVIEWS, "127.0.0.1", "/", 403),
    ("reviews", REVIEWS, "localhost", "/", 403),
    ("reviews", REVIEWS, "trial.localhost", "/", 403),
    ("productpage", PRODUCTPAGE, "trial.localhost", "/", 200),
];

#[test]
fn over_http1() {
    let world = World::start();
    for (account, from, authority, path, expected) in ROWS {
        let answer = world.get(account, from, authority, path);
        let what = format!("{account} {authority}{path}: {answer:?}\n{}", world.log());
        assert_eq!(answer.status, expected, "{what}");
        assert_eq!(answer.is_denied(), expected == 403, "{what}");
        if expected == 200 {
            // The outside learns nothing of the decision.
            for leak in [
                "verdict",
                "admitted",
                "AccessPolicy",
                "ext_authz",
                "revision",
            ] {
                assert!(!answer.body.contains(leak), "{leak}: {what}");
            }
        } else {
            // Nor does the client.
            let mut names: Vec<&str> = answer
                .head
                .lines()
                .skip(1)
                .filter_map(|line| line.split(':').next())
                .collect();
            names.sort_unstable();
            assert_eq!(
                names,
                ["content-length", "content-type", "date", "server"],
                "{what}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http2() {
    let world = tokio::task::block_in_place(World::start);
    for (account, from, authority, path, expected) in ROWS {
        let leaf = world.identity(account);
        let client = Http2::connect(&world.mesh, &leaf, World::dial(from, world.ports.http)).await;
        let (one, two) = tokio::join!(client.get(authority, path), client.get(authority, path));
        assert_eq!(one.status, expected, "{account} {authority}{path}: {one:?}");
        assert_eq!(one.is_denied(), expected == 403, "{one:?}");
        assert_eq!(one.status, two.status);
    }
}

#[test]
fn the_access_log_says_who_decided_and_why() {
    let world = World::start();
    let revision = world.standard().revision;
    world.get("productpage", PRODUCTPAGE, "api.localhost", "/get");
    let entry = world.logged(|entry| entry["path"] == "/get");
    for (key, expected) in [
        ("verdict", "allowed"),
        ("reason", "admitted"),
        ("service", "ExternalService/global/api"),
        ("object", "AccessPolicy/istio-egress/api#0"),
        (
            "client",
            "spiffe://cluster.local/ns/bookinfo/sa/productpage",
        ),
        ("revision", revision.as_str()),
    ] {
        assert_eq!(entry[key], expected, "{entry:#}");
    }
    assert!(entry["dry_run"].is_null(), "{entry:#}");

    world.get("reviews", REVIEWS, "api.localhost", "/refused");
    let entry = world.logged(|entry| entry["path"] == "/refused");
    for (key, expected) in [
        ("verdict", "denied"),
        ("reason", "not-admitted"),
        ("service", "ExternalService/global/api"),
        // No entry of it admits.
        ("object", "AccessPolicy/istio-egress/api"),
        ("client", "spiffe://cluster.local/ns/bookinfo/sa/reviews"),
        ("details", "ext_authz_denied"),
        ("flags", "UAEX"),
    ] {
        assert_eq!(entry[key], expected, "{entry:#}");
    }

    // What a dry-run entry would do is told and counted, not done.
    assert!(
        world
            .get("reviews", REVIEWS, "trial.localhost", "/trial")
            .is_denied()
    );
    let entry = world.logged(|entry| entry["path"] == "/trial");
    assert_eq!(entry["dry_run"], "allowed", "{entry:#}");
    assert_eq!(
        entry["dry_run_object"], "AccessPolicy/istio-egress/trial#1",
        "{entry:#}"
    );
    assert_eq!(entry["verdict"], "denied", "{entry:#}");
    let counted = "sallyport_access_dry_run_total{gateway=\"istio-egress/egress-vg\",\
                   service=\"ExternalService/global/trial\",would_be=\"allowed\",\
                   object=\"AccessPolicy/istio-egress/trial#1\"}";
    assert_eq!(world.metric(counted), 1, "{}", world.server().metrics());
}

#[test]
fn headers_are_read_as_the_gateway_tells_them() {
    let world = World::start();
    // Lines, and the status with lines joined and with each for itself.
    let rows = [
        ("x-team: red\r\n", 200, 200),
        ("X-Team: red\r\n", 200, 200),
        ("", 403, 403),
        ("x-team: green\r\n", 403, 403),
        ("x-team: red\r\nx-team: green\r\n", 403, 403),
        ("x-team: green\r\nx-team: red\r\n", 403, 403),
        ("x-team: red\r\nx-team: blue\r\n", 200, 200),
        // Nobody can tell it from two lines where they are joined.
        ("x-team: red,green\r\n", 403, 200),
        ("x-team: red\r\nuser-agent: \u{e9}\r\n", 200, 200),
    ];
    for (lines, joined, apart) in rows {
        for (port, expected) in [(world.ports.http, joined), (world.ports.raw, apart)] {
            let answer = world.ask("reviews", REVIEWS, port, "teams.localhost", "/", lines);
            assert_eq!(answer.status, expected, "{lines:?} {port}: {answer:?}");
        }
    }
}

#[test]
fn a_gateway_that_leaves_paths_alone_lets_none_through_that_can_be_read_twice() {
    let world = World::start();
    for (path, expected) in [
        ("/get", 200),
        ("/x/../get", 200),
        ("/x/%2e%2e/get", 200),
        ("/%67et", 200),
        ("//get", 200),
        ("/status/../admin", 403),
        ("/status/..%2fadmin", 403),
        ("/status/%2e%2e/admin", 403),
        ("/status//../admin", 403),
        ("/status//..//x", 403),
        ("/status/..;/admin", 403),
        ("/status/%00", 403),
    ] {
        let port = world.ports.raw;
        let answer = world.ask("productpage", PRODUCTPAGE, port, "api.localhost", path, "");
        assert_eq!(answer.status, expected, "{path}: {answer:?}");
    }
}

#[test]
fn what_the_log_and_the_metrics_name_is_what_was_declared() {
    let world = World::start();
    for number in 0..20 {
        let host = format!("h{number}.localhost");
        assert!(world.get("reviews", REVIEWS, &host, "/").is_denied());
    }
    // Whatever clients ask for makes no new series.
    let series = world.server().metrics();
    let series: Vec<&str> = series
        .lines()
        .filter(|line| line.starts_with("sallyport_access_decisions_total"))
        .collect();
    assert_eq!(series.len(), 1, "{series:?}");
    assert!(series[0].ends_with(" 20"), "{series:?}");
    assert!(series[0].contains("reason=\"unknown-host\""), "{series:?}");
}

#[test]
fn what_was_counted_of_a_policy_goes_with_it() {
    let world = World::start();
    world.get("productpage", PRODUCTPAGE, "api.localhost", "/get");
    world.get("reviews", REVIEWS, "trial.localhost", "/");
    world.get("reviews", REVIEWS, "open.localhost", "/");
    let counted = |what: &str| world.server().metrics().matches(what).count();
    let (entry, trial) = ("AccessPolicy/istio-egress/api#0", "access_dry_run_total{");
    assert_eq!((counted(entry), counted(trial)), (1, 1));
    let mut left = standard(&world.ports);
    left.retain(|object| !["api", "trial"].contains(&name(object)));
    world.server().serve(served(&left, &world.ports));
    world.until("nothing is told of what is gone", || {
        (counted(entry), counted(trial)) == (0, 0)
    });
    // What is left is counted on.
    world.get("reviews", REVIEWS, "open.localhost", "/");
    let open = "sallyport_access_decisions_total{gateway=\"istio-egress/egress-vg\",\
                verdict=\"allowed\",reason=\"no-policy\"";
    assert_eq!(world.metric(open), 2, "{}", world.server().metrics());
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("a name")
}
