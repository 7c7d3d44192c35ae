//! The objects' fields word by word: each alone, each beside the others, and what it does not mean.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::access::AccessReason::{
    Admitted, AnyHost, BadHost, NoPolicy, NotAdmitted, TrustDomain, UnknownHost, UnknownPort,
};
use super::super::access::{AccessReason, Decision, Request, decide_access};
use super::super::policy::{Effect, HostRoutes};
use super::super::{ObjectName, OutboundPolicy, SpiffeId};
use super::{PORT, World, mk_authz, mk_client, mk_https, mk_id, mk_policy, mk_service, mk_to};

fn open() -> World {
    World::exposing(&["*"]).service("api", &["api.org"])
}

fn with(authz: Value) -> World {
    open().policy(mk_authz("a", "api", authz))
}

/// A request that differs from `GET http://api.org/` of productpage at 10.1.2.3 in some things.
struct Asked<'a> {
    client: SpiffeId,
    ip: &'a str,
    method: &'a str,
    authority: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

impl Default for Asked<'_> {
    fn default() -> Self {
        Self {
            client: mk_id("productpage"),
            ip: "10.1.2.3",
            method: "GET",
            authority: "api.org",
            path: "/",
            headers: &[],
        }
    }
}

impl Asked<'_> {
    fn decide(&self, world: &World) -> Decision {
        let request = Request {
            gateway: &ObjectName::new("istio-egress", "egress-vg"),
            listener: PORT,
            client: &self.client,
            client_ip: self.ip.parse::<IpAddr>().unwrap(),
            authority: self.authority,
            method: self.method,
            path: self.path,
            normalized: false,
            headers: self.headers,
        };
        decide_access(&world.compile().0, &request)
    }

    fn reason(&self, world: &World) -> AccessReason {
        self.decide(world).reason
    }
}

fn to_host(world: &World, authority: &str) -> AccessReason {
    let asked = Asked {
        authority,
        ..Asked::default()
    };
    asked.reason(world)
}

/// Two ports of one service: 443 `https`, asked for by 80, and 8443 `admin`, by 8080.
fn two_ports() -> World {
    let mut admin = mk_https();
    admin["number"] = json!(8443);
    admin["name"] = json!("admin");
    admin["egressGatewayRoutes"]["portMatch"] = json!(8080);
    World::exposing(&["*"]).service_spec(
        "api",
        json!({ "hosts": ["api.org"], "ports": [mk_https(), admin] }),
    )
}

#[test]
fn a_destinations_port_is_the_services_by_number_and_by_name() {
    for (port, https, admin) in [
        (json!({}), Admitted, Admitted),
        (json!({ "number": 443 }), Admitted, NotAdmitted),
        (json!({ "name": "admin" }), NotAdmitted, Admitted),
        (
            json!({ "number": 8443, "name": "admin" }),
            NotAdmitted,
            Admitted,
        ),
        (
            json!({ "number": 443, "name": "admin" }),
            NotAdmitted,
            NotAdmitted,
        ),
        (json!({ "name": "Admin" }), NotAdmitted, NotAdmitted),
        // What clients ask for is no port of the service.
        (json!({ "number": 80 }), NotAdmitted, NotAdmitted),
    ] {
        let mut to = mk_to("api");
        to["port"] = port.clone();
        let everybody = json!({ "authz": { "allowedClients": [{}] } });
        let policy = json!({ "applyToDestinations": [to], "config": everybody });
        let world = two_ports().policy(mk_policy("a", policy));
        assert_eq!(to_host(&world, "api.org"), https, "{port}");
        assert_eq!(to_host(&world, "api.org:8080"), admin, "{port}");
    }
}

#[test]
fn clients_ask_by_port_match() {
    let mut port = mk_https();
    for (matched, expected) in [(Value::Null, 80), (json!(80), 80), (json!(8080), 8080)] {
        port["egressGatewayRoutes"] = json!({ "portMatch": matched });
        let spec = json!({ "hosts": ["api.org"], "ports": [port] });
        let world = World::exposing(&["*"]).service_spec("api", spec);
        for asked in [80, 443, 8080] {
            let reason = to_host(&world, &format!("api.org:{asked}"));
            let hit = if asked == expected {
                NoPolicy
            } else {
                UnknownPort
            };
            assert_eq!(reason, hit, "{asked} for {matched}");
        }
        let without = if expected == 80 {
            NoPolicy
        } else {
            UnknownPort
        };
        assert_eq!(to_host(&world, "api.org"), without, "{matched}");
    }
}

