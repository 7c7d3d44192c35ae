//! Objects and requests by chance, from a seed.

use std::collections::BTreeMap;

use egress_agent::api::{AccessPolicySpec, ExternalServiceSpec, VirtualGatewaySpec};
use egress_agent::gateway::{Declared, GatewayObject, GatewayObjects, ObjectName, OutboundPolicy};
use serde_json::{Value, json};

pub const HOSTS: [&str; 7] = [
    "a.x.test",
    "b.x.test",
    "c.b.x.test",
    "x.test",
    "y.test",
    "d.c.b.x.test",
    "z.test",
];
const PATTERNS: [&str; 6] = [
    "a.x.test",
    "b.x.test",
    "c.b.x.test",
    "*.x.test",
    "*.b.x.test",
    "y.test",
];
const ALLOWED_PATHS: [&str; 6] = ["/v2", "/v1/a", "/v1/*", "*.json", "*", "/v1/a%20b"];
const ACCOUNTS: [&str; 3] = ["productpage", "reviews", "ratings"];

/// `SplitMix64`: small, and the same everywhere.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("it is less than a usize")
    }

    /// One time in so many.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// From `least` to `most` of them, in their order.
    fn some(&mut self, of: &[&str], least: usize, most: usize) -> Vec<String> {
        let count = least + self.below(most - least + 1);
        let mut left = of.to_vec();
        while left.len() > count {
            let at = self.below(left.len());
            left.remove(at);
        }
        left.into_iter().map(str::to_owned).collect()
    }
}

/// The objects of one gateway.
pub struct World {
    id: ObjectName,
    gateway: VirtualGatewaySpec,
    services: Vec<(ObjectName, ExternalServiceSpec)>,
    policies: Vec<(ObjectName, AccessPolicySpec)>,
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a spec")
}

/// What a world is about: what is rare by chance gets worlds of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    Anything,
    Headers,
    Paths,
    /// A host that admits nobody, and no other.
    Nobody,
    /// An open host that would admit nobody.
    Trial,
    /// A name that is passed on below a wildcard that is.
    Names,
}

impl World {
    /// Objects for a gateway with the same hosts on these ports.
    pub fn generate(chance: &mut Chance, about: About, name: &str, ports: &[u16]) -> Self {
        let exposed = if about != About::Anything || chance.one_in(2) {
            vec!["*".to_owned()]
        } else {
            chance.some(&PATTERNS, 2, 5)
        };
        let listener = |port: u16, exposed: &[String]| {
            let exposed: Vec<Value> = exposed.iter().map(|host| json!({ "host": host })).collect();
            json!({ "port": { "number": port }, "tls": { "mode": "ISTIO_MUTUAL" },
                    "exposedExternalServices": exposed })
        };
        let mut listeners: Vec<Value> =
            ports.iter().map(|&port| listener(port, &exposed)).collect();
        // Nobody asks there; its rules must hold nowhere else.
        listeners.push(listener(1, &["*".to_owned()]));
        let (services, policies) = about.objects(chance);
        Self {
            id: ObjectName::new("istio-egress", name),
            gateway: read(json!({
                "workloads": [{ "selector": { "labels": { "istio": name } } }],
                "listeners": listeners,
            })),
            services: named("global", "s", services),
            policies: named("istio-egress", "p", policies),
        }
    }

    pub fn objects(&self) -> GatewayObjects<'_> {
        const NO_LABELS: Option<&BTreeMap<String, String>> = None;
        GatewayObjects {
            trust_domain: "cluster.local".to_owned(),
            cluster: None,
            outbound: OutboundPolicy::RegistryOnly,
            gateways: vec![GatewayObject {
                id: self.id.clone(),
                spec: &self.gateway,
                target_ports: BTreeMap::new(),
            }],
            external_services: declared(&self.services),
            access_policies: declared(&self.policies),
            service_accounts: ACCOUNTS
                .iter()
                .map(|name| Declared {
                    id: ObjectName::new("bookinfo", name),
                    labels: NO_LABELS,
                    spec: &(),
                })
                .collect(),
        }
    }
}

