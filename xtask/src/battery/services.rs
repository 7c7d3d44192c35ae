//! Clients of Services of every kind, and health checks of their load balancers. `strict`, where not even
//! pods may be reached, is who is asked: what its clients get, they get as replies.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::objects::Whose;
use super::tries::{Way, came, token};
use super::works::Play;
use super::world::{self, NODE_PORT, WORKLOAD, World, of};
use crate::node::plan::Both;
use crate::node::{Netns, Pod, ServicePort, objects, plan};

const WAIT: Duration = Duration::from_secs(5);
/// Numbers of Services: with the client's own address (Local), in the node's name (Cluster), and with
/// an address of a load balancer.
const LOCAL: u8 = 67;
const CLUSTER: u8 = 68;
const BALANCED: u8 = 69;
/// The first two on the node.
const LOCAL_PORT: u16 = 30_083;
const CLUSTER_PORT: u16 = 30_082;
/// What pods in the node's own network listen on: kube-proxy for load balancers, and a held one.
const HEALTH: u16 = 31_090;
const HOSTED: u16 = 31_091;
/// Another node, and a load balancer.
const OTHER_NODE: Both = Both {
    v4: Ipv4Addr::new(192, 0, 2, 11),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x11),
};
const BALANCER: Both = Both {
    v4: Ipv4Addr::new(198, 51, 100, 69),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x69),
};
/// The outside host, as it is on the node's own network.
const CLIENT: Both = plan::ROUTER;

pub(super) const PLAYS: [(u16, Whose, Play); 9] = [
    (
        377,
        |w| &w.strict,
        |w, i| {
            both(
                w.node.outside(),
                at(plan::NODE, i, CLUSTER_PORT),
                plan::NODE,
            )
        },
    ),
    (
        378,
        |w| &w.strict,
        |w, i| both(w.node.outside(), at(OTHER_NODE, i, LOCAL_PORT), OTHER_NODE),
    ),
    (
        379,
        |w| &w.strict,
        |w, i| both(w.node.host(), at(plan::NODE, i, LOCAL_PORT), plan::NODE),
    ),
    (
        380,
        |w| &w.strict,
        |w, i| {
            both(
                w.ratings.netns(),
                at(plan::NODE, i, LOCAL_PORT),
                w.ratings.ips(),
            )
        },
    ),
    (
        381,
        |w| &w.strict,
        |w, i| by(w, &w.fake, at(plan::service(LOCAL), i, WORKLOAD)),
    ),
    (
        382,
        |w| &w.web,
        |w, i| by(w, &w.web, at(plan::service(11), i, WORKLOAD)),
    ),
    (
        383,
        |w| &w.strict,
        |w, i| both(w.node.outside(), at(BALANCER, i, WORKLOAD), CLIENT),
    ),
    (
        384,
        |w| &w.kube_proxy,
        |w, i| tcp(w.node.outside(), at(plan::NODE, i, HEALTH), CLIENT),
    ),
    (
        385,
        |w| &w.hosted,
        |w, i| both(w.node.outside(), at(plan::NODE, i, HOSTED), CLIENT),
    ),
];

/// The same where these ports of the node are excepted for `bookinfo`.
pub(super) const EXCEPTED: [(u16, Whose, Play); 2] = [
    (
        386,
        |w| &w.fake,
        |w, i| by(w, &w.fake, at(plan::NODE, i, LOCAL_PORT)),
    ),
    (
        387,
        |w| &w.web,
        |w, i| by(w, &w.web, at(plan::NODE, i, NODE_PORT)),
    ),
];

/// What that takes in its lockdown.
pub(super) fn exception() -> Value {
    let ports: Vec<Value> = [LOCAL_PORT, NODE_PORT]
        .iter()
        .flat_map(|port| {
            ["TCP", "UDP"].map(|protocol| json!({ "port": port, "protocol": protocol }))
        })
        .collect();
    let [v4, v6] = plan::NODE.all();
    let cidrs = [format!("{v4}/32"), format!("{v6}/128")];
    let cidrs = cidrs.map(|cidr| json!({ "cidr": cidr, "ports": ports }));
    json!({ "cidrs": cidrs })
}

/// Makes the Services, and the other node.
pub(super) fn prepare(world: &World) -> Result<()> {
    for (pod, port) in [
        (&world.strict, WORKLOAD),
        (&world.kube_proxy, HEALTH),
        (&world.hosted, HOSTED),
    ] {
        let port = port.to_string();
        pod.helper("app", &["serve-workload", &pod.spec().name, &port])?
            .spawn("app")?;
    }
    for (name, number, node_port) in [
        ("local", LOCAL, Some(LOCAL_PORT)),
        ("cluster", CLUSTER, Some(CLUSTER_PORT)),
        ("balanced", BALANCED, None),
    ] {
        let ports = ["TCP", "UDP"].map(|protocol| ServicePort {
            protocol,
            node_port,
            ..ServicePort::tcp(
                if protocol == "TCP" { "tcp" } else { "udp" },
                WORKLOAD,
                WORKLOAD,
            )
        });
        let service = world::service(&world.strict, name, number, ports.to_vec());
        world.service(&service)?;
        let mut object = objects::service(&service);
        if number == LOCAL {
            object["spec"]["externalTrafficPolicy"] = json!("Local");
        } else if number == BALANCED {
            object["spec"]["type"] = json!("LoadBalancer");
            object["spec"]["externalTrafficPolicy"] = json!("Local");
            object["spec"]["healthCheckNodePort"] = json!(HEALTH);
            let ingress = BALANCER.all().map(|ip| json!({ "ip": ip }));
            object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        }
        world.state.apply(&object)?;
    }
    world.node.host().nft(&on_this_node(world))?;
    let outside = world.node.outside();
    let mut setup = String::new();
    for (((other, balancer), node), bits) in OTHER_NODE
        .all()
        .into_iter()
        .zip(BALANCER.all())
        .zip(plan::NODE.all())
        // Not what clients choose for themselves.
        .zip(["24", "64 nodad preferred_lft 0"])
    {
        let _ = write!(
            setup,
            "addr add {other}/{bits} dev uplink0\nroute add {balancer} via {node}\n"
        );
    }
    outside.ip(&setup)?;
    outside.nft(&on_the_other(world)).map(drop)
}

