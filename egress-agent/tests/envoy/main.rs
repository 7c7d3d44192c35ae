//! The rendered configuration in a real Envoy, on loopback.

mod gateway;
mod mesh;
mod upstream;

use gateway::{Answer, Gateway, Objects, free_port};
use mesh::Authority;

/// The guide's objects: `api.localhost` for productpage alone; `wrong.localhost` whose server has
/// another name's certificate; `open.localhost` without policy; a wildcard; a named host that the
/// gateway does not serve.
fn guide(port: u16, secure: u16, wrong: u16, plain: u16) -> Objects {
    Objects::parse(&format!(
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
---
kind: ExternalService
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: api, namespace: global }}
spec:
  hosts: [api.localhost]
  ports:
  - number: {secure}
    name: https
    protocol: HTTPS
    clientsideTls: {{}}
    egressGatewayRoutes:
      portMatch: 80
      virtualGatewayRefs: [{{ name: egress-vg, namespace: istio-egress, cluster: here }}]
---
kind: ExternalService
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: wrong, namespace: global }}
spec:
  hosts: [wrong.localhost]
  ports:
  - number: {wrong}
    protocol: HTTPS
    clientsideTls: {{}}
    egressGatewayRoutes: {{}}
---
kind: ExternalService
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: open, namespace: global }}
spec:
  hosts: [open.localhost]
  ports:
  - number: {plain}
    egressGatewayRoutes: {{ portMatch: 8080 }}
---
kind: ExternalService
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: wild, namespace: global }}
spec:
  hosts: ["*.wild.localhost"]
  ports:
  - number: {secure}
    protocol: HTTPS
    clientsideTls: {{}}
    egressGatewayRoutes: {{}}
---
kind: ExternalService
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: elsewhere, namespace: global }}
spec:
  hosts: [elsewhere.wild.localhost]
  ports:
  - number: {secure}
    protocol: HTTPS
    clientsideTls: {{}}
    egressGatewayRoutes: {{ virtualGatewayRefs: [{{ name: other, namespace: istio-egress }}] }}
---
kind: AccessPolicy
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: egress-access-policy, namespace: istio-egress }}
spec:
  applyToDestinations:
  - kind: EXTERNAL_SERVICE
    port: {{ number: {secure} }}
    selector: {{ cluster: here, name: api, namespace: global }}
  config:
    authz:
      allowedClients:
      - serviceAccountSelector:
          cluster: here
          labels: {{ account: productpage }}
          namespace: bookinfo
"#
    ))
}

struct Outside {
    authority: Authority,
    secure: u16,
    wrong: u16,
    plain: u16,
}

fn outside() -> Outside {
    let authority = Authority::new("outside");
    let secure = authority.sign(&["api.localhost", "*.wild.localhost"], &[]);
    let wrong = authority.sign(&["api.localhost"], &[]);
    Outside {
        secure: upstream::serve_tls(&secure),
        wrong: upstream::serve_tls(&wrong),
        plain: upstream::serve_plain(),
        authority,
    }
}

fn start() -> (Gateway, Objects, Outside) {
    let outside = outside();
    let port = free_port();
    let objects = guide(port, outside.secure, outside.wrong, outside.plain);
    let gateway = Gateway::start(port, &objects, &outside.authority);
    (gateway, objects, outside)
}

#[test]
fn the_guide() {
    let (gateway, _, outside) = start();
    let answer = gateway.get("productpage", "api.localhost", "/get?x=1");
    assert_eq!(answer.status, 200, "{answer:?}\n{}", gateway.log());
    assert!(answer.head.contains("server: envoy"), "{answer:?}");
    assert!(answer.body.starts_with("GET /get?x=1 HTTP/1.1\r\n"), "{answer:?}");
    assert!(answer.body.contains(&format!("host: api.localhost:{}\r\n", outside.secure)));
    for leak in ["x-forwarded-for", "x-forwarded-client-cert", "spiffe:", "x-envoy-"] {
        assert!(!answer.body.contains(leak), "{leak} leaves the mesh: {answer:?}");
    }
    let answer = gateway.get("reviews", "api.localhost", "/get");
    assert!(answer.is_denied(), "{answer:?}");
    gateway.until("the access log has both", || gateway.access_log().len() >= 2);
    let log = gateway.access_log();
    assert_eq!(log[0]["client"], "spiffe://cluster.local/ns/bookinfo/sa/productpage");
    assert_eq!(log[0]["authority"], "api.localhost");
    assert_eq!(log[0]["route_name"], format!("ExternalService/global/api:{}", outside.secure));
    assert_eq!(log[1]["client"], "spiffe://cluster.local/ns/bookinfo/sa/reviews");
    assert_eq!(log[1]["response_code"], 403);
    assert_eq!(log[1]["response_code_details"], "rbac_access_denied_matched_policy[none]");
}