fn named<S: serde::de::DeserializeOwned>(
    namespace: &str,
    prefix: &str,
    specs: Vec<Value>,
) -> Vec<(ObjectName, S)> {
    let name = |at| ObjectName::new(namespace, &format!("{prefix}{at}"));
    let specs = specs.into_iter().enumerate();
    specs.map(|(at, spec)| (name(at), read(spec))).collect()
}

impl About {
    /// External services and access policies.
    fn objects(self, chance: &mut Chance) -> (Vec<Value>, Vec<Value>) {
        let one = |entries: &[Value]| (vec![requests("a.x.test")], vec![policy_for("s0", entries)]);
        let ghost = json!([{ "serviceAccountSelector": { "name": "ghost" } }]);
        match self {
            Self::Anything => {
                let (services, policies) = (2 + chance.below(3), chance.below(4));
                let services = (0..services).map(|_| service(chance)).collect();
                (services, (0..policies).map(|_| policy(chance)).collect())
            }
            Self::Headers => {
                let refused = json!({ "headers": { "x-team": header(chance, true) } });
                let other = json!({ "headers": { "x-team": header(chance, false) } });
                one(&[
                    json!({ "match": { "request": refused } }),
                    json!({ "match": { "request": other }, "allowedMethods": ["POST"] }),
                ])
            }
            Self::Paths => one(&[
                json!({ "allowedPaths": chance.some(&ALLOWED_PATHS, 1, 2) }),
                json!({ "allowedPaths": ["*"], "allowedMethods": ["POST"] }),
            ]),
            Self::Nobody => one(&[json!({ "allowedClients": ghost })]),
            Self::Trial => one(&[json!({ "allowedClients": ghost, "dryRun": true })]),
            Self::Names => {
                let account =
                    json!({ "serviceAccountSelector": { "name": chance.pick(&ACCOUNTS) } });
                let services = vec![passed_on("b.x.test"), passed_on("*.x.test")];
                (
                    services,
                    vec![policy_for("s0", &[json!({ "allowedClients": [account] })])],
                )
            }
        }
    }
}

fn requests(host: &str) -> Value {
    let port = json!({ "number": 443, "protocol": "HTTPS", "clientsideTls": {},
                       "egressGatewayRoutes": { "portMatch": 80 } });
    json!({ "hosts": [host], "ports": [port] })
}

fn passed_on(host: &str) -> Value {
    let port = json!({ "number": 443, "protocol": "TLS", "egressGatewayRoutes": {} });
    json!({ "hosts": [host], "ports": [port] })
}

fn policy_for(service: &str, entries: &[Value]) -> Value {
    json!({
        "applyToDestinations": [{ "kind": "EXTERNAL_SERVICE", "selector": { "name": service } }],
        "config": { "authzList": entries },
    })
}

fn declared<S>(objects: &[(ObjectName, S)]) -> Vec<Declared<'_, S>> {
    objects
        .iter()
        .map(|(id, spec)| Declared {
            id: id.clone(),
            labels: None,
            spec,
        })
        .collect()
}

fn service(chance: &mut Chance) -> Value {
    let ports: Vec<Value> = if chance.one_in(3) {
        vec![json!({ "number": 443, "protocol": "TLS", "egressGatewayRoutes": {} })]
    } else {
        (0..=chance.below(2))
            .map(|_| {
                json!({
                    "number": chance.pick(&[443, 8443]), "protocol": "HTTPS", "clientsideTls": {},
                    "egressGatewayRoutes": { "portMatch": chance.pick(&[80, 80, 81]) },
                })
            })
            .collect()
    };
    json!({ "hosts": chance.some(&PATTERNS, 1, 2), "ports": ports })
}

fn policy(chance: &mut Chance) -> Value {
    let selector = if chance.one_in(4) {
        json!({ "namespace": "global" })
    } else {
        json!({ "name": chance.pick(&["s0", "s1", "s2"]) })
    };
    let port = if chance.one_in(4) {
        json!({ "number": 443 })
    } else {
        json!({})
    };
    let mut entries: Vec<Value> = (0..=chance.below(3)).map(|_| entry(chance)).collect();
    if chance.one_in(3) {
        // All of it on trial: its hosts stay open.
        for entry in &mut entries {
            entry["dryRun"] = json!(true);
        }
    }
    json!({
        "applyToDestinations": [{ "kind": "EXTERNAL_SERVICE", "selector": selector, "port": port }],
        "config": { "authzList": entries },
    })
}

