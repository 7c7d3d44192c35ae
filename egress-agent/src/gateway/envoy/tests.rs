//! What is rendered, as messages: versions, and what a change of policy touches.

mod mutations;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::listener::v3::Listener as EnvoyListener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::RbacPerRoute;
use envoy_types::pb::google::protobuf::Any;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::gateway::SpiffeId;
use crate::gateway::host::{HostName, HostPattern};
use crate::gateway::path::TextPattern;
use crate::gateway::policy::{
    Clients, Entry, HeaderCondition, HostRoutes, Listener, Passthrough, PassthroughRoute, Route,
    Rules, Upstream, UpstreamHttp, UpstreamTls,
};

use mutations::{MUTATIONS, the_route};

const BOTH: [Authorization; 2] = [Authorization::Rbac, Authorization::ExtAuthz];

fn settings(authorization: Authorization) -> Settings {
    Settings {
        cert_dir: "/certs".into(),
        upstream_ca: "/ca.crt".into(),
        authorization,
        binding: Binding::Require,
    }
}

/// So many that equal ones hardly come in one order by chance.
fn owners() -> Owners {
    let all = (1..9_u8).map(|last| (IpAddr::from([10, 0, 0, last]), id(&format!("a{last}"))));
    all.collect()
}

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn pattern(text: &str) -> HostPattern {
    HostPattern::parse(text).unwrap()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "bookinfo", account).unwrap()
}

fn entry(at: usize, dry_run: bool) -> Entry {
    Entry {
        policy: ObjectName::new("istio-egress", &format!("policy-{}", at / 3)),
        index: at % 3,
        clients: match at % 3 {
            0 => Clients::Every,
            1 => Clients::These(BTreeSet::from([id("productpage")])),
            _ => Clients::These(BTreeSet::from([id("reviews"), id("ratings")])),
        },
        methods: BTreeSet::from(["GET".to_owned(), "HEAD".to_owned()]),
        paths: BTreeSet::from([TextPattern::Prefix("/v1/".to_owned())]),
        ip_blocks: BTreeSet::from(["10.0.0.0/8".parse().unwrap()]),
        headers: vec![HeaderCondition {
            name: "x-team".to_owned(),
            values: vec![TextPattern::Exact("red".to_owned())],
            not_values: vec![TextPattern::Suffix("x".to_owned())],
        }],
        dry_run,
    }
}

fn rules(closed: bool, entries: usize, dry: usize) -> Rules {
    let entries = (0..entries + dry).map(|at| entry(at, at >= entries));
    Rules::new(closed, entries.map(Arc::new).collect())
}

/// A policy with several of everything, so that each map has several entries.
fn policy(entries: usize, dry: usize, wildcard: bool) -> GatewayPolicy {
    let rules = rules(entries > 0, entries, dry);
    let to = |name: Option<&str>, tls: bool| Upstream {
        host: name.map(host),
        port: 443,
        http: UpstreamHttp::Negotiated,
        tls: tls.then(|| UpstreamTls {
            sni: name.map(host),
            subject_alt_names: name.map(str::to_owned).into_iter().collect(),
        }),
    };
    let route = |upstream| Route {
        service: Some(ObjectName::new("global", "api")),
        upstream,
        rules: rules.clone(),
    };
    let mut listener = Listener::default();
    for name in ["api.example", "www.example"] {
        let routes = [
            (80, route(to(Some(name), true))),
            (81, route(to(Some(name), false))),
        ];
        listener.hosts.insert(pattern(name), routes.into());
    }
    if wildcard {
        let routes = [(80, route(to(None, true)))];
        listener
            .hosts
            .insert(pattern("*.wild.example"), routes.into());
    }
    let mut blind: Vec<Entry> = rules.entries().cloned().collect();
    for entry in &mut blind {
        entry.methods.clear();
        entry.paths.clear();
        entry.headers.clear();
    }
    let passed_on = PassthroughRoute {
        service: ObjectName::new("global", "db"),
        host: Some(host("db.example")),
        port: 5432,
        rules: Rules::new(true, blind.into_iter().map(Arc::new).collect()),
    };
    let passed_on = Passthrough {
        served: Some(passed_on),
    };
    listener
        .passthrough
        .insert(pattern("db.example"), passed_on);
    let gateway = Gateway {
        listeners: [(8443, listener)].into(),
    };
    GatewayPolicy {
        trust_domain: "cluster.local".to_owned(),
        gateways: [(ObjectName::new("istio-egress", "egress-vg"), gateway)].into(),
    }
}

fn rendered(policy: &GatewayPolicy, authorization: Authorization) -> Arc<Resources> {
    let rendered = render(policy, &settings(authorization), &owners());
    rendered.into_values().next().expect("it has one gateway")
}