#[test]
fn a_listeners_port_is_its_number_whatever_its_name() {
    let mut world = with(json!({ "allowedClients": [{}] }));
    world.gateways[0].spec.listeners[0].port.name = Some("anything".to_owned());
    assert_eq!(world.compile().1, []);
    assert_eq!(to_host(&world, "api.org"), Admitted);
    // The pods' own ports are what counts where a Service leads to them.
    let targets = BTreeMap::from([(PORT, [8443, 9443].into())]);
    let mut objects = world.objects();
    objects.gateways[0].target_ports = targets;
    let (policy, _) = super::super::compile(&objects);
    let gateway = policy.gateways.values().next().unwrap();
    let ports: Vec<u16> = gateway.listeners.keys().copied().collect();
    assert_eq!(ports, [8443, 9443]);
}

#[test]
fn a_host_is_told_in_every_form_that_means_it_and_in_no_other() {
    let idna = World::exposing(&["*.example"]).service("api", &["Bücher.example."]);
    for (world, authority, expected) in [
        (&open(), "api.org", NoPolicy),
        (&open(), "API.Org", NoPolicy),
        (&open(), "api.org.", NoPolicy),
        (&open(), "api.org:80", NoPolicy),
        (&open(), "api.org.:80", NoPolicy),
        (&open(), "api.org..", BadHost),
        (&open(), "api.org:", BadHost),
        (&open(), "api.org:080", BadHost),
        (&open(), "user@api.org", BadHost),
        (&open(), "api.org:443", UnknownPort),
        (&open(), "xapi.org", UnknownHost),
        (&open(), "v1.api.org", UnknownHost),
        (&open(), "org", UnknownHost),
        (&idna, "xn--bcher-kva.example", NoPolicy),
        (&idna, "XN--BCHER-KVA.example.:80", NoPolicy),
        (&idna, "bücher.example", BadHost),
        (&idna, "bucher.example", UnknownHost),
    ] {
        assert_eq!(to_host(world, authority), expected, "{authority}");
    }
}

#[test]
fn allow_any_opens_what_nobody_names_and_nothing_else() {
    let mut elsewhere = mk_https();
    elsewhere["egressGatewayRoutes"]["virtualGatewayRefs"] = json!([{ "name": "other" }]);
    let mut world = World::exposing(&["*.org"])
        .service("api", &["api.org"])
        .service_spec(
            "far",
            json!({ "hosts": ["*.far.org"], "ports": [elsewhere] }),
        )
        .policy(mk_authz(
            "a",
            "api",
            json!({ "allowedClients": mk_client("reviews") }),
        ));
    assert_eq!(to_host(&world, "new.org"), UnknownHost);
    world.outbound = OutboundPolicy::AllowAny;
    for (authority, expected) in [
        ("new.org", AnyHost),
        ("v1.api.org", AnyHost),
        ("new.org:443", UnknownPort),
        ("new.example", UnknownHost),
        ("api.org", NotAdmitted),
        ("api.org:443", UnknownPort),
        ("x.far.org", UnknownHost),
        ("10.0.0.1", BadHost),
    ] {
        assert_eq!(to_host(&world, authority), expected, "{authority}");
    }
    let stranger = Asked {
        client: SpiffeId::new("other.local", "bookinfo", "reviews").unwrap(),
        authority: "new.org",
        ..Asked::default()
    };
    assert_eq!(stranger.reason(&world), TrustDomain);
    // By TLS alone: a name that leads into the cluster has no certificate of its own.
    let (policy, _) = world.compile();
    let gateway = policy.gateways.values().next().unwrap();
    let routes: &HostRoutes = gateway.listeners[&PORT].routes_of("new.org").unwrap();
    let upstream = &routes[&80].upstream;
    assert_eq!((upstream.port, upstream.tls.is_some()), (443, true));
}

