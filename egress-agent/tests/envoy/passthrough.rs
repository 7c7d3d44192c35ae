//! Bytes that the gateway passes on by server name: who gets through, and what leaves before.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use egress_agent::gateway::envoy::Authorization;

use crate::client::{Answer, Connection};
use crate::gateway::{Gateway, Objects, free_port};
use crate::mesh::Authority;
use crate::tunnel;
use crate::upstream::{self, GREETING};
use crate::world::BOTH;

const NAMES: [&str; 5] = [
    "db.localhost",
    "*.pass.localhost",
    "*.some.localhost",
    "one.some.localhost",
    "deep.a.pass.localhost",
];

struct World {
    gateway: Gateway,
    objects: Objects,
    outside: Authority,
    /// Connections to the server that speaks first.
    greeted: Arc<AtomicUsize>,
}

fn start(authorization: Authorization) -> World {
    let outside = Authority::new("outside");
    let secure = upstream::serve_tls(&outside.sign(&NAMES, &[]));
    let plain = upstream::serve_plain();
    let (greeting, greeted) = upstream::serve_greeting();
    let port = free_port();
    let objects = objects(port, secure, plain, greeting);
    let gateway = Gateway::start(port, &objects, &outside, authorization);
    World {
        gateway,
        objects,
        outside,
        greeted,
    }
}

/// Passed on: `db.localhost` for productpage; `raw.localhost` (plain TCP) for all;
/// `*.pass.localhost` for two accounts from loopback; `one.some.localhost` below a wildcard of
/// requests, with a policy on trial; a server that speaks first for productpage. Requests: `api.pass.localhost` below a
/// wildcard that is passed on, and `*.some.localhost`. `kept.pass.localhost` is another gateway's.
fn objects(port: u16, secure: u16, plain: u16, greeting: u16) -> Objects {
    let mut documents = vec![format!(
        r#"
kind: VirtualGateway
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: egress-vg, namespace: istio-egress }}
spec:
  workloads: [{{ selector: {{ labels: {{ istio: egressgateway }} }} }}]
  listeners:
  - port: {{ number: {port} }}
    tls: {{ mode: ISTIO_MUTUAL }}
    exposedExternalServices: [{{ host: "*.localhost" }}]
"#
    )];
    let mut service = |name: &str, host: &str, number: u16, protocol: &str, rest: &str| {
        documents.push(format!(
            r#"
kind: ExternalService
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: {name}, namespace: global }}
spec:
  hosts: ["{host}"]
  ports: [{{ number: {number}, protocol: {protocol}, {rest} }}]
"#
        ));
    };
    let routes = "egressGatewayRoutes: {}";
    let requests = "clientsideTls: {}, egressGatewayRoutes: {}";
    let other = "egressGatewayRoutes: { virtualGatewayRefs: [{ name: other, namespace: x }] }";
    service("db", "db.localhost", secure, "TLS", routes);
    service("raw", "raw.localhost", plain, "TCP", routes);
    service("pass", "*.pass.localhost", secure, "TLS", routes);
    service("one", "one.some.localhost", secure, "HTTPS", routes);
    service("greeting", "greeting.localhost", greeting, "TCP", routes);
    service("api", "api.pass.localhost", secure, "HTTPS", requests);
    service("some", "*.some.localhost", secure, "HTTPS", requests);
    service("kept", "kept.pass.localhost", secure, "TLS", other);
    let mut policy = |service: &str, authz: &str| {
        documents.push(format!(
            r"
kind: AccessPolicy
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: {service}, namespace: istio-egress }}
spec:
  applyToDestinations:
  - kind: EXTERNAL_SERVICE
    selector: {{ name: {service}, namespace: global }}
  config: {{ authz: {authz} }}
"
        ));
    };
    let account =
        |name: &str| format!("serviceAccountSelector: {{ name: {name}, namespace: bookinfo }}");
    let productpage = account("productpage");
    policy(
        "db",
        &format!("{{ allowedClients: [{{ {productpage} }}] }}"),
    );
    policy(
        "greeting",
        &format!("{{ allowedClients: [{{ {productpage} }}] }}"),
    );
    policy(
        "pass",
        &format!(
            r#"{{ allowedClients: [{{ {productpage} }}, {{ {} }}], allowedIpBlocks: ["127.0.0.0/8"] }}"#,
            account("reviews")
        ),
    );
    policy(
        "one",
        &format!("{{ dryRun: true, allowedClients: [{{ {productpage} }}] }}"),
    );
    Objects::parse(&documents.join("\n---\n"))
}