/// What kube-proxy does besides: in the node's name for `Cluster`, and for a pod that reaches itself;
/// the load balancer's address.
fn on_this_node(world: &World) -> String {
    let [s4, s6] = world.strict.ips().all();
    let [w4, w6] = world.web.ips().all();
    let [b4, b6] = BALANCER.all();
    format!(
        "table inet kube-proxy-more {{\n\
         chain prerouting {{\n\
         type nat hook prerouting priority dstnat\n\
         ip daddr {b4} meta l4proto {{ tcp, udp }} th dport {WORKLOAD} dnat ip to {s4}\n\
         ip6 daddr {b6} meta l4proto {{ tcp, udp }} th dport {WORKLOAD} dnat ip6 to {s6}\n\
         }}\n\
         chain postrouting {{\n\
         type nat hook postrouting priority srcnat\n\
         meta l4proto {{ tcp, udp }} ct original proto-dst {CLUSTER_PORT} masquerade\n\
         ip saddr {w4} ip daddr {w4} masquerade\n\
         ip6 saddr {w6} ip6 daddr {w6} masquerade\n\
         }}\n\
         }}\n"
    )
}

/// Clients that come in by another node are passed on to the pod in that node's name.
fn on_the_other(world: &World) -> String {
    let [s4, s6] = world.strict.ips().all();
    let [o4, o6] = OTHER_NODE.all();
    format!(
        "table inet other-node {{\n\
         chain output {{\n\
         type nat hook output priority -100\n\
         ip daddr {o4} meta l4proto {{ tcp, udp }} th dport {LOCAL_PORT} dnat ip to {s4}:{WORKLOAD}\n\
         ip6 daddr {o6} meta l4proto {{ tcp, udp }} th dport {LOCAL_PORT} dnat ip6 to [{s6}]:{WORKLOAD}\n\
         }}\n\
         chain postrouting {{\n\
         type nat hook postrouting priority srcnat\n\
         ip daddr {s4} ct status dnat snat ip to {o4}\n\
         ip6 daddr {s6} ct status dnat snat ip6 to {o6}\n\
         }}\n\
         }}\n"
    )
}

fn at(ips: Both, index: usize, port: u16) -> SocketAddr {
    SocketAddr::new(of(ips, index), port)
}

/// A held pod's process as the client, by TCP and UDP.
fn by(world: &World, pod: &Pod, to: SocketAddr) -> Result<()> {
    for way in [Way::Tcp, Way::Udp] {
        ensure!(came(world, pod, to, way)?, "{to} is not reached by {way:?}");
    }
    Ok(())
}

/// A client in this namespace, by UDP and by TCP, by which the pod sees it as one of these.
fn both(netns: &Netns, to: SocketAddr, seen: Both) -> Result<()> {
    tcp(netns, to, seen)?;
    udp(netns, to)
}

/// The answer tells whose address the client had.
fn tcp(netns: &Netns, to: SocketAddr, seen: Both) -> Result<()> {
    let answer = netns.within(move || {
        let mut stream = TcpStream::connect_timeout(&to, WAIT)
            .with_context(|| format!("{to} is not reached by TCP"))?;
        stream.set_read_timeout(Some(WAIT))?;
        let asked = format!("GET /{} HTTP/1.1\r\nhost: it\r\n\r\n", token());
        stream.write_all(asked.as_bytes())?;
        let mut answer = String::new();
        let mut buffer = [0; 1024];
        // It is the last thing that is said.
        while !answer.contains("\"url\"") {
            let length = stream.read(&mut buffer).context("no answer came by TCP")?;
            ensure!(length > 0, "{to} closed the connection");
            answer.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        Ok(answer)
    })?;
    let client = format!("\"origin\":\"{}\"", of(seen, usize::from(to.is_ipv6())));
    let said = answer.lines().last().unwrap_or_default();
    ensure!(said.contains(&client), "no {client} in {said}");
    Ok(())
}

fn udp(netns: &Netns, to: SocketAddr) -> Result<()> {
    netns.within(move || {
        let any: IpAddr = if to.is_ipv4() {
            [0; 4].into()
        } else {
            [0_u16; 8].into()
        };
        let socket = UdpSocket::bind((any, 0)).context("cannot open a socket")?;
        socket.set_read_timeout(Some(WAIT))?;
        socket.connect(to)?;
        socket.send(token().as_bytes())?;
        socket
            .recv(&mut [0; 64])
            .map(drop)
            .with_context(|| format!("no answer came from {to} by UDP"))
    })
}