#[test]
fn hosts() {
    let (gateway, _, outside) = start();
    // (authority, 200, 403, or 503 from a server that can't prove itself)
    let rows = [
        ("api.localhost".to_owned(), 200),
        ("API.localhost:80".to_owned(), 200),
        ("api.localhost.".to_owned(), 200),
        ("api.localhost:443".to_owned(), 403),
        (format!("api.localhost:{}", outside.secure), 403),
        ("unknown.localhost".to_owned(), 403),
        ("localhost".to_owned(), 403),
        ("127.0.0.1".to_owned(), 403),
        ("[::1]".to_owned(), 403),
        ("example.com".to_owned(), 403),
        ("open.localhost".to_owned(), 403),
        ("open.localhost:8080".to_owned(), 200),
        ("wrong.localhost".to_owned(), 503),
        ("a.wild.localhost".to_owned(), 200),
        ("a.wild.localhost:80".to_owned(), 200),
        (format!("a.wild.localhost:{}", outside.plain), 403),
        ("elsewhere.wild.localhost".to_owned(), 403),
        ("wild.localhost".to_owned(), 403),
        // The certificate is for one label below only.
        ("a.b.wild.localhost".to_owned(), 503),
    ];
    for (authority, expected) in rows {
        let answer = gateway.get("productpage", &authority, "/");
        assert_eq!(answer.status, expected, "{authority}: {answer:?}\n{}", gateway.log());
        assert_eq!(answer.status == 403, answer.is_denied(), "{authority}: {answer:?}");
        let decision = gateway.decide("productpage", "GET", &authority, "/", &[]);
        assert_eq!(decision.allowed, expected != 403, "{authority}: {decision:?}");
    }
}

#[test]
fn clients_without_an_identity_of_the_mesh_get_no_session() {
    let (gateway, _, outside) = start();
    let stranger = Authority::new("stranger");
    let uri = "spiffe://cluster.local/ns/bookinfo/sa/productpage";
    let refused = [
        ("no certificate", None),
        ("another authority", Some(stranger.sign(&[], &[uri]))),
        ("the outside's authority", Some(outside.authority.sign(&[], &[uri]))),
        ("no URI", Some(gateway.mesh.sign(&["productpage.bookinfo"], &[]))),
        (
            "another trust domain",
            Some(gateway.mesh.sign(&[], &["spiffe://cluster.locals/ns/bookinfo/sa/productpage"])),
        ),
        (
            "another prefix",
            Some(gateway.mesh.sign(&[], &["x-spiffe://cluster.local/ns/bookinfo/sa/productpage"])),
        ),
    ];
    for (what, leaf) in refused {
        let answer = gateway.connect(leaf.as_ref()).ask("GET", "open.localhost:8080", "/", "");
        assert!(answer.is_err(), "{what}: {answer:?}");
    }
    // Of the trust domain, but no service account: a session, and no admission.
    for uri in ["spiffe://cluster.local/ns/bookinfo/sa/productpage/x", "spiffe://cluster.local/x"] {
        let leaf = gateway.mesh.sign(&[], &[uri]);
        for authority in ["open.localhost:8080", "api.localhost"] {
            let answer = gateway.connect(Some(&leaf)).ask("GET", authority, "/", "");
            assert!(answer.as_ref().is_ok_and(Answer::is_denied), "{uri}: {answer:?}");
        }
    }
    // The same way in, with an identity.
    assert_eq!(gateway.get("ratings", "open.localhost:8080", "/").status, 200);
}

#[test]
fn a_new_policy_holds_for_the_next_request_of_a_standing_connection() {
    let (mut gateway, mut objects, _) = start();
    let leaf = gateway.identity("reviews");
    let mut standing = gateway.connect(Some(&leaf));
    assert!(standing.ask("GET", "api.localhost", "/", "").expect("an answer").is_denied());
    let closed = objects.clone();
    let entry = objects.policies[0].spec.config.authz.as_mut().expect("it has one");
    entry.allowed_clients[0].service_account_selector.labels.clear();
    gateway.apply(&objects);
    gateway.until("reviews gets through", || {
        gateway.get("reviews", "api.localhost", "/").status == 200
    });
    assert_eq!(standing.ask("GET", "api.localhost", "/", "").expect("an answer").status, 200);
    gateway.apply(&closed);
    gateway.until("reviews is cut", || gateway.get("reviews", "api.localhost", "/").is_denied());
    assert!(standing.ask("GET", "api.localhost", "/", "").expect("an answer").is_denied());
}

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

