//! Selectors of services and of service accounts.

use super::*;

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
        let decision = super::super::ask(&policy, account, "GET", "api.org", "/", &[]);
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