fn reached(answer: &std::io::Result<Answer>) -> bool {
    answer.as_ref().is_ok_and(|answer| answer.status == 200)
}

#[test]
fn who_gets_through() {
    for authorization in BOTH {
        who_gets_through_by(authorization);
    }
}

fn who_gets_through_by(authorization: Authorization) {
    let World {
        gateway, outside, ..
    } = start(authorization);
    let rows = [
        ("productpage", "db.localhost", true),
        ("productpage", "DB.localhost", true),
        ("reviews", "db.localhost", false),
        ("productpage", "a.pass.localhost", true),
        ("reviews", "a.pass.localhost", true),
        ("ratings", "a.pass.localhost", false),
        ("productpage", "deep.a.pass.localhost", true),
        ("productpage", "kept.pass.localhost", false),
        ("productpage", "api.pass.localhost", false),
        ("ratings", "one.some.localhost", true),
        ("productpage", "two.some.localhost", false),
        ("productpage", "pass.localhost", false),
        ("productpage", "unknown.localhost", false),
        ("productpage", "db.localhost.example.com", false),
    ];
    for (account, host, expected) in rows {
        let answer = tunnel::get(&gateway, &outside, account, host);
        assert_eq!(
            reached(&answer),
            expected,
            "{account} to {host}: {answer:?}\n{}",
            gateway.log()
        );
        let decision = gateway.decide_connection(account, host);
        assert_eq!(
            decision.allowed, expected,
            "{account} to {host}: {decision:?}"
        );
    }
    logged(&gateway);
}

/// What each of two accounts did last for a server name, as the access log has it.
fn logged(gateway: &Gateway) {
    let of = |account: &str, name: &str| {
        let client = format!("spiffe://cluster.local/ns/bookinfo/sa/{account}");
        let log = gateway.access_log();
        log.into_iter()
            .find(|line| line["client"] == *client && line["server_name"] == *name)
    };
    let rows = [
        ("productpage", "db.localhost"),
        ("reviews", "db.localhost"),
        ("ratings", "one.some.localhost"),
    ];
    gateway.until("the access log has them", || {
        rows.iter()
            .all(|(account, name)| of(account, name).is_some())
    });
    let [admitted, refused, open] =
        rows.map(|(account, name)| of(account, name).expect("it is there"));
    let route = admitted["route_name"].as_str().expect("a route");
    assert!(route.starts_with("ExternalService/global/db:"), "{route}");
    assert_eq!(refused["route_name"], admitted["route_name"]);
    assert_ne!(admitted["bytes_sent"], 0, "{admitted}");
    assert_eq!(refused["bytes_sent"], 0, "{refused}");
    assert!(refused["upstream_host"].is_null(), "{refused}");
    for (line, verdict, reason) in [
        (&admitted, "allowed", "admitted"),
        (&refused, "denied", "not-admitted"),
        (&open, "allowed", "no-policy"),
    ] {
        assert_eq!(line["verdict"], verdict, "{line}");
        assert_eq!(line["reason"], reason, "{line}");
    }
    assert_eq!(admitted["object"], "AccessPolicy/istio-egress/db#0");
    assert_eq!(refused["object"], "AccessPolicy/istio-egress/db");
    assert_eq!(admitted["service"], "ExternalService/global/db");
    let lines = gateway.access_log();
    let same = |field: &str, line: &serde_json::Value| line[field] == admitted[field];
    let twice = |line: &&serde_json::Value| {
        same("downstream_remote_address", line) && same("server_name", line)
    };
    assert_eq!(lines.iter().filter(twice).count(), 1, "a line for each");
    // An entry on trial would admit productpage alone.
    assert_eq!(open["dry_run"], "denied", "{open}");
    assert!(admitted["dry_run"].is_null(), "{admitted}");
    assert_eq!(open["object"], "ExternalService/global/one");
    tunnel::get(
        gateway,
        &Authority::new("other"),
        "productpage",
        "one.some.localhost",
    )
    .expect_err("the outside is not one's own");
    let tried = || of("productpage", "one.some.localhost");
    gateway.until("the access log has the trial", || tried().is_some());
    let tried = tried().expect("it is there");
    assert_eq!(tried["dry_run"], "allowed", "{tried}");
    assert_eq!(tried["dry_run_object"], "AccessPolicy/istio-egress/one#0");
}

