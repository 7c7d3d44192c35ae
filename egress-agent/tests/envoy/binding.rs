//! Certificates that are used from elsewhere, where Envoy decides by rules of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use egress_agent::gateway::envoy::Authorization;
use egress_agent::policy_server::PodAccount;
use egress_agent::policy_server::authz::Binding;
use serde_json::{Value, json};

use crate::client::{Answer, Connection};
use crate::gateway::{Gateway, Objects, free_port};
use crate::mesh::{Authority, client_config};
use crate::tunnel;
use crate::upstream;
use crate::world::guide;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const HOST: &str = "open.localhost:8080";

/// `open.localhost:8080` and, passed on, `raw.localhost`, for everybody of the mesh.
fn objects(listener: u16) -> Objects {
    let mut objects = guide(listener, 443, 444, upstream::serve_plain());
    let raw = json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": "ExternalService",
        "metadata": { "name": "raw", "namespace": "global" },
        "spec": { "hosts": ["raw.localhost"], "ports": [{
            "number": upstream::serve_plain(), "protocol": "TCP", "egressGatewayRoutes": {},
        }] },
    });
    objects
        .services
        .push(serde_json::from_value(raw).expect("a service"));
    objects
}

/// A gateway that knows whose these addresses are.
fn start(binding: Binding, clients: &[(IpAddr, &str)]) -> (Gateway, Objects) {
    let port = free_port();
    let outside = Authority::new("outside");
    let mut gateway = Gateway::prepare_bound(port, &outside, Authorization::Rbac, binding);
    let objects = objects(port);
    know(&mut gateway, clients);
    gateway.apply(&objects);
    gateway.validate().expect("it is sound");
    (gateway, objects)
}

fn know(gateway: &mut Gateway, clients: &[(IpAddr, &str)]) {
    let pod = |account: &str| PodAccount {
        namespace: "bookinfo".to_owned(),
        pod: format!("{account}-1"),
        service_account: account.to_owned(),
    };
    let clients = clients.iter().map(|(ip, account)| (*ip, pod(account)));
    gateway.clients = clients.collect();
}

fn connect(gateway: &Gateway, account: &str, ip: IpAddr) -> Connection {
    let config = client_config(&gateway.mesh, Some(&gateway.identity(account)));
    gateway.connect_to(ip, config)
}

fn ask(connection: &mut Connection) -> Answer {
    let answer = connection.ask("GET", HOST, "/", "");
    answer.expect("an answer")
}

fn get(gateway: &Gateway, account: &str, ip: IpAddr) -> Answer {
    ask(&mut connect(gateway, account, ip))
}

/// Whether bytes are passed on.
fn passes(gateway: &Gateway, account: &str) -> bool {
    Connection::over(tunnel::open_as(gateway, account, "raw.localhost"))
        .ask("GET", "whatever", "/", "")
        .is_ok_and(|answer| answer.status == 200)
}

#[test]
fn a_stolen_certificate_is_of_no_use_elsewhere() {
    let (mut gateway, objects) = start(Binding::Require, &[(V4, "productpage")]);
    let mut standing = connect(&gateway, "productpage", V4);
    assert_eq!(ask(&mut standing).status, 200);
    assert!(get(&gateway, "reviews", V4).is_denied());
    assert!(get(&gateway, "reviews", V6).is_denied());
    assert!(passes(&gateway, "productpage"));
    assert!(!passes(&gateway, "reviews"));
    let told = |line: &Value| {
        let [verdict, reason, object] = ["verdict", "reason", "object"].map(|it| line[it].clone());
        (verdict, reason, object)
    };
    gateway.until("the access log says why", || {
        let log = gateway.access_log();
        let requests = log.iter().filter(|line| line["method"] == "GET");
        let open = json!("ExternalService/global/open");
        requests.map(told).collect::<Vec<_>>()
            == [
                (json!("allowed"), json!("no-policy"), open),
                (json!("denied"), json!("stolen-identity"), Value::Null),
                (json!("denied"), json!("unknown-address"), Value::Null),
            ]
    });
    gateway.until("so it does of the connection", || {
        let log = gateway.access_log();
        let refused = "rbac_access_denied_matched_policy[stolen-identity]";
        log.iter()
            .any(|line| line["connection_termination_details"] == refused)
    });

    // The address is another pod's now, for connections that stand too, and no listener drains.
    know(&mut gateway, &[(V4, "reviews"), (V6, "productpage")]);
    gateway.apply(&objects);
    gateway.until("it is known", || get(&gateway, "reviews", V4).status == 200);
    assert!(ask(&mut standing).is_denied());
    assert_eq!(get(&gateway, "productpage", V6).status, 200);
    assert!(passes(&gateway, "reviews"));
    assert!(!passes(&gateway, "productpage"));
    assert_eq!(gateway.stat("listener_manager.listener_modified"), 0);

    // Of no pod at all.
    know(&mut gateway, &[]);
    gateway.apply(&objects);
    gateway.until("nobody is known", || {
        get(&gateway, "reviews", V4).is_denied()
    });
    assert!(!passes(&gateway, "reviews"));
}

#[test]
fn an_address_that_nobody_is_known_to_have_may_pass() {
    let (gateway, _) = start(Binding::Prefer, &[(V4, "productpage")]);
    assert_eq!(get(&gateway, "productpage", V4).status, 200);
    assert!(get(&gateway, "reviews", V4).is_denied());
    assert_eq!(get(&gateway, "reviews", V6).status, 200);
    assert!(!passes(&gateway, "reviews"));
}

/// Thousands of pods: Envoy takes them, and hears of each that comes.
#[test]
fn thousands_of_pods_are_told_of() {
    let many = |index: u16| {
        let [high, low] = index.to_be_bytes();
        (IpAddr::from([10, 1, high, low]), "ratings")
    };
    let mut clients: Vec<(IpAddr, &str)> = (0..3_000).map(many).collect();
    clients.push((V4, "productpage"));
    let (mut gateway, objects) = start(Binding::Require, &clients);
    assert_eq!(get(&gateway, "productpage", V4).status, 200);
    assert!(get(&gateway, "ratings", V4).is_denied());
    let begin = Instant::now();
    clients.push((V6, "ratings"));
    know(&mut gateway, &clients);
    gateway.apply(&objects);
    gateway.until("it is known", || get(&gateway, "ratings", V6).status == 200);
    println!("one more of 3,000 after {:?}", begin.elapsed());
}
