//! Verdicts without a network. What Envoy really sends is tested with the real one.

mod service;

use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use proptest::prelude::*;
use prost::Message as _;

use super::decide::{Binding, Verdict, decide};
use super::fixture::{
    GATEWAY, NOBODY, PORT, PRODUCTPAGE, REVIEWS, caller, connection, http, mk_served, peer, raw,
    request,
};
use super::{attributes, fixture};

fn ask_bound(question: &CheckRequest, binding: Binding) -> Verdict {
    let asked = attributes::read(question).unwrap();
    decide(&mk_served(), &caller("egress"), &asked, binding)
}

fn ask(question: &CheckRequest) -> Verdict {
    ask_bound(question, Binding::Require)
}

/// Whether it is allowed, and why.
fn outcome(question: &CheckRequest) -> (bool, &'static str) {
    let verdict = ask(question);
    (verdict.allowed(), verdict.cause.as_str())
}

#[test]
fn the_policy_decides_and_is_named() {
    let verdict = ask(&request("productpage", PRODUCTPAGE, "api.example", "/b?x"));
    assert!(verdict.allowed(), "{verdict:?}");
    assert_eq!(
        verdict.object().as_deref(),
        Some("AccessPolicy/istio-egress/api#0")
    );
    assert_eq!(
        verdict.service().as_deref(),
        Some("ExternalService/global/api")
    );
    assert_eq!(
        verdict.gateway.unwrap().to_string(),
        "istio-egress/egress-vg"
    );
    assert_eq!(
        verdict.owner.as_deref(),
        Some("bookinfo/productpage-1 (productpage)")
    );
    let verdict = ask(&request("reviews", REVIEWS, "api.example", "/b"));
    assert_eq!(
        (verdict.allowed(), verdict.cause.as_str()),
        (false, "not-admitted")
    );
    assert_eq!(verdict.decision.unwrap().dry_run, Some(true));
    for (host, path, expected) in [
        ("API.Example.:80", "/b", (true, "admitted")),
        ("open.example", "/anything", (true, "no-policy")),
        ("other.example", "/b", (false, "unknown-host")),
        ("api.example:81", "/b", (false, "unknown-port")),
        ("api.example", "/a%2f..%2fb", (false, "bad-path")),
        ("api.example", "", (false, "bad-path")),
        ("api.example", "/a/../b", (true, "admitted")),
        ("api.example", "/a/..//b", (true, "admitted")),
        ("api.example", "/b//..", (false, "bad-path")),
        ("open.example", "/a//../b", (false, "bad-path")),
        ("10.0.0.1", "/b", (false, "bad-host")),
        ("api.example", "/B", (false, "not-admitted")),
    ] {
        let question = request("productpage", PRODUCTPAGE, host, path);
        assert_eq!(outcome(&question), expected, "{host} {path}");
    }
}

#[test]
fn a_certificate_counts_only_where_its_pod_is() {
    // Account, address, and the outcome with require, prefer, off.
    let rows = [
        ("productpage", PRODUCTPAGE, ["admitted"; 3]),
        ("productpage", "::ffff:10.0.1.1", ["admitted"; 3]),
        (
            "productpage",
            REVIEWS,
            ["stolen-identity", "stolen-identity", "admitted"],
        ),
        (
            "productpage",
            GATEWAY,
            ["stolen-identity", "stolen-identity", "admitted"],
        ),
        (
            "productpage",
            NOBODY,
            ["unknown-address", "admitted", "admitted"],
        ),
    ];
    for (account, ip, expected) in rows {
        let question = request(account, ip, "api.example", "/b");
        let modes = [Binding::Require, Binding::Prefer, Binding::Off];
        for (binding, expected) in modes.into_iter().zip(expected) {
            let verdict = ask_bound(&question, binding);
            assert_eq!(verdict.cause.as_str(), expected, "{ip} {binding:?}");
            assert_eq!(verdict.allowed(), expected == "admitted");
            // Also a refused one is told to the metrics of its gateway.
            assert!(verdict.gateway.is_some());
        }
    }
}

#[test]
fn a_gateway_that_would_pass_it_on_elsewhere_is_refused() {
    let told = |mut question: CheckRequest, upstream: &str| {
        let extensions = &mut fixture::attributes(&mut question).context_extensions;
        extensions.insert("sallyport-upstream".to_owned(), upstream.to_owned());
        outcome(&question)
    };
    let asked = |account: &str, ip: &str| request(account, ip, "api.example", "/b");
    let own = "outbound|443||api.example|alpn|tls||";
    assert_eq!(
        told(asked("productpage", PRODUCTPAGE), own),
        (true, "admitted")
    );
    let older = "outbound|8443||api.example|alpn|tls||";
    assert_eq!(
        told(asked("productpage", PRODUCTPAGE), older),
        (false, "stale-route")
    );
    assert_eq!(
        told(asked("reviews", REVIEWS), older),
        (false, "not-admitted")
    );
    let connect = || connection("productpage", PRODUCTPAGE, "tls.example");
    let own = "outbound|443||*|passthrough";
    assert_eq!(told(connect(), own), (true, "admitted"));
    assert_eq!(told(connect(), ""), (false, "stale-route"));
    // Of two gateways on the pod the one that has this way for it.
    let second = request("productpage", PRODUCTPAGE, "api.test", "/b");
    let own = "outbound|443||api.test|alpn|tls||";
    assert_eq!(told(second, own), (true, "admitted"));
}

