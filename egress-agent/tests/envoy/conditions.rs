//! Conditions on the request: Envoy and the decision side by side.

use egress_agent::gateway::envoy::Authorization;

use crate::gateway::Objects;
use crate::world::{BOTH, start};

/// A policy with every kind of condition on `api.localhost`.
fn conditions(mut objects: Objects) -> Objects {
    objects.policies[0].spec = serde_yaml_ng::from_str(
        r#"
applyToDestinations:
- kind: EXTERNAL_SERVICE
  selector: { name: api, namespace: global }
config:
  authzList:
  - allowedClients: [{ serviceAccountSelector: { name: productpage, namespace: bookinfo } }]
    allowedMethods: [GET, HEAD]
    allowedPaths: ["/b", "/status/*", "*.json", "/a b%20c", "/admin", "/caf%C3%A9/*"]
  - allowedClients: [{ serviceAccountSelector: { name: reviews } }]
    match: { request: { headers: { x-team: { values: ["red", "blue*"], notValues: ["blue-x"] } } } }
  - allowedIpBlocks: ["10.0.0.0/8", "127.0.0.1/32"]
    allowedMethods: [DELETE]
  - {}
  - allowedClients: [{}]
    allowedMethods: [OPTIONS]
    dryRun: true
"#
        .replace("/a b%20c", "/a%20b")
        .as_str(),
    )
    .expect("a policy");
    objects
}

const PATHS: [&str; 102] = [
    "/b",
    "/b?x",
    "/b/",
    "/B",
    "/a/../b",
    "/a/%2e%2e/b",
    "/a/%2E./b",
    "/a/..%2fb",
    "/a%2f..%2fb",
    "//b",
    "///b",
    "/./b",
    "/b/.",
    "/b/..",
    "/x/../../b",
    "/status/../b",
    "/status/../x",
    "/status/%2e%2e/x",
    "/status/..%2fx",
    "/status//x",
    "/status/",
    "/status",
    "/x/..//b",
    "/%62",
    "/%61dmin",
    "/admin%00",
    "/admin%",
    "/admin%zz",
    "/admi%6E",
    "/a%20b",
    "/a b",
    "/a+b",
    "/x.json",
    "/x.json?y",
    "/x?y.json",
    "/x#y.json",
    "/x%23.json",
    "/x;.json",
    "/x.json;",
    "/status\\..\\x",
    "/status\\x",
    "/status/%5c..%5cx",
    "/status/..;/x",
    "/status/%2",
    "/status/{x}",
    "/status/|",
    "/status/\"",
    "/status/<x>",
    "/status/^",
    "/status/`",
    "/status/[x]",
    "/caf%C3%A9/x",
    "/caf%c3%a9/x",
    "/status/é",
    "/status/%C3%A9",
    "/status/%7E",
    "/status/~",
    "/status/%41%5f",
    "/%73tatus/x",
    "/status%2Fx",
    "/status/%252e%252e/x",
    "/status/....//x",
    "/.../b",
    "/b#",
    "/b/./",
    "/b//",
    "*",
    "b",
    "http:b",
    "/%2e%2e/b",
    "/status/x/..",
    "/status/..",
    "/b?x=%2f",
    "/b?x=%00",
    "/b?x#y",
    "/status/.;/x",
    "/status/x/..;/b",
    "/status/..;a/x",
    "/status/x;a",
    "/status/...;/x",
    "/b;",
    "/..;/b",
    "/status/%2e%2e;/x",
    "/status/..%3b/x",
    "/status/%3B",
    "/status/%zz",
    "/status/:@!$&'()*+,;=",
    "/%2525",
    "/status/%25%32%65",
    "/status/%2e;/x",
    "/status/x%2e;/x",
    "/status/.%2e;a/x",
    "/x\\..;\\b",
    "/status\\..;\\x",
    "/status/x/..;",
    "/a//../b",
    "/status//../b",
    "/status//..//x",
    "/x/y//../../b",
    "//../b",
    "/x//%2e%2e/b",
    "/b//..",
];

/// Envoy and the decision side by side. 400 is a refusal too: Envoy's own, of what has no one
/// reading.
#[test]
fn paths_have_one_reading() {
    for authorization in BOTH {
        paths_have_one_reading_by(authorization);
    }
}