#[test]
fn services_are_selected_by_name_namespace_and_labels() {
    let mut world = World::exposing(&["*"]);
    for (namespace, name, tier) in [
        ("global", "api", "one"),
        ("global", "web", "two"),
        ("other", "api", "two"),
    ] {
        let host = format!("{name}.{namespace}.org");
        let mut service = mk_service(name, json!({ "hosts": [host], "ports": [mk_https()] }));
        service.metadata.namespace = Some(namespace.to_owned());
        service.metadata.labels = Some(
            [
                ("tier".to_owned(), tier.to_owned()),
                ("a".to_owned(), "b".to_owned()),
            ]
            .into(),
        );
        world.services.push(service);
    }
    let hosts = ["api.global.org", "web.global.org", "api.other.org"];
    for (selector, closed) in [
        (json!({ "name": "api" }), [true, false, true]),
        (json!({ "namespace": "global" }), [true, true, false]),
        (
            json!({ "name": "api", "namespace": "other" }),
            [false, false, true],
        ),
        (json!({ "labels": { "tier": "two" } }), [false, true, true]),
        (
            json!({ "labels": { "tier": "two", "a": "b" } }),
            [false, true, true],
        ),
        (
            json!({ "labels": { "tier": "two", "a": "c" } }),
            [false, false, false],
        ),
        (
            json!({ "labels": { "tier": "two" }, "name": "web" }),
            [false, true, false],
        ),
        (
            json!({ "labels": { "tier": "one" }, "namespace": "other" }),
            [false, false, false],
        ),
        (
            json!({ "name": "api", "cluster": "here" }),
            [true, false, true],
        ),
        (
            json!({ "name": "api", "cluster": "there" }),
            [false, false, false],
        ),
    ] {
        let mut world = world.clone();
        let to = json!({ "kind": "EXTERNAL_SERVICE", "selector": selector });
        let nobody = json!({ "authz": {} });
        world.policies = vec![mk_policy(
            "a",
            json!({ "applyToDestinations": [to], "config": nobody }),
        )];
        let found = hosts.map(|host| to_host(&world, host) == NotAdmitted);
        assert_eq!(found, closed, "{selector}");
    }
}

#[test]
fn accounts_are_selected_by_name_namespace_and_labels() {
    let account = |namespace: &str, name: &str, team: &str| {
        let labels = BTreeMap::from([("team".to_owned(), team.to_owned())]);
        (namespace.to_owned(), name.to_owned(), labels)
    };
    let accounts = [
        ("bookinfo", "web", "red"),
        ("bookinfo", "api", "blue"),
        ("shop", "web", "blue"),
    ];
    for (selectors, admitted) in [
        (json!([{ "name": "web" }]), [true, false, true]),
        (json!([{ "namespace": "bookinfo" }]), [true, true, false]),
        (
            json!([{ "name": "web", "namespace": "shop" }]),
            [false, false, true],
        ),
        (
            json!([{ "labels": { "team": "blue" } }]),
            [false, true, true],
        ),
        (
            json!([{ "labels": { "team": "blue" }, "name": "web" }]),
            [false, false, true],
        ),
        (
            json!([{ "labels": { "team": "blue" }, "namespace": "bookinfo" }]),
            [false, true, false],
        ),
        (
            json!([{ "name": "web", "cluster": "there" }]),
            [false, false, false],
        ),
        (json!([{ "cluster": "here" }]), [true, true, true]),
        // Alternatives; an empty one is every client, whatever stands beside it.
        (
            json!([{ "name": "api" }, { "namespace": "shop" }]),
            [false, true, true],
        ),
        (json!([{ "name": "api" }, {}]), [true, true, true]),
        (json!([{ "name": "ghost" }]), [false, false, false]),
    ] {
        let clients: Vec<Value> = selectors
            .as_array()
            .unwrap()
            .iter()
            .map(|one| json!({ "serviceAccountSelector": one }))
            .collect();
        let mut world = with(json!({ "allowedClients": clients }));
        world.accounts = accounts
            .iter()
            .map(|(namespace, name, team)| account(namespace, name, team))
            .collect();
        let found = accounts.map(|(namespace, name, _)| {
            let client = SpiffeId::new("cluster.local", namespace, name).unwrap();
            Asked {
                client,
                ..Asked::default()
            }
            .decide(&world)
            .allowed
        });
        assert_eq!(found, admitted, "{selectors}");
    }
    let stranger = SpiffeId::new("other.local", "bookinfo", "web").unwrap();
    let everybody = with(json!({ "allowedClients": [{}] }));
    let asked = Asked {
        client: stranger,
        ..Asked::default()
    };
    assert_eq!(asked.reason(&everybody), TrustDomain);
}

