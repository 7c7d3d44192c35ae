//! Compiled policy against a model that reads the objects themselves, request by request.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{World, ask, mk_policy, mk_service};
use crate::api::access_policy::{AccessPolicy, Authz};

const HOSTS: [&str; 6] = ["a.x", "b.x", "c.b.x", "x", "y", "d.c.b.x"];
const PATTERNS: [&str; 7] = ["a.x", "b.x", "c.b.x", "*.x", "*.b.x", "*", "y"];
const ACCOUNTS: [&str; 3] = ["productpage", "reviews", "ratings"];
const PATHS: [&str; 4] = ["/", "/v1/a", "/v1/../v2", "/v2.json?x"];

fn some(of: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(of, 0..=of.len())
}

fn service() -> impl Strategy<Value = Value> {
    let refs = prop_oneof![
        3 => Just(json!([])),
        2 => Just(json!([{ "name": "egress-vg", "namespace": "istio-egress" }])),
        1 => Just(json!([{ "name": "other", "namespace": "istio-egress" }])),
    ];
    let port = (
        prop_oneof![Just(443), Just(8443)],
        prop_oneof![Just(80), Just(81)],
        refs,
    );
    let hosts = proptest::sample::subsequence(&PATTERNS[..], 1..=2);
    (hosts, prop::collection::vec(port, 1..=2)).prop_map(|(hosts, ports)| {
        let ports: Vec<Value> = ports
            .into_iter()
            .map(|(number, client, refs)| {
                json!({
                    "number": number, "protocol": "HTTPS", "clientsideTls": {},
                    "egressGatewayRoutes": { "portMatch": client, "virtualGatewayRefs": refs },
                })
            })
            .collect();
        json!({ "hosts": hosts, "ports": ports })
    })
}

fn entry() -> impl Strategy<Value = Value> {
    let client = prop_oneof![
        Just(json!({})),
        proptest::sample::select(&ACCOUNTS[..]).prop_map(|name| json!({ "name": name })),
        proptest::sample::select(&ACCOUNTS[..])
            .prop_map(|name| json!({ "labels": { "account": name }, "namespace": "bookinfo" })),
        Just(json!({ "name": "reviews", "cluster": "there" })),
    ];
    let clients = prop::collection::vec(client, 0..=2);
    let methods = some(&["GET", "POST"]);
    let paths = some(&["/v1/*", "/v2", "*.json"]);
    (clients, methods, paths, prop::bool::weighted(0.2)).prop_map(
        |(clients, methods, paths, dry)| {
            let clients: Vec<Value> = clients
                .into_iter()
                .map(|one| json!({ "serviceAccountSelector": one }))
                .collect();
            json!({
                "allowedClients": clients, "allowedMethods": methods,
                "allowedPaths": paths, "dryRun": dry,
            })
        },
    )
}

fn policy() -> impl Strategy<Value = Value> {
    let selector = prop_oneof![
        proptest::sample::select(&["s0", "s1", "s2"][..]).prop_map(|name| json!({ "name": name })),
        Just(json!({ "namespace": "global" })),
        Just(json!({ "namespace": "elsewhere" })),
    ];
    let port = prop_oneof![2 => Just(json!({})), 1 => Just(json!({ "number": 443 }))];
    (selector, port, prop::collection::vec(entry(), 0..=2)).prop_map(|(selector, port, entries)| {
        json!({
            "applyToDestinations":
                [{ "kind": "EXTERNAL_SERVICE", "selector": selector, "port": port }],
            "config": { "authzList": entries },
        })
    })
}

fn world() -> impl Strategy<Value = World> {
    let exposed = proptest::sample::subsequence(&PATTERNS[..], 1..=4);
    let services = prop::collection::vec(service(), 0..=3);
    let policies = prop::collection::vec(policy(), 0..=3);
    (exposed, services, policies).prop_map(|(exposed, services, policies)| {
        let mut world = World::exposing(&exposed);
        for (at, spec) in services.into_iter().enumerate() {
            world.services.push(mk_service(&format!("s{at}"), spec));
        }
        for (at, spec) in policies.into_iter().enumerate() {
            world.policies.push(mk_policy(&format!("p{at}"), spec));
        }
        world
    })
}

fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(rest) => host.ends_with(rest) && host.len() > rest.len(),
        None => pattern == host,
    }
}

