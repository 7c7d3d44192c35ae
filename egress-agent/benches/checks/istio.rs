//! One Envoy as Istio configures a gateway: on one port it decides by native policies, which
//! `egressctl render istio` prints, on the other it asks.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpStream};

use egress_agent::gateway::istio::object::AuthorizationPolicy;
use egress_agent::gateway::{
    GatewayPolicy, ObjectName, OutboundPolicy, SpiffeId, compile, from_index, istio,
};
use egress_agent::policy_server::GatewayPod;
use egress_agent::policy_server::authz::Binding;

use crate::client::Connection;
use crate::cpus::Cpus;
use crate::gateways::{CLIENTS, Client, Side, Through, compare};
use crate::istio_envoy::{Decides, Envoy, Port, Upstream, free_ports};
use crate::istiod::translate;
use crate::mesh::{Authority, client_config};
use crate::objects::{self, GATEWAY_ID, TRUST_DOMAIN, index, served};
use crate::policy_server::{SERVER_ID, Server};
use crate::upstream;

const GATEWAY_NAME: &str = "gateway.test";
const UPSTREAM_NAME: &str = "api.example";

/// The policies of the whole cluster in either.
pub fn run(cpus: Option<&Cpus>) -> Through {
    let directory = tempfile::tempdir().expect("a directory");
    let put = |name: &str, text: &str| {
        fs::write(directory.path().join(name), text).expect("a file");
    };
    let (mesh, outside) = (Authority::new("mesh"), Authority::new("outside"));
    let gateway = mesh.sign(&[GATEWAY_NAME], &[GATEWAY_ID]);
    let agent = mesh.sign(&[], &[SERVER_ID]);
    put("gateway.crt", &gateway.pem);
    put("gateway.key", &gateway.key_pem);
    put("ca.crt", &mesh.pem());
    put("outside.crt", &outside.pem());
    put("tls.crt", &agent.pem);
    put("tls.key", &agent.key_pem);

    let numbers = free_ports(2);
    let (policy, native) = rendered(numbers[0]);
    let mut asked = served(numbers[1]);
    let upstream = Some(Upstream {
        port: upstream::serve_tls(&outside.sign(&[UPSTREAM_NAME], &[])),
        name: UPSTREAM_NAME,
    });
    let name = ObjectName::new("istio-egress", "egress-vg");
    let listener = |policy: &GatewayPolicy, number| {
        let listeners = &policy.gateways[&name].listeners;
        listeners[&number].clone()
    };
    let listeners = [
        listener(&policy, numbers[0]),
        listener(&asked.policy, numbers[1]),
    ];
    let natively = Decides::Natively {
        http: translate(&native, false),
        tcp: translate(&native, true),
    };
    let sides = numbers.iter().zip(&listeners);
    let ports: Vec<Port<'_>> = sides
        .zip([natively, Decides::ByCheck])
        .map(|((number, listener), decides)| Port {
            number: *number,
            listener,
            decides,
            upstream,
        })
        .collect();

    let server = Server::start(([127, 0, 0, 1], 0).into(), directory.path(), Binding::Off);
    // All of it is on loopback.
    let pod = GatewayPod {
        identity: SpiffeId::parse(GATEWAY_ID).expect("an identity"),
        gateways: BTreeSet::from([name.clone()]),
    };
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    asked.gateway_pods.insert(here, pod);
    server.serve(asked);
    let envoy = Envoy::start(directory.path(), &ports, server.address.port(), 9);
    let side = |number| Side::new(clients(&mesh, number), envoy.process(), cpus);
    compare(side(numbers[0]), side(numbers[1]))
}

/// What is rendered for Istio, for a gateway on this port.
fn rendered(port: u16) -> (GatewayPolicy, Vec<AuthorizationPolicy>) {
    let index = index(port);
    let outbound = OutboundPolicy::RegistryOnly;
    let objects = from_index::objects(&index, TRUST_DOMAIN, None, outbound);
    let (policy, _) = compile(&objects);
    let options = istio::Options {
        accept_hidden_dot_segments: true,
    };
    let rendered = istio::render(&objects, &policy, options);
    assert_eq!(rendered.problems, []);
    let native = rendered.policies.iter().map(|document| {
        let text = document.yaml().expect("YAML");
        serde_yaml_ng::from_str(&text).expect("an AuthorizationPolicy")
    });
    (policy, native.collect())
}

/// Clients that are spread evenly over the policies.
fn clients(mesh: &Authority, port: u16) -> Vec<Client> {
    let client = |at| {
        let (identity, policies) = objects::client(3 * at);
        let leaf = mesh.sign(&[], &[&identity]);
        let name = GATEWAY_NAME.try_into().expect("a name");
        let config = client_config(mesh, Some(&leaf));
        let session = rustls::ClientConnection::new(config, name).expect("a session");
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("Envoy listens");
        Client {
            connection: Connection::new(session, stream),
            asks: policies.map(objects::target).collect(),
        }
    };
    (0..CLIENTS).map(client).collect()
}
