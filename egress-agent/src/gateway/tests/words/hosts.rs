//! Hosts and ports: what a request has to name.

use super::*;

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