#[test]
fn plain_tcp_goes_by_server_name() {
    for authorization in BOTH {
        plain_tcp_goes_by_server_name_by(authorization);
    }
}

fn plain_tcp_goes_by_server_name_by(authorization: Authorization) {
    let World { gateway, .. } = start(authorization);
    let ask = |sni: Option<&str>| {
        let leaf = gateway.identity("ratings");
        let session = tunnel::open(&gateway, Some(&leaf), sni);
        Connection::over(session).ask("GET", "raw.localhost", "/raw", "")
    };
    let answer = ask(Some("raw.localhost"));
    assert!(reached(&answer), "{answer:?}\n{}", gateway.log());
    // Without its name the same bytes are a request, for a host that takes none.
    for sni in [None, Some("gateway.test"), Some("x.some.localhost")] {
        let answer = ask(sni).expect("an answer");
        assert!(answer.is_denied(), "{sni:?}: {answer:?}");
    }
}

#[test]
fn requests_and_what_is_passed_on_stay_apart() {
    for authorization in BOTH {
        requests_and_what_is_passed_on_stay_apart_by(authorization);
    }
}

fn requests_and_what_is_passed_on_stay_apart_by(authorization: Authorization) {
    let World { gateway, .. } = start(authorization);
    // (server name, host of the request, answered 200)
    let rows = [
        ("gateway.test", "api.pass.localhost", true),
        ("api.pass.localhost", "api.pass.localhost", true),
        ("gateway.test", "two.some.localhost", true),
        ("two.some.localhost", "api.pass.localhost", true),
        ("gateway.test", "one.some.localhost", false),
        ("two.some.localhost", "one.some.localhost", false),
        ("gateway.test", "db.localhost", false),
        ("gateway.test", "a.pass.localhost", false),
        ("api.pass.localhost", "a.pass.localhost", false),
        ("gateway.test", "kept.pass.localhost", false),
        ("kept.pass.localhost", "kept.pass.localhost", false),
    ];
    for (sni, host, expected) in rows {
        let session = tunnel::open_as(&gateway, "productpage", sni);
        let answer = Connection::over(session)
            .ask("GET", host, "/", "")
            .expect("an answer");
        let what = format!("{host} by {sni}: {answer:?}\n{}", gateway.log());
        assert_eq!(answer.status == 200, expected, "{what}");
        assert_eq!(answer.is_denied(), !expected, "{what}");
        let decision = gateway.decide("productpage", "GET", host, "/", &[]);
        assert_eq!(decision.allowed, expected, "{host}: {decision:?}");
    }
    // Where bytes are passed on no request is read: the outside's TLS has no use for this one.
    let session = tunnel::open_as(&gateway, "productpage", "db.localhost");
    let answer = Connection::over(session).ask("GET", "two.some.localhost", "/", "");
    assert!(!reached(&answer), "{answer:?}");
}

#[test]
fn nothing_leaves_before_the_client_is_admitted() {
    for authorization in BOTH {
        nothing_leaves_before_the_client_is_admitted_by(authorization);
    }
}

