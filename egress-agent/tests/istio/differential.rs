//! The same verdict from native policy and from the policy server, for objects and requests by
//! chance. `SALLYPORT_SEED` chooses others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use egress_agent::gateway::istio::object::AuthorizationPolicy;
use egress_agent::gateway::{
    GatewayPolicy, ObjectName, SpiffeId, compile, decide_connection, istio,
};
use egress_agent::policy_server::authz::Binding;
use egress_agent::policy_server::{GatewayPod, Served};
use rustls::pki_types::ServerName;

use crate::client::Connection;
use crate::envoy::{Decides, Envoy, Port, free_ports};
use crate::generate::{About, Chance, HOSTS, Request, World, request};
use crate::istiod::translate;
use crate::mesh::{Authority, Leaf, client_config};
use crate::policy_server::{SERVER_ID, Server};

/// What the worlds are about. The first are as they come.
const WORLDS: [About; 24] = {
    let mut worlds = [About::Anything; 24];
    let rare = [About::Headers, About::Paths, About::Names];
    let mut at = 0;
    while at < 6 {
        worlds[16 + at] = rare[at / 2];
        at += 1;
    }
    worlds[22] = About::Nobody;
    worlds[23] = About::Trial;
    worlds
};
const REQUESTS: usize = 64;
const CONNECTIONS: usize = 8;
const GATEWAY_ID: &str = "spiffe://cluster.local/ns/istio-egress/sa/istio-egressgateway";
/// `ghost` has no service account; the last is of another trust domain.
const CLIENTS: [&str; 5] = [
    "spiffe://cluster.local/ns/bookinfo/sa/productpage",
    "spiffe://cluster.local/ns/bookinfo/sa/reviews",
    "spiffe://cluster.local/ns/bookinfo/sa/ratings",
    "spiffe://cluster.local/ns/bookinfo/sa/ghost",
    "spiffe://other.local/ns/bookinfo/sa/productpage",
];

fn seed() -> u64 {
    match std::env::var("SALLYPORT_SEED") {
        Ok(text) => text.parse().expect("SALLYPORT_SEED is a number"),
        Err(_) => 20_261_123,
    }
}

/// A gateway with the same policy on a native port and on one that asks.
struct Compiled {
    name: String,
    policy: GatewayPolicy,
    native: Vec<AuthorizationPolicy>,
    ports: [u16; 2],
}

fn generate(chance: &mut Chance, at: usize, ports: [u16; 2]) -> Compiled {
    let name = format!("w{at}");
    let world = World::generate(chance, WORLDS[at], &name, &ports);
    let objects = world.objects();
    let (policy, _) = compile(&objects);
    let options = istio::Options {
        accept_hidden_dot_segments: true,
    };
    let rendered = istio::render(&objects, &policy, options);
    assert_eq!(rendered.problems, []);
    // What `kubectl` would read.
    let native = rendered.policies.iter().map(|document| {
        let text = document.yaml().expect("YAML");
        serde_yaml_ng::from_str(&text).expect("an AuthorizationPolicy")
    });
    Compiled {
        name,
        native: native.collect(),
        policy,
        ports,
    }
}

/// A server outside that answers whoever gets through.
fn outside() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                // All of it: what is left unread would reset the connection under the answer.
                let mut line = [0; 5];
                if stream.read_exact(&mut line).is_ok() {
                    // A client that is gone needs no answer.
                    let _ = stream.write_all(b"passed");
                }
            });
        }
    });
    port
}

/// Real clients of the gateway, with their connections.
struct Clients {
    mesh: Authority,
    leaves: Vec<Leaf>,
    open: HashMap<(u16, usize), Connection>,
}

/// Status, and what a dry run would have said.
type Verdict = (u16, Option<String>);

impl Clients {
    fn session(
        &self,
        port: u16,
        client: usize,
        name: &str,
    ) -> (rustls::ClientConnection, TcpStream) {
        let config = client_config(&self.mesh, Some(&self.leaves[client]));
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let session = rustls::ClientConnection::new(config, name).expect("a session");
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("Envoy listens");
        let limit = Some(Duration::from_secs(15));
        stream.set_read_timeout(limit).expect("a timeout");
        (session, stream)
    }