#[test]
fn a_name_is_read_strictly() {
    for (principal, expected) in [
        ("", "no-principal"),
        ("productpage", "bad-principal"),
        ("CN=productpage", "bad-principal"),
        (
            "spiffe://evil/ns/x/sa/y#spiffe://cluster.local/ns/bookinfo/sa/productpage",
            "bad-principal",
        ),
        (
            "spiffe://cluster.local/ns/bookinfo/sa/productpage/",
            "bad-principal",
        ),
        (
            "spiffe://cluster.local/ns/bookinfo/sa/product%70age",
            "bad-principal",
        ),
        (
            "spiffe://cluster.local,spiffe://cluster.local/ns/bookinfo/sa/productpage",
            "bad-principal",
        ),
        (
            "spiffe://other.domain/ns/bookinfo/sa/productpage",
            "stolen-identity",
        ),
    ] {
        let mut question = request("productpage", PRODUCTPAGE, "api.example", "/b");
        fixture::attributes(&mut question).source = Some(peer(PRODUCTPAGE, 1, principal));
        assert_eq!(outcome(&question), (false, expected), "{principal}");
    }
    // Without binding the policy still knows its trust domain.
    let mut question = request("productpage", PRODUCTPAGE, "api.example", "/b");
    let foreign = "spiffe://other.domain/ns/bookinfo/sa/productpage";
    fixture::attributes(&mut question).source = Some(peer(PRODUCTPAGE, 1, foreign));
    let verdict = ask_bound(&question, Binding::Off);
    assert_eq!(
        (verdict.allowed(), verdict.cause.as_str()),
        (false, "trust-domain")
    );
}

#[test]
fn what_a_client_can_write_is_no_identity() {
    let mut question = request("reviews", REVIEWS, "api.example", "/b");
    let me = fixture::attributes(&mut question).source.as_mut().unwrap();
    me.service = "productpage".to_owned();
    me.labels = [("app".to_owned(), "productpage".to_owned())].into();
    let claims = [
        ("x-forwarded-for", PRODUCTPAGE),
        ("x-envoy-downstream-service-cluster", "productpage"),
        (
            "x-forwarded-client-cert",
            "URI=spiffe://cluster.local/ns/bookinfo/sa/productpage",
        ),
        (":authority", "open.example"),
        (":path", "/"),
        ("host", "open.example"),
    ];
    for (name, value) in claims {
        let headers = &mut http(&mut question).headers;
        headers.insert(name.to_owned(), value.to_owned());
    }
    assert_eq!(outcome(&question), (false, "not-admitted"));
}

#[test]
fn the_destination_tells_which_gateway() {
    let mut question = request("productpage", PRODUCTPAGE, "api.example", "/b");
    let mut at = |ip: &str, port| {
        fixture::attributes(&mut question).destination = Some(peer(ip, port, ""));
        outcome(&question)
    };
    assert_eq!(at(GATEWAY, PORT), (true, "admitted"));
    assert_eq!(at(PRODUCTPAGE, PORT), (false, "unknown-gateway"));
    assert_eq!(at(NOBODY, PORT), (false, "unknown-gateway"));
    assert_eq!(at(GATEWAY, 1), (false, "no-listener"));
    // Exposed on the other port, by the other gateway.
    assert_eq!(at(GATEWAY, 15444), (true, "admitted"));

    // Two gateways listen on the port: the one that serves the host decides.
    let verdict = ask(&request("productpage", PRODUCTPAGE, "api.test", "/b"));
    assert!(verdict.allowed());
    assert_eq!(
        verdict.gateway.unwrap().to_string(),
        "istio-egress/z-second"
    );

    // An identity is no way to speak for a pod that is another's.
    let question = request("productpage", PRODUCTPAGE, "api.example", "/b");
    let asked = attributes::read(&question).unwrap();
    let verdict = decide(&mk_served(), &caller("other"), &asked, Binding::Off);
    assert_eq!(
        (verdict.allowed(), verdict.cause.as_str()),
        (false, "unknown-gateway")
    );
}

