//! Small changes of a policy, and the types of resource that each of them touches.

use super::*;

fn the_listener(policy: &mut GatewayPolicy) -> &mut Listener {
    let gateway = policy.gateways.values_mut().next().unwrap();
    gateway.listeners.get_mut(&8443).unwrap()
}

pub(super) fn the_route(policy: &mut GatewayPolicy) -> &mut Route {
    let routes = the_listener(policy).hosts.values_mut().next().unwrap();
    routes.get_mut(&80).unwrap()
}

fn passed_on(policy: &mut GatewayPolicy) -> &mut PassthroughRoute {
    let passed_on = the_listener(policy).passthrough.values_mut().next();
    passed_on.unwrap().served.as_mut().unwrap()
}

/// Changes the first entry of rules.
fn with_entry(rules: &mut Rules, change: fn(&mut Entry)) {
    let mut entries: Vec<Entry> = rules.entries().cloned().collect();
    change(&mut entries[0]);
    *rules = Rules::new(rules.closed, entries.into_iter().map(Arc::new).collect());
}

fn tls(policy: &mut GatewayPolicy) -> &mut UpstreamTls {
    the_route(policy).upstream.tls.as_mut().unwrap()
}

/// What changes, the types that tell of it where Envoy decides, and where the policy server does.
pub(super) type Mutation = (
    &'static str,
    fn(&mut GatewayPolicy),
    &'static [&'static str],
    &'static [&'static str],
);

pub(super) const MUTATIONS: [Mutation; 26] = [
    (
        "trust domain",
        |it| it.trust_domain = "other".to_owned(),
        &[SECRETS, LISTENERS, ROUTES],
        &[SECRETS],
    ),
    (
        "service of a route",
        |it| the_route(it).service = Some(ObjectName::new("global", "x")),
        &[ROUTES],
        &[ROUTES],
    ),
    (
        "no service",
        |it| the_route(it).service = None,
        &[ROUTES],
        &[ROUTES],
    ),
    (
        "outside host",
        |it| the_route(it).upstream.host = Some(host("x.example")),
        &[CLUSTERS, ROUTES],
        &[CLUSTERS, ROUTES],
    ),
    (
        "outside port",
        |it| the_route(it).upstream.port = 444,
        &[CLUSTERS, ROUTES],
        &[CLUSTERS, ROUTES],
    ),
    (
        "HTTP outside",
        |it| the_route(it).upstream.http = UpstreamHttp::Http2,
        &[CLUSTERS, ROUTES],
        &[CLUSTERS, ROUTES],
    ),
    (
        "TLS outside",
        |it| the_route(it).upstream.tls = None,
        &[CLUSTERS, ROUTES],
        &[CLUSTERS, ROUTES],
    ),
    (
        "server name outside",
        |it| tls(it).sni = Some(host("x.example")),
        &[CLUSTERS, ROUTES],
        &[CLUSTERS, ROUTES],
    ),
    (
        "names of the server",
        |it| tls(it).subject_alt_names.push("x.example".to_owned()),
        &[CLUSTERS, ROUTES],
        &[CLUSTERS, ROUTES],
    ),
    (
        "one name that looks like two",
        |it| tls(it).subject_alt_names = vec!["api.example,b".to_owned()],
        &[CLUSTERS, ROUTES],
        &[CLUSTERS, ROUTES],
    ),
    (
        "closed",
        |it| the_route(it).rules.closed ^= true,
        &[ROUTES],
        &[],
    ),
    (
        "an entry's policy",
        |it| with_entry(&mut the_route(it).rules, |it| it.policy.name.push('x')),
        &[ROUTES],
        &[],
    ),
    (
        "an entry's position",
        |it| with_entry(&mut the_route(it).rules, |it| it.index = 9),
        &[ROUTES],
        &[],
    ),
    (
        "an entry's clients",
        |it| {
            with_entry(&mut the_route(it).rules, |it| {
                it.clients = Clients::These(BTreeSet::from([id("details")]));
            });
        },
        &[ROUTES],
        &[],
    ),
    (
        "an entry's methods",
        |it| with_entry(&mut the_route(it).rules, |it| it.methods.clear()),
        &[ROUTES],
        &[],
    ),
    (
        "an entry's paths",
        |it| with_entry(&mut the_route(it).rules, |it| it.paths.clear()),
        &[ROUTES],
        &[],
    ),
    (
        "an entry's addresses",
        |it| with_entry(&mut the_route(it).rules, |it| it.ip_blocks.clear()),
        &[ROUTES],
        &[],
    ),
    (
        "an entry's headers",
        |it| {
            with_entry(&mut the_route(it).rules, |it| {
                it.headers[0].not_values.clear();
            });
        },
        &[ROUTES],
        &[],
    ),
    (
        "an entry's trial",
        |it| with_entry(&mut the_route(it).rules, |it| it.dry_run ^= true),
        &[ROUTES],
        &[],
    ),
    (
        "client port",
        |it| {
            let routes = the_listener(it).hosts.values_mut().next().unwrap();
            let route = routes.remove(&80).unwrap();
            routes.insert(8080, route);
        },
        &[ROUTES],
        &[ROUTES],
    ),
    (
        "a host that is not served",
        |it| {
            the_listener(it)
                .hosts
                .insert(pattern("no.example"), HostRoutes::new());
        },
        &[ROUTES],
        &[ROUTES],
    ),
    (
        "what is passed on has another service",
        |it| passed_on(it).service.name.push('x'),
        &[LISTENERS],
        &[LISTENERS],
    ),
    (
        "what is passed on goes elsewhere",
        |it| passed_on(it).host = Some(host("x.example")),
        &[CLUSTERS, LISTENERS],
        &[CLUSTERS, LISTENERS],
    ),
    (
        "what is passed on goes to another port",
        |it| passed_on(it).port = 1,
        &[CLUSTERS, LISTENERS],
        &[CLUSTERS, LISTENERS],
    ),
    (
        "what is passed on has other rules",
        |it| with_entry(&mut passed_on(it).rules, |it| it.ip_blocks.clear()),
        &[LISTENERS],
        &[],
    ),
    (
        "another name is passed on",
        |it| {
            let name = pattern("one.example");
            let listener = the_listener(it);
            listener
                .passthrough
                .insert(name, Passthrough { served: None });
        },
        &[LISTENERS, ROUTES],
        &[LISTENERS, ROUTES],
    ),
];
