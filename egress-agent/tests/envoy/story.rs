//! Who gets where.

use std::net::TcpStream;

use egress_agent::gateway::envoy::Authorization;

use crate::client::Answer;
use crate::http2::Http2;
use crate::mesh::Authority;
use crate::world::{BOTH, start};

#[test]
fn the_guide() {
    for authorization in BOTH {
        the_guide_by(authorization);
    }
}

fn the_guide_by(authorization: Authorization) {
    let (gateway, _, outside) = start(authorization);
    let answer = gateway.get("productpage", "api.localhost", "/get?x=1");
    assert_eq!(answer.status, 200, "{answer:?}\n{}", gateway.log());
    assert!(answer.head.contains("server: envoy"), "{answer:?}");
    assert!(
        answer.body.starts_with("GET /get?x=1 HTTP/1.1\r\n"),
        "{answer:?}"
    );
    assert!(
        answer
            .body
            .contains(&format!("host: api.localhost:{}\r\n", outside.secure))
    );
    for leak in [
        "x-forwarded-for",
        "x-forwarded-client-cert",
        "spiffe:",
        "x-envoy-",
    ] {
        assert!(
            !answer.body.contains(leak),
            "{leak} leaves the mesh: {answer:?}"
        );
    }
    let answer = gateway.get("reviews", "api.localhost", "/get");
    assert!(answer.is_denied(), "{answer:?}");
    gateway.until("the access log has both", || {
        gateway.access_log().len() >= 2
    });
    let log = gateway.access_log();
    assert_eq!(
        log[0]["client"],
        "spiffe://cluster.local/ns/bookinfo/sa/productpage"
    );
    assert_eq!(log[0]["authority"], "api.localhost");
    assert_eq!(
        log[0]["route_name"],
        format!("ExternalService/global/api:{}", outside.secure)
    );
    assert_eq!(
        log[1]["client"],
        "spiffe://cluster.local/ns/bookinfo/sa/reviews"
    );
    assert_eq!(log[1]["response_code"], 403);
    assert_eq!(
        log[1]["response_code_details"],
        match authorization {
            Authorization::Rbac => "rbac_access_denied_matched_policy[none]",
            Authorization::ExtAuthz => "ext_authz_denied",
        }
    );
    if authorization == Authorization::ExtAuthz {
        let object = "AccessPolicy/istio-egress/egress-access-policy#0";
        assert_eq!(
            (&log[0]["verdict"], &log[0]["object"]),
            (&"allowed".into(), &object.into())
        );
        assert_eq!(
            (&log[1]["verdict"], &log[1]["reason"]),
            (&"denied".into(), &"not-admitted".into())
        );
        assert_eq!(log[1]["service"], "ExternalService/global/api");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guide_over_http2() {
    for authorization in BOTH {
        let (gateway, ..) = tokio::task::block_in_place(|| start(authorization));
        for (account, host, status) in [
            ("productpage", "api.localhost", 200),
            ("productpage", "API.localhost:80", 200),
            ("reviews", "api.localhost", 403),
            ("reviews", "open.localhost:8080", 200),
            ("productpage", "nobody.example", 403),
        ] {
            let stream = TcpStream::connect(("127.0.0.1", gateway.port)).expect("Envoy listens");
            let leaf = gateway.identity(account);
            let client = Http2::connect(&gateway.mesh, &leaf, stream).await;
            // Requests of one connection, at once.
            let (one, two) = tokio::join!(client.get(host, "/get"), client.get(host, "/get?x"));
            for reply in [one, two] {
                assert_eq!(reply.status, status, "{account} {host}: {reply:?}");
                assert_eq!(reply.is_denied(), status == 403, "{reply:?}");
            }
        }
    }
}

#[test]
fn hosts() {
    for authorization in BOTH {
        hosts_by(authorization);
    }
}

fn hosts_by(authorization: Authorization) {
    let (gateway, _, outside) = start(authorization);
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
        assert_eq!(
            answer.status,
            expected,
            "{authority}: {answer:?}\n{}",
            gateway.log()
        );
        assert_eq!(
            answer.status == 403,
            answer.is_denied(),
            "{authority}: {answer:?}"
        );
        let decision = gateway.decide("productpage", "GET", &authority, "/", &[]);
        assert_eq!(
            decision.allowed,
            expected != 403,
            "{authority}: {decision:?}"
        );
    }
}

#[test]
fn clients_without_an_identity_of_the_mesh_get_no_session() {
    for authorization in BOTH {
        clients_without_an_identity_of_the_mesh_get_no_session_by(authorization);
    }
}

fn clients_without_an_identity_of_the_mesh_get_no_session_by(authorization: Authorization) {
    let (gateway, _, outside) = start(authorization);
    let stranger = Authority::new("stranger");
    let uri = "spiffe://cluster.local/ns/bookinfo/sa/productpage";
    let refused = [
        ("no certificate", None),
        ("another authority", Some(stranger.sign(&[], &[uri]))),
        (
            "the outside's authority",
            Some(outside.authority.sign(&[], &[uri])),
        ),
        (
            "no URI",
            Some(gateway.mesh.sign(&["productpage.bookinfo"], &[])),
        ),
        (
            "another trust domain",
            Some(
                gateway
                    .mesh
                    .sign(&[], &["spiffe://cluster.locals/ns/bookinfo/sa/productpage"]),
            ),
        ),
        (
            "another prefix",
            Some(gateway.mesh.sign(
                &[],
                &["x-spiffe://cluster.local/ns/bookinfo/sa/productpage"],
            )),
        ),
    ];
    for (what, leaf) in refused {
        let answer = gateway
            .connect(leaf.as_ref())
            .ask("GET", "open.localhost:8080", "/", "");
        assert!(answer.is_err(), "{what}: {answer:?}");
    }
    // Of the trust domain, but no service account: a session, and no admission.
    for uri in [
        "spiffe://cluster.local/ns/bookinfo/sa/productpage/x",
        "spiffe://cluster.local/x",
    ] {
        let leaf = gateway.mesh.sign(&[], &[uri]);
        for authority in ["open.localhost:8080", "api.localhost"] {
            let answer = gateway.connect(Some(&leaf)).ask("GET", authority, "/", "");
            assert!(
                answer.as_ref().is_ok_and(Answer::is_denied),
                "{uri}: {answer:?}"
            );
        }
    }
    // The same way in, with an identity.
    assert_eq!(
        gateway.get("ratings", "open.localhost:8080", "/").status,
        200
    );
}