#[test]
fn without_a_name_for_this_cluster_every_name_is_its_own() {
    let mut to = mk_to("api");
    to["selector"]["cluster"] = json!("anything");
    let clients = json!([{ "serviceAccountSelector": { "name": "productpage", "cluster": "x" } }]);
    let spec = json!({ "applyToDestinations": [to],
                       "config": { "authz": { "allowedClients": clients } } });
    let mut port = mk_https();
    port["egressGatewayRoutes"]["virtualGatewayRefs"] =
        json!([{ "name": "egress-vg", "namespace": "istio-egress", "cluster": "y" }]);
    let world = World::exposing(&["*"])
        .service_spec("api", json!({ "hosts": ["api.org"], "ports": [port] }))
        .policy(mk_policy("a", spec));
    assert_eq!(
        to_host(&world, "api.org"),
        UnknownHost,
        "it is another cluster's"
    );
    let mut objects = world.objects();
    objects.cluster = None;
    let (policy, problems) = super::super::compile(&objects);
    assert_eq!(problems, []);
    for (account, expected) in [("productpage", Admitted), ("reviews", NotAdmitted)] {
        let decision = super::ask(&policy, account, "GET", "api.org", "/", &[]);
        assert_eq!(decision.reason, expected, "{account}");
    }
}

#[test]
fn workloads_are_no_destinations() {
    let config = json!({ "authz": { "allowedClients": mk_client("productpage") } });
    let workloads = json!([{ "selector": { "labels": { "app": "x" } } }]);
    let alone = json!({ "applyToWorkloads": workloads, "config": config });
    let world = open().policy(mk_policy("a", alone));
    let (_, problems) = world.compile();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(
        (problems[0].field.as_str(), problems[0].effect),
        ("spec.applyToWorkloads", Effect::Ignored)
    );
    // It says nothing of external services, so it closes none.
    assert_eq!(world.get("reviews", "api.org").reason, NoPolicy);
    let both = json!({ "applyToWorkloads": workloads, "applyToDestinations": [mk_to("api")],
                       "config": config });
    let world = open().policy(mk_policy("a", both));
    assert_eq!(world.get("reviews", "api.org").reason, NotAdmitted);
    assert_eq!(world.get("productpage", "api.org").reason, Admitted);
}

#[test]
fn authz_and_its_list_are_alternatives_in_this_order() {
    let config = json!({
        "authz": { "allowedClients": mk_client("ratings") },
        "authzList": [
            {},
            { "allowedClients": mk_client("reviews") },
            { "allowedClients": mk_client("ratings") },
        ],
    });
    let spec = json!({ "applyToDestinations": [mk_to("api")], "config": config });
    let world = open().policy(mk_policy("a", spec));
    for (account, entry) in [
        ("ratings", Some(0)),
        ("reviews", Some(2)),
        ("productpage", None),
    ] {
        let decision = world.get(account, "api.org");
        assert_eq!(
            (decision.allowed, decision.entry),
            (entry.is_some(), entry),
            "{account}"
        );
    }
}