fn nothing_leaves_before_the_client_is_admitted_by(authorization: Authorization) {
    let World {
        gateway, greeted, ..
    } = start(authorization);
    let stranger = Authority::new("stranger");
    let uri = "spiffe://cluster.local/ns/bookinfo/sa/productpage";
    let refused = [
        ("no certificate", None),
        ("another authority", Some(stranger.sign(&[], &[uri]))),
        ("another account", Some(gateway.identity("reviews"))),
    ];
    for (what, leaf) in refused {
        for says in ["", "x"] {
            let mut session = tunnel::open(&gateway, leaf.as_ref(), Some("greeting.localhost"));
            let _ = session.write_all(says.as_bytes());
            let _ = session.flush();
            session
                .sock
                .set_read_timeout(Some(Duration::from_millis(500)))
                .expect("a timeout");
            let mut heard = Vec::new();
            let _ = session.read_to_end(&mut heard);
            let heard = String::from_utf8_lossy(&heard);
            assert_eq!(heard, "", "{what}, who said {says:?}, was greeted");
        }
        sleep(Duration::from_millis(100));
        let reached = greeted.load(Ordering::SeqCst);
        assert_eq!(reached, 0, "{what} made the gateway call outside");
    }
    let mut session = tunnel::open_as(&gateway, "productpage", "greeting.localhost");
    session.write_all(b"x").expect("Envoy takes it");
    let mut heard = vec![0; GREETING.len()];
    session.read_exact(&mut heard).expect("a greeting");
    assert_eq!(String::from_utf8_lossy(&heard), GREETING);
}

#[test]
fn nothing_is_looked_up_before_the_client_is_admitted() {
    for authorization in BOTH {
        nothing_is_looked_up_before_the_client_is_admitted_by(authorization);
    }
}

/// A name below a wildcard is the client's own choice: looked up, it would reach the outside.
fn nothing_is_looked_up_before_the_client_is_admitted_by(authorization: Authorization) {
    let World {
        gateway, outside, ..
    } = start(authorization);
    let looked_up = || gateway.stat("dns_cache.egress.host_added");
    let stranger = Authority::new("stranger");
    let uri = "spiffe://cluster.local/ns/bookinfo/sa/productpage";
    for leaf in [
        None,
        Some(stranger.sign(&[], &[uri])),
        Some(gateway.identity("ratings")),
    ] {
        let mut session = tunnel::open(&gateway, leaf.as_ref(), Some("secret.pass.localhost"));
        let _ = session.write_all(b"x");
        // Until the gateway has made up its mind.
        let _ = session.read_to_end(&mut Vec::new());
        assert_eq!(looked_up(), 0);
    }
    let answer = tunnel::get(&gateway, &outside, "reviews", "a.pass.localhost");
    assert!(reached(&answer), "{answer:?}\n{}", gateway.log());
    assert_eq!(looked_up(), 1);
}

#[test]
fn a_new_policy_holds_for_the_next_connection() {
    for authorization in BOTH {
        a_new_policy_holds_for_the_next_connection_by(authorization);
    }
}

fn a_new_policy_holds_for_the_next_connection_by(authorization: Authorization) {
    let World {
        mut gateway,
        mut objects,
        outside,
        ..
    } = start(authorization);
    let before = objects.clone();
    let get = |gateway: &Gateway| tunnel::get(gateway, &outside, "reviews", "db.localhost");
    assert!(!reached(&get(&gateway)));
    objects
        .policies
        .retain(|policy| policy.metadata.name.as_deref() != Some("db"));
    gateway.apply(&objects);
    gateway.until("reviews gets through", || reached(&get(&gateway)));
    gateway.apply(&before);
    gateway.until("reviews is cut", || !reached(&get(&gateway)));
    let productpage = tunnel::get(&gateway, &outside, "productpage", "db.localhost");
    assert!(reached(&productpage), "{productpage:?}");
}