/// Exact before wildcards, longer before shorter.
fn rank(pattern: &str) -> (bool, usize) {
    (!pattern.starts_with('*'), pattern.len())
}

/// The answer, and the answer if dry runs were enforced.
fn model(
    world: &World,
    account: &str,
    method: &str,
    host: &str,
    port: u16,
    path: &str,
) -> (bool, bool) {
    let exposed = &world.gateways[0].spec.listeners[0].exposed_external_services;
    if !exposed.iter().any(|one| covers(&one.host, host)) {
        return (false, false);
    }
    let all = world
        .services
        .iter()
        .flat_map(|service| &service.spec.hosts);
    let Some(owner) = all
        .filter(|pattern| covers(pattern, host))
        .max_by_key(|one| rank(one))
    else {
        return (false, false);
    };
    let mut found = Vec::new();
    for service in world
        .services
        .iter()
        .filter(|service| service.spec.hosts.contains(owner))
    {
        for one in &service.spec.ports {
            let routes = one.egress_gateway_routes.as_ref().unwrap();
            let refs = &routes.virtual_gateway_refs;
            let here = refs.is_empty() || refs.iter().any(|one| one.name == "egress-vg");
            if here && routes.port_match == Some(port) {
                found.push((service, one));
            }
        }
    }
    let [(service, to)] = found[..] else {
        return (false, false);
    };
    let name = service.metadata.name.as_ref();
    let mut policies: Vec<(&AccessPolicy, bool)> = Vec::new();
    for policy in &world.policies {
        let target = &policy.spec.apply_to_destinations[0];
        let selector = &target.selector;
        if selector.name.as_ref().is_none_or(|one| Some(one) == name)
            && selector
                .namespace
                .as_deref()
                .is_none_or(|one| one == "global")
        {
            let number = target.port.as_ref().and_then(|port| port.number);
            policies.push((policy, number.is_none_or(|number| number == to.number)));
        }
    }
    let admitted = |dry: bool| {
        policies
            .iter()
            .filter(|(_, port)| *port)
            .any(|(policy, _)| {
                let entries = &policy.spec.config.authz_list;
                entries
                    .iter()
                    .any(|one| (dry || !one.dry_run) && entry_holds(one, account, method, path))
            })
    };
    let open = policies.iter().all(|(policy, _)| {
        let entries = &policy.spec.config.authz_list;
        !entries.is_empty() && entries.iter().all(|entry| entry.dry_run)
    });
    (open || admitted(false), admitted(true))
}

fn entry_holds(entry: &Authz, account: &str, method: &str, path: &str) -> bool {
    let Authz {
        allowed_clients,
        allowed_methods,
        allowed_paths,
        ..
    } = entry;
    if allowed_clients.is_empty() && allowed_methods.is_empty() && allowed_paths.is_empty() {
        return false;
    }
    let client = allowed_clients.is_empty()
        || allowed_clients.iter().any(|client| {
            let selector = &client.service_account_selector;
            selector.name.as_deref().is_none_or(|name| name == account)
                && selector.labels.values().all(|label| label == account)
                && selector.cluster.is_none()
        });
    let path = match path {
        "/v1/../v2" => "/v2",
        "/v2.json?x" => "/v2.json",
        other => other,
    };
    let holds = |pattern: &String| match pattern.as_str() {
        "/v1/*" => path.starts_with("/v1/"),
        "*.json" => path == "/v2.json",
        exact => path == exact,
    };
    client
        && (allowed_methods.is_empty() || allowed_methods.iter().any(|one| one == method))
        && (allowed_paths.is_empty() || allowed_paths.iter().any(holds))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_decision_is_the_models(world in world()) {
        let policy = world.compile().0;
        for host in HOSTS {
            for (account, method, port, path) in ACCOUNTS.iter().flat_map(|account| {
                ["GET", "POST"].into_iter().flat_map(move |method| {
                    [80, 81].into_iter().flat_map(move |port| {
                        PATHS.iter().map(move |path| (*account, method, port, *path))
                    })
                })
            }) {
                let (allowed, dry) = model(&world, account, method, host, port, path);
                let authority = format!("{host}:{port}");
                let decision = ask(&policy, account, method, &authority, path, &[]);
                prop_assert_eq!(decision.allowed, allowed, "{} {} {}", account, host, port);
                if let Some(told) = decision.dry_run {
                    prop_assert_eq!(told, dry, "{} {} {}", account, host, port);
                }
            }
        }
    }
}