#[test]
fn connections_go_by_server_name() {
    for (account, ip, sni, expected) in [
        (
            "productpage",
            PRODUCTPAGE,
            "tls.example",
            (true, "admitted"),
        ),
        (
            "productpage",
            PRODUCTPAGE,
            "TLS.example",
            (true, "admitted"),
        ),
        ("productpage", PRODUCTPAGE, "", (false, "no-server-name")),
        (
            "productpage",
            PRODUCTPAGE,
            "a.tls.example",
            (false, "unknown-host"),
        ),
        // Served for requests: there are none in a connection.
        (
            "productpage",
            PRODUCTPAGE,
            "api.example",
            (false, "unknown-host"),
        ),
        // Its entry wants a method.
        ("reviews", REVIEWS, "tls.example", (false, "not-admitted")),
        (
            "productpage",
            REVIEWS,
            "tls.example",
            (false, "stolen-identity"),
        ),
    ] {
        let question = connection(account, ip, sni);
        assert_eq!(outcome(&question), expected, "{account} {ip} {sni}");
    }
}

#[test]
fn header_lines() {
    let with_raw = |lines: &[(&str, &[u8])]| {
        let mut question = request("productpage", PRODUCTPAGE, "api.example", "/x");
        http(&mut question).header_map = Some(raw(lines));
        ask(&question).allowed()
    };
    assert!(with_raw(&[("x-team", b"red")]));
    assert!(with_raw(&[("x-team", b"red"), ("x-other", b"green")]));
    assert!(!with_raw(&[("x-team", b"red"), ("x-team", b"green")]));
    assert!(!with_raw(&[(":x-team", b"red")]));
    assert!(!with_raw(&[]));
    // Each line is told apart, so this is one value.
    assert!(with_raw(&[("x-team", b"red,green")]));
    // Bytes that are no text are no reason to refuse what does not ask for them.
    assert!(with_raw(&[("x-team", b"red"), ("user-agent", b"\xff\xfe")]));
    assert!(with_raw(&[("x-team", b"red\xff")]));
    assert!(!with_raw(&[("x-team", b"\xffred")]));

    let joined = |value: &str| {
        let mut question = request("productpage", PRODUCTPAGE, "api.example", "/x");
        http(&mut question)
            .headers
            .insert("x-team".to_owned(), value.to_owned());
        ask(&question).allowed()
    };
    assert!(joined("red"));
    assert!(joined("red,blue"));
    assert!(!joined("green"));
    // One of the lines is forbidden: a comma does not hide it.
    assert!(!joined("red,green"));
    assert!(!joined("red, green ,blue"));
}

#[test]
fn what_is_incomplete_is_no_question() {
    let whole = request("productpage", PRODUCTPAGE, "api.example", "/b");
    assert!(attributes::read(&whole).is_ok());
    let broken = |change: &dyn Fn(&mut CheckRequest)| {
        let mut question = whole.clone();
        change(&mut question);
        attributes::read(&question).is_err()
    };
    assert!(broken(&|it| it.attributes = None));
    assert!(broken(&|it| fixture::attributes(it).source = None));
    assert!(broken(&|it| fixture::attributes(it).destination = None));
    assert!(broken(&|it| http(it).host.clear()));
    assert!(broken(&|it| http(it).method.clear()));
    for (ip, port) in [("", 1), ("localhost", 1), ("10.0.1.1/32", 1), ("10.1", 1)] {
        assert!(
            broken(&|it| fixture::attributes(it).source = Some(peer(ip, port, ""))),
            "{ip}"
        );
    }
    assert!(broken(&|it| {
        fixture::attributes(it).source.as_mut().unwrap().address = None;
    }));
}

/// Bytes of a good question with some of them changed, cut or put in.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let good = request("reviews", PRODUCTPAGE, "api.example", "/b").encode_to_vec();
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..3u8);
    prop::collection::vec(change, 0..8).prop_map(move |changes| {
        let mut bytes = good.clone();
        for (at, byte, how) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(at),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever arrives: no panic, and nothing is let through to a host with a policy. The good
    /// question is that of a stolen identity, so damage can't turn it into one that is admitted.
    #[test]
    fn damage_is_never_admitted(bytes in prop_oneof![
        damaged(),
        prop::collection::vec(any::<u8>(), 0..256),
    ]) {
        if let Ok(question) = CheckRequest::decode(bytes.as_slice())
            && let Ok(asked) = attributes::read(&question)
        {
            let verdict = decide(&mk_served(), &caller("egress"), &asked, Binding::Require);
            prop_assert!(!verdict.allowed(), "{:?}", verdict);
        }
    }

    /// A gateway that has brought the path into its one form before it asks gets the same answer.
    #[test]
    fn a_normalized_path_stays_as_it_is(path in "/[a-b./%;2eEfF\\\\?#]{0,24}") {
        if let Some(once) = crate::gateway::normalize_path(&path) {
            prop_assert_eq!(crate::gateway::normalize_path(&once), Some(once));
        }
    }
}