    fn ask(&mut self, port: u16, client: usize, request: &Request) -> Verdict {
        for _ in 0..2 {
            let standing = self.open.remove(&(port, client));
            let mut connection = standing.unwrap_or_else(|| {
                let (session, stream) = self.session(port, client, "gateway.test");
                Connection::new(session, stream)
            });
            let Request {
                method,
                authority,
                path,
                headers,
            } = request;
            // Where the gateway has closed it, a new one shows whether it means it.
            if let Ok(answer) = connection.ask(method, authority, path, headers) {
                if !answer.head.contains("connection: close") {
                    self.open.insert((port, client), connection);
                }
                let would = answer
                    .head
                    .lines()
                    .find_map(|it| it.strip_prefix("x-dry-run: "));
                let would = would.filter(|it| *it != "-").map(str::to_owned);
                assert!(answer.status != 403 || answer.is_denied(), "{answer:?}");
                return (answer.status, would);
            }
        }
        panic!("no answer to {request:?} of {}", CLIENTS[client]);
    }

    /// Whether bytes get through.
    fn passes(&self, port: u16, client: usize, name: &str) -> bool {
        let (session, stream) = self.session(port, client, name);
        let mut stream = rustls::StreamOwned::new(session, stream);
        let mut answer = [0; 6];
        let result = stream
            // Where the name leads to requests this is a bad one.
            .write_all(b"x\r\n\r\n")
            .and_then(|()| stream.flush())
            .and_then(|()| stream.read_exact(&mut answer));
        match result {
            Ok(()) => &answer == b"passed",
            Err(error) => {
                let slow = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                assert!(!slow, "no answer for {name}");
                false
            }
        }
    }
}

#[test]
fn native_policy_and_the_policy_server_agree() {
    let seed = seed();
    let mut chance = Chance::new(seed);
    let free = free_ports(2 * WORLDS.len());
    let worlds: Vec<Compiled> = free
        .chunks(2)
        .enumerate()
        .map(|(at, ports)| generate(&mut chance, at, [ports[0], ports[1]]))
        .collect();

    let directory = tempfile::tempdir().expect("a directory");
    let mesh = Authority::new("mesh");
    let put = |name: &str, text: &str| {
        fs::write(directory.path().join(name), text).expect("a file");
    };
    let names: Vec<&str> = HOSTS.into_iter().chain(["gateway.test"]).collect();
    let gateway = mesh.sign(&names, &[GATEWAY_ID]);
    put("gateway.crt", &gateway.pem);
    put("gateway.key", &gateway.key_pem);
    put("ca.crt", &mesh.pem());
    let agent = mesh.sign(&[], &[SERVER_ID]);
    put("tls.crt", &agent.pem);
    put("tls.key", &agent.key_pem);
    let server = Server::start(([127, 0, 0, 1], 0).into(), directory.path(), Binding::Off);
    server.serve(served(&worlds));

    let ports: Vec<Port<'_>> = worlds.iter().flat_map(ports_of).collect();
    let envoy = Envoy::start(directory.path(), &ports, server.address.port(), outside());
    let leaves = CLIENTS.iter().map(|id| mesh.sign(&[], &[id])).collect();
    let mut clients = Clients {
        mesh,
        leaves,
        open: HashMap::new(),
    };

    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    let mut count = |what| *seen.entry(what).or_default() += 1;
    for world in &worlds {
        let fail = |what: &dyn std::fmt::Debug,
                    native: &dyn std::fmt::Debug,
                    check: &dyn std::fmt::Debug| {
            let rules = serde_yaml_ng::to_string(&world.native).unwrap_or_default();
            panic!(
                "seed {seed}, {}: {what:?}: native {native:?}, policy server {check:?}\n{rules}\n{}",
                world.name,
                envoy.log()
            );
        };
        let (hosts, names) = (asked_hosts(world), asked_names(world));
        for _ in 0..REQUESTS {
            let asked = request(&mut chance, &hosts);
            let client = usize::from(*chance.pick(&[0_u8, 0, 1, 1, 2, 2, 3, 4]));
            let [native, check] = world.ports.map(|port| clients.ask(port, client, &asked));
            // The policy server says what would be only where there is a dry run.
            let would = check.1.is_some() && native.1 != check.1;
            if native.0 != check.0 || would {
                fail(&(CLIENTS[client], &asked), &native, &check);
            }
            count(match native.0 {
                200 => "allowed",
                403 => "denied",
                // Before any filter: `OPTIONS *`, for one, is 404.
                400 | 404 => "no request for Envoy",
                other => panic!("status {other} for {asked:?}: {}", envoy.log()),
            });
            if let Some(would) = check.1 {
                count(if would == "allowed" {
                    "would be allowed"
                } else {
                    "would be denied"
                });
            }
        }
        for _ in 0..CONNECTIONS {
            let name = *chance.pick(&names);
            let client = usize::from(*chance.pick(&[0_u8, 0, 1, 1, 2, 2, 3, 4]));
            let [native, check] = world.ports.map(|port| clients.passes(port, client, name));
            if native != check {
                fail(&(CLIENTS[client], name), &native, &check);
            }
            count(if native { "passed on" } else { "not passed on" });
        }
    }
    println!("seed {seed}: {} worlds, verdicts: {seen:?}", WORLDS.len());
    for (what, least) in [
        ("allowed", 50),
        ("denied", 50),
        ("no request for Envoy", 10),
        ("passed on", 10),
        ("not passed on", 10),
        ("would be allowed", 10),
        ("would be denied", 10),
    ] {
        let often = seen.get(what).is_some_and(|times| *times >= least);
        assert!(often, "fewer than {least} were `{what}`: {seen:?}");
    }
}