/// A condition, a request for which it holds, and some for which it does not.
fn conditions() -> Vec<(&'static str, Value, Asked<'static>, Vec<Asked<'static>>)> {
    let asked = Asked::default;
    vec![
        (
            "allowedMethods",
            json!(["get", "PUT"]),
            asked(),
            vec![
                Asked {
                    method: "HEAD",
                    ..asked()
                },
                Asked {
                    method: "get",
                    ..asked()
                },
                Asked {
                    method: "OPTIONS",
                    ..asked()
                },
            ],
        ),
        (
            "allowedPaths",
            json!(["/v1/*", "/v2", "*.json"]),
            Asked {
                path: "/v1/%61?q=/../v3",
                ..asked()
            },
            vec![
                asked(),
                Asked {
                    path: "/v1",
                    ..asked()
                },
                Asked {
                    path: "/v2/",
                    ..asked()
                },
                Asked {
                    path: "/V1/a",
                    ..asked()
                },
                Asked {
                    path: "/v1/../v3",
                    ..asked()
                },
                Asked {
                    path: "/x?y.json",
                    ..asked()
                },
            ],
        ),
        (
            "allowedIpBlocks",
            json!(["10.1.0.0/16", "192.0.2.7", "fd00::/64"]),
            Asked {
                ip: "::ffff:10.1.255.255",
                ..asked()
            },
            vec![
                Asked {
                    ip: "10.2.0.0",
                    ..asked()
                },
                Asked {
                    ip: "192.0.2.8",
                    ..asked()
                },
                Asked {
                    ip: "fd00:0:0:1::1",
                    ..asked()
                },
                Asked {
                    ip: "::10.1.2.3",
                    ..asked()
                },
            ],
        ),
        (
            "match",
            json!({ "request": { "headers": { "X-Team": { "values": ["red", "b*"],
                                                                "notValues": ["*x"] } } } }),
            Asked {
                headers: &[("x-team", "blue"), ("x-other", "x")],
                ..asked()
            },
            vec![
                asked(),
                Asked {
                    headers: &[("x-team", "")],
                    ..asked()
                },
                Asked {
                    headers: &[("x-team", "Red")],
                    ..asked()
                },
                Asked {
                    headers: &[("x-team", "redder")],
                    ..asked()
                },
                Asked {
                    headers: &[("x-team", "bx")],
                    ..asked()
                },
                Asked {
                    headers: &[("x-team", "red"), ("x-team", "x")],
                    ..asked()
                },
            ],
        ),
        (
            "allowedClients",
            mk_client("productpage"),
            asked(),
            vec![
                Asked {
                    client: mk_id("reviews"),
                    ..asked()
                },
                Asked {
                    client: SpiffeId::new("cluster.local", "shop", "productpage").unwrap(),
                    ..asked()
                },
            ],
        ),
    ]
}

#[test]
fn each_condition_alone_is_for_every_client() {
    for (field, condition, holds, fails) in conditions() {
        let world = with(json!({ field: condition }));
        assert_eq!(holds.reason(&world), Admitted, "{field}");
        for (at, asked) in fails.iter().enumerate() {
            assert_eq!(asked.reason(&world), NotAdmitted, "{field}, request {at}");
        }
        if field != "allowedClients" {
            let client = SpiffeId::new("cluster.local", "shop", "anybody").unwrap();
            let anybody = Asked { client, ..holds };
            assert_eq!(anybody.reason(&world), Admitted, "{field}");
        }
    }
}

#[test]
fn all_conditions_of_an_entry_must_hold() {
    let all = |left_out: Option<&str>| {
        let mut authz = json!({});
        for (field, condition, ..) in conditions() {
            if Some(field) != left_out {
                authz[field] = condition;
            }
        }
        with(authz)
    };
    // For this one every condition holds.
    let good = || Asked {
        path: "/v1/a",
        headers: &[("x-team", "red")],
        ..Asked::default()
    };
    assert_eq!(good().reason(&all(None)), Admitted);
    for (field, bad) in [
        (
            "allowedMethods",
            Asked {
                method: "POST",
                ..good()
            },
        ),
        (
            "allowedPaths",
            Asked {
                path: "/v3",
                ..good()
            },
        ),
        (
            "allowedIpBlocks",
            Asked {
                ip: "10.2.0.1",
                ..good()
            },
        ),
        (
            "match",
            Asked {
                headers: &[],
                ..good()
            },
        ),
        (
            "allowedClients",
            Asked {
                client: mk_id("ratings"),
                ..good()
            },
        ),
    ] {
        assert_eq!(bad.reason(&all(None)), NotAdmitted, "{field}");
        assert_eq!(bad.reason(&all(Some(field))), Admitted, "without {field}");
    }
}

#[test]
fn a_header_that_is_only_forbidden_may_be_missing() {
    let headers = json!({ "request": { "headers": { "x-debug": { "notValues": ["*"] } } } });
    let world = with(json!({ "match": headers }));
    assert_eq!(Asked::default().reason(&world), Admitted);
    for value in ["", "1"] {
        let headers = [("x-debug", value)];
        let asked = Asked {
            headers: &headers,
            ..Asked::default()
        };
        assert_eq!(asked.reason(&world), NotAdmitted, "{value:?}");
    }
}