/// The types of which something differs.
fn changed(before: &Resources, after: &Resources) -> Vec<&'static str> {
    let versions = |of: &Resources, type_url: &str| -> Vec<(String, String)> {
        let all = of.of(type_url);
        all.map(|(name, one)| (name.clone(), one.version.clone()))
            .collect()
    };
    let differs = |type_url: &&str| versions(before, type_url) != versions(after, type_url);
    TYPES.into_iter().filter(differs).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Maps are built anew each time, in another order; equal policy is one version all the same.
    #[test]
    fn equal_policy_has_equal_bytes(entries in 0..6_usize, dry in 0..4_usize, wildcard: bool) {
        for authorization in BOTH {
            let one = rendered(&policy(entries, dry, wildcard), authorization);
            for _ in 0..4 {
                let other = rendered(&policy(entries, dry, wildcard), authorization);
                prop_assert_eq!(&one, &other);
            }
        }
    }

    #[test]
    fn every_change_has_its_version(entries in 1..5_usize, dry in 0..3_usize, wildcard: bool) {
        for (what, change, ruled, asked) in MUTATIONS {
            let before = policy(entries, dry, wildcard);
            let mut after = before.clone();
            change(&mut after);
            for (authorization, expected) in BOTH.into_iter().zip([ruled, asked]) {
                let (one, other) = (rendered(&before, authorization), rendered(&after, authorization));
                prop_assert_eq!(changed(&one, &other), expected, "{} {:?}", what, authorization);
            }
        }
    }
}

/// Sorting its entries leaves a message what it was.
#[test]
fn bytes_in_order_are_the_same_message() {
    let policy = policy(5, 3, true);
    let (id, gateway) = policy.gateways.iter().next().unwrap();
    let rendered = &render(&policy, &settings(Authorization::Rbac), &owners())[id];
    let listener = &gateway.listeners[&8443];
    let decode = |type_url, name: &str| rendered.by_type[type_url][name].body.value.clone();

    let plain = routes::configuration(&policy.trust_domain, 8443, listener, Authorization::Rbac);
    let sorted = RouteConfiguration::decode(&*decode(ROUTES, "egress-8443")).unwrap();
    let rules = |one: &RouteConfiguration| -> Vec<RbacPerRoute> {
        let routes = one.virtual_hosts.iter().flat_map(|host| &host.routes);
        let rules = routes.map(|route| &route.typed_per_filter_config[rbac::FILTER]);
        rules
            .map(|rules| RbacPerRoute::decode(&*rules.value).unwrap())
            .collect()
    };
    assert_eq!(rules(&plain), rules(&sorted));
    assert!(rules(&plain).len() >= 5);
    let other = |mut one: RouteConfiguration| {
        for route in one
            .virtual_hosts
            .iter_mut()
            .flat_map(|host| &mut host.routes)
        {
            route.typed_per_filter_config.remove(rbac::FILTER);
        }
        one
    };
    assert_eq!(other(plain), other(sorted));

    let plain = listener::listeners(
        &policy.trust_domain,
        8443,
        listener,
        true,
        &settings(Authorization::Rbac),
    );
    let sorted = EnvoyListener::decode(&*decode(LISTENERS, "egress-8443-v4")).unwrap();
    let filters = |one: &EnvoyListener| -> Vec<(String, usize)> {
        let filters = one.filter_chains.iter().flat_map(|chain| &chain.filters);
        let size = |config: &Option<ConfigType>| match config {
            Some(ConfigType::TypedConfig(Any { value, .. })) => value.len(),
            _ => 0,
        };
        filters
            .map(|one| (one.name.clone(), size(&one.config_type)))
            .collect()
    };
    assert_eq!(filters(&plain[0]), filters(&sorted));

    for (name, plain) in cluster::clusters(gateway, "/ca.crt".as_ref()) {
        assert_eq!(plain, Cluster::decode(&*decode(CLUSTERS, &name)).unwrap());
    }
}

/// Pods come and go, and no listener drains for that.
#[test]
fn whose_address_it_is_stands_apart() {
    let policy = policy(2, 1, false);
    for authorization in BOTH {
        let with = |owners: &Owners, binding| {
            let settings = Settings {
                binding,
                ..settings(authorization)
            };
            let all = render(&policy, &settings, owners);
            all.into_values().next().expect("it has one gateway")
        };
        let mut fewer = owners();
        fewer.pop_first();
        let expected: &[&str] = match authorization {
            Authorization::Rbac => &[EXTENSIONS],
            Authorization::ExtAuthz => &[],
        };
        for binding in [Binding::Require, Binding::Prefer] {
            let (before, after) = (with(&owners(), binding), with(&fewer, binding));
            assert_eq!(changed(&before, &after), expected, "{binding:?}");
        }
        let (before, after) = (with(&owners(), Binding::Off), with(&fewer, Binding::Off));
        assert_eq!(changed(&before, &after), [] as [&str; 0]);
        assert_eq!(before.of(EXTENSIONS).count(), 0);
    }
}

/// What stands of requests on a connection would go on by the old listener until it has drained.
#[test]
fn rules_of_requests_are_in_routes_alone() {
    let before = policy(2, 1, false);
    let mut after = before.clone();
    the_route(&mut after).rules = rules(true, 4, 0);
    let before = rendered(&before, Authorization::Rbac);
    let after = rendered(&after, Authorization::Rbac);
    assert_eq!(changed(&before, &after), [ROUTES]);
}