fn entry(chance: &mut Chance) -> Value {
    let mut entry = json!({});
    if !chance.one_in(3) {
        let clients: Vec<Value> = (0..=chance.below(2))
            .map(|_| {
                let selector = match chance.below(6) {
                    0 => json!({}),
                    1 => json!({ "name": "ghost" }),
                    2 => json!({ "namespace": "bookinfo" }),
                    _ => json!({ "name": chance.pick(&ACCOUNTS) }),
                };
                json!({ "serviceAccountSelector": selector })
            })
            .collect();
        entry["allowedClients"] = json!(clients);
    }
    if chance.one_in(4) {
        entry["allowedMethods"] = json!(chance.some(&["GET", "POST", "OPTIONS"], 1, 2));
    }
    if chance.one_in(4) {
        entry["allowedPaths"] = json!(chance.some(&ALLOWED_PATHS, 1, 2));
    }
    if chance.one_in(4) {
        let blocks = ["127.0.0.1", "127.0.0.0/8", "10.0.0.0/8", "::1/128"];
        entry["allowedIpBlocks"] = json!(chance.some(&blocks, 1, 2));
    }
    if chance.one_in(4) {
        let refuses = chance.one_in(2);
        let header = header(chance, refuses);
        entry["match"] = json!({ "request": { "headers": { "x-team": header } } });
    }
    if chance.one_in(3) {
        entry["dryRun"] = json!(true);
    }
    entry
}

/// A condition on a header, with or without values that are refused.
fn header(chance: &mut Chance, refuses: bool) -> Value {
    let values = ["red", "blue*", "*-x", "*"];
    let mut header = json!({});
    if !refuses || chance.one_in(2) {
        header["values"] = json!(chance.some(&values, 1, 2));
    }
    if refuses {
        header["notValues"] = json!(chance.some(&values, 1, 1));
    }
    header
}

/// A request as a client writes it.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: &'static str,
    pub authority: String,
    pub path: &'static str,
    pub headers: &'static str,
}

/// What dot segments hide behind parameters is left out (`accept_hidden_dot_segments`), and so are
/// repeated headers, which Istio's gateways send to the policy server joined.
pub fn request(chance: &mut Chance, hosts: &[&'static str]) -> Request {
    const METHODS: [&str; 8] = [
        "GET", "GET", "GET", "POST", "POST", "OPTIONS", "OPTIONS", "get",
    ];
    const PATHS: [&str; 22] = [
        "/",
        "/v1/a",
        "/v1/a?x=/../v2",
        "/v1/../v2",
        "/v1/%2e%2e/v2",
        "/v2",
        "/v2/",
        "//v2",
        "/V2",
        "/%76%32",
        "/v2.json",
        "/v2.json?x",
        "/v2?x.json",
        "/v1/a%2fb",
        "/v1/..%2fv2",
        "/v1/..%5cv2",
        "/v1\\a",
        "/v1/a%20b",
        "/v1/a;b",
        "/v1",
        "/v1/.%2e/./v2",
        "/v1//../v2",
    ];
    const HEADERS: [&str; 6] = [
        "",
        "",
        "x-team: red\r\n",
        "X-Team: blue-x\r\n",
        "x-team: green\r\n",
        "x-team:\r\n",
    ];
    let host = *chance.pick(hosts);
    let authority = match chance.below(24) {
        0 => host.to_ascii_uppercase(),
        1 => format!("{host}."),
        2 => format!("{host}:80"),
        3 => format!("{host}.:80"),
        4 => format!("{host}:81"),
        5 => format!("{host}:81").to_ascii_uppercase(),
        6 => format!("{host}:080"),
        7 => "10.0.0.1".to_owned(),
        _ => host.to_owned(),
    };
    let method = *chance.pick(&METHODS);
    let star = method == "OPTIONS" && chance.one_in(4);
    let path = if star {
        "*"
    } else {
        chance.pick::<&str>(&PATHS)
    };
    Request {
        method,
        authority,
        path,
        headers: chance.pick::<&str>(&HEADERS),
    }
}