/// Envoy and the decision side by side. 400 is a refusal too: Envoy's own, of what has no one
/// reading.
#[test]
fn paths_have_one_reading() {
    let (mut gateway, objects, _) = start();
    gateway.apply(&conditions(objects));
    gateway.until("the new policy", || gateway.get("productpage", "api.localhost", "/x").is_denied());
    let leaf = gateway.identity("productpage");
    let (mut allowed, mut refused, mut differ) = (0, 0, Vec::new());
    for path in [
        "/b", "/b?x", "/b/", "/B", "/a/../b", "/a/%2e%2e/b", "/a/%2E./b", "/a/..%2fb", "/a%2f..%2fb",
        "//b", "///b", "/./b", "/b/.", "/b/..", "/x/../../b", "/status/../b", "/status/../x",
        "/status/%2e%2e/x", "/status/..%2fx", "/status//x", "/status/", "/status", "/x/..//b",
        "/%62", "/%61dmin", "/admin%00", "/admin%", "/admin%zz", "/admi%6E", "/a%20b", "/a b", "/a+b",
        "/x.json", "/x.json?y", "/x?y.json", "/x#y.json", "/x%23.json", "/x;.json", "/x.json;",
        "/status\\..\\x", "/status\\x", "/status/%5c..%5cx", "/status/..;/x", "/status/%2", "/status/{x}",
        "/status/|", "/status/\"", "/status/<x>", "/status/^", "/status/`", "/status/[x]",
        "/caf%C3%A9/x", "/caf%c3%a9/x", "/status/é", "/status/%C3%A9", "/status/%7E", "/status/~",
        "/status/%41%5f", "/%73tatus/x", "/status%2Fx", "/status/%252e%252e/x", "/status/....//x",
        "/.../b", "/b#", "/b/./", "/b//", "*", "b", "http:b", "/%2e%2e/b", "/status/x/..", "/status/..",
        "/b?x=%2f", "/b?x=%00", "/b?x#y", "/status/.;/x", "/status/x/..;/b", "/status/..;a/x", "/status/x;a",
        "/status/...;/x", "/b;", "/..;/b", "/status/%2e%2e;/x", "/status/..%3b/x", "/status/%3B", "/status/%zz",
        "/status/:@!$&'()*+,;=", "/%2525", "/status/%25%32%65",
        "/status/%2e;/x", "/status/x%2e;/x", "/status/.%2e;a/x", "/x\\..;\\b", "/status\\..;\\x", "/status/x/..;",
    ] {
        let decision = gateway.decide("productpage", "GET", "api.localhost", path, &[]);
        let answer = gateway.connect(Some(&leaf)).ask("GET", "api.localhost", path, "");
        let through = answer.as_ref().is_ok_and(|answer| answer.status == 200);
        if decision.allowed != through {
            differ.push(format!("{path}: decided {}, seen {answer:?}", decision.allowed));
        }
        if let Ok(answer) = answer
            && !through
        {
            assert!(answer.is_denied() || answer.status == 400, "{path}: {answer:?}");
        }
        if through { allowed += 1 } else { refused += 1 }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert!(allowed > 20 && refused > 20, "{allowed} {refused}");
}

#[test]
fn conditions_hold_as_decided() {
    let (mut gateway, objects, _) = start();
    gateway.apply(&conditions(objects));
    gateway.until("the new policy", || gateway.get("productpage", "api.localhost", "/x").is_denied());
    let rows: [(&str, &str, &str, &[(&str, &str)], bool); 21] = [
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
        ("reviews", "POST", "/", &[("x-team", "red"), ("x-team", "red")], true),
        ("reviews", "POST", "/", &[("x-team", "green"), ("x-team", "red")], true),
        ("reviews", "POST", "/", &[("x-team", "red"), ("x-team", "blue-x")], false),
        ("reviews", "POST", "/", &[("x-team", "blue-x"), ("x-team", "red")], false),
        ("reviews", "POST", "/", &[("x-team", "r"), ("x-team", "ed")], false),
        ("reviews", "POST", "/", &[("x-team", "green,red")], false),
        ("reviews", "POST", "/", &[("x-team", "blue"), ("x-team", "x")], true),
        ("ratings", "GET", "/b", &[("x-team", "red")], false),
        ("ratings", "DELETE", "/b", &[], true),
        ("ratings", "OPTIONS", "/b", &[], false),
        ("productpage", "get", "/b", &[], false),
    ];
    for (account, method, path, headers, expected) in rows {
        let decision = gateway.decide(account, method, "api.localhost", path, headers);
        assert_eq!(decision.allowed, expected, "{account} {method} {path} {headers:?}");
        let lines: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let answer = gateway.ask(account, method, "api.localhost", path, &lines);
        let through = answer.as_ref().is_ok_and(|answer| answer.status == 200);
        assert_eq!(through, expected, "{account} {method} {path} {headers:?}: {answer:?}");
    }
    // The trial entry admits nobody, and the log says whom it would.
    assert_eq!(gateway.decide("ratings", "OPTIONS", "api.localhost", "/", &[]).dry_run, Some(true));
    gateway.until("the access log has the trial", || {
        gateway.access_log().iter().any(|entry| {
            entry["method"] == "OPTIONS"
                && entry["response_code"] == 403
                && entry["dry_run"] == "allowed"
                && entry["dry_run_policy"] == "AccessPolicy/istio-egress/egress-access-policy#4"
        })
    });
}