fn gateway_of(world: &Compiled) -> ObjectName {
    ObjectName::new("istio-egress", &world.name)
}

/// The hosts that are asked for: all, and oftener those where more is decided.
fn asked_hosts(world: &Compiled) -> Vec<&'static str> {
    let gateway = &world.policy.gateways[&gateway_of(world)];
    let listener = &gateway.listeners[&world.ports[0]];
    let weight = |host: &str| {
        let routes = listener.routes_of(host).map(BTreeMap::values);
        let weights = routes.into_iter().flatten().map(|route| {
            let rules = &route.rules;
            let trial = usize::from(rules.has_dry_run());
            2 + if rules.closed {
                2 + 8 * trial
            } else {
                24 * trial
            }
        });
        1 + weights.max().unwrap_or_default()
    };
    weighted(weight)
}

/// The same for server names.
fn asked_names(world: &Compiled) -> Vec<&'static str> {
    let gateway = gateway_of(world);
    let weight = |sni: &str| {
        let passed_on = CLIENTS[..3].iter().filter(|client| {
            let connection = egress_agent::gateway::Connection {
                gateway: &gateway,
                listener: world.ports[0],
                client: &SpiffeId::parse(client).expect("an identity"),
                client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
                sni,
            };
            decide_connection(&world.policy, &connection)
                .service
                .is_some()
        });
        1 + 2 * passed_on.count()
    };
    weighted(weight)
}

fn weighted(weight: impl Fn(&str) -> usize) -> Vec<&'static str> {
    let times = |host| std::iter::repeat_n(host, weight(host));
    HOSTS.into_iter().flat_map(times).collect()
}

fn ports_of(world: &Compiled) -> [Port<'_>; 2] {
    let gateway = &world.policy.gateways[&gateway_of(world)];
    let natively = Decides::Natively {
        http: translate(&world.native, false),
        tcp: translate(&world.native, true),
    };
    let [native, check] = world.ports;
    [(native, natively), (check, Decides::ByCheck)].map(|(number, decides)| Port {
        number,
        listener: &gateway.listeners[&number],
        decides,
        upstream: None,
    })
}

/// All gateways in one policy: they are pods at one address.
fn served(worlds: &[Compiled]) -> Served {
    let mut policy = GatewayPolicy {
        trust_domain: "cluster.local".to_owned(),
        ..GatewayPolicy::default()
    };
    for world in worlds {
        policy.gateways.extend(world.policy.gateways.clone());
    }
    let pod = GatewayPod {
        identity: SpiffeId::parse(GATEWAY_ID).expect("an identity"),
        gateways: policy.gateways.keys().cloned().collect::<BTreeSet<_>>(),
    };
    Served {
        revision: "1".to_owned(),
        policy,
        gateway_pods: BTreeMap::from([(IpAddr::V4(Ipv4Addr::LOCALHOST), pod)]),
        ..Served::default()
    }
}