fn paths_have_one_reading_by(authorization: Authorization) {
    let (mut gateway, objects, _) = start(authorization);
    gateway.apply(&conditions(objects));
    gateway.until("the new policy", || {
        gateway
            .get("productpage", "api.localhost", "/x")
            .is_denied()
    });
    let leaf = gateway.identity("productpage");
    let (mut allowed, mut refused, mut differ) = (0, 0, Vec::new());
    for path in PATHS {
        let decision = gateway.decide("productpage", "GET", "api.localhost", path, &[]);
        let answer = gateway
            .connect(Some(&leaf))
            .ask("GET", "api.localhost", path, "");
        let through = answer.as_ref().is_ok_and(|answer| answer.status == 200);
        if decision.allowed != through {
            differ.push(format!(
                "{path}: decided {}, seen {answer:?}",
                decision.allowed
            ));
        }
        if let Ok(answer) = answer
            && !through
        {
            assert!(
                answer.is_denied() || answer.status == 400,
                "{path}: {answer:?}"
            );
        }
        if through { allowed += 1 } else { refused += 1 }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert!(allowed > 20 && refused > 20, "{allowed} {refused}");
}

/// Account, method, path, headers, and whether it gets through.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    bool,
);

#[test]
fn conditions_hold_as_decided() {
    for authorization in BOTH {
        conditions_hold_as_decided_by(authorization);
    }
}

fn conditions_hold_as_decided_by(authorization: Authorization) {
    let (mut gateway, objects, _) = start(authorization);
    gateway.apply(&conditions(objects));
    gateway.until("the new policy", || {
        gateway
            .get("productpage", "api.localhost", "/x")
            .is_denied()
    });
    let rows: [Row; 21] = [
        ("productpage", "GET", "/b", &[], true),
        ("productpage", "HEAD", "/b", &[], true),
        ("productpage", "POST", "/b", &[], false),
        ("productpage", "DELETE", "/x", &[], true),
        ("reviews", "DELETE", "/x", &[], true),
        ("reviews", "GET", "/b", &[], false),
        ("reviews", "GET", "/b", &[("x-team", "red")], true),
        ("reviews", "GET", "/b", &[("x-team", "Red")], false),
        ("reviews", "POST", "/", &[("x-team", "blue-y")], true),
        ("reviews", "POST", "/", &[("x-team", "blue-x")], false),
        (
            "reviews",
            "POST",
            "/",
            &[("x-team", "red"), ("x-team", "red")],
            true,
        ),
        (
            "reviews",
            "POST",
            "/",
            &[("x-team", "green"), ("x-team", "red")],
            true,
        ),
        (
            "reviews",
            "POST",
            "/",
            &[("x-team", "red"), ("x-team", "blue-x")],
            false,
        ),
        (
            "reviews",
            "POST",
            "/",
            &[("x-team", "blue-x"), ("x-team", "red")],
            false,
        ),
        (
            "reviews",
            "POST",
            "/",
            &[("x-team", "r"), ("x-team", "ed")],
            false,
        ),
        ("reviews", "POST", "/", &[("x-team", "green,red")], false),
        (
            "reviews",
            "POST",
            "/",
            &[("x-team", "blue"), ("x-team", "x")],
            true,
        ),
        ("ratings", "GET", "/b", &[("x-team", "red")], false),
        ("ratings", "DELETE", "/b", &[], true),
        ("ratings", "OPTIONS", "/b", &[], false),
        ("productpage", "get", "/b", &[], false),
    ];
    for (account, method, path, headers, expected) in rows {
        let decision = gateway.decide(account, method, "api.localhost", path, headers);
        assert_eq!(
            decision.allowed, expected,
            "{account} {method} {path} {headers:?}"
        );
        let mut lines = String::new();
        for (name, value) in headers {
            lines.extend([name, ": ", value, "\r\n"]);
        }
        let answer = gateway.ask(account, method, "api.localhost", path, &lines);
        let through = answer.as_ref().is_ok_and(|answer| answer.status == 200);
        assert_eq!(
            through, expected,
            "{account} {method} {path} {headers:?}: {answer:?}"
        );
    }
    // The trial entry admits nobody, and the log says whom it would.
    assert_eq!(
        gateway
            .decide("ratings", "OPTIONS", "api.localhost", "/", &[])
            .dry_run,
        Some(true)
    );
    gateway.until("the access log has the trial", || {
        gateway.access_log().iter().any(|entry| {
            entry["method"] == "OPTIONS"
                && entry["response_code"] == 403
                && entry["dry_run"] == "allowed"
                && entry["dry_run_object"] == "AccessPolicy/istio-egress/egress-access-policy#4"
        })
    });
}
