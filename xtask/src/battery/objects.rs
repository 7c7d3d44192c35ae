//! What Services, labels and addresses that change hands could open.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use egress_battery::catalogue;
use egress_battery::craft::{self, Ends};
use serde_json::{Value, json};

use super::agent::Agent;
use super::table::Row;
use super::tries::{self, Way, came};
use super::world::{LISTENER, WORKLOAD, World, listen, of};
use crate::demo::signals;
use crate::node::{Backend, Pod, PodSpec, Service, ServicePort, objects, plan};

/// Cases by number and family that came out where nothing held.
pub(super) type Seen = BTreeSet<(u16, usize)>;

/// What was seen where nothing held, and the pod with two interfaces.
#[derive(Debug)]
pub(super) struct Control {
    came: Seen,
    second: Pod,
}

const UDP: u16 = plan::OUTSIDE_UDP;
/// Numbers of Services.
const NO_SELECTOR: u8 = 60;
const MIXED: u8 = 61;
const ADMIN: u8 = 62;
/// On the node: a NodePort that leads outside, and hostPorts of `ratings` and `web`.
const OUTSIDE_NODE_PORT: u16 = 30_999;
const HOST_PORT: u16 = 31_999;
pub(super) const WEB_HOST_PORT: u16 = 31_998;
/// Addresses outside that Services claim.
const EXTERNAL: u8 = 18;
const BALANCER: u8 = 19;
/// Number of the address among the pods that another node's tunnel has.
const TUNNEL: u8 = 250;
/// Number of the pod that a gateway is at first.
const REUSED: u8 = 21;

/// Where an attempt of one process goes.
type To = fn(usize) -> SocketAddr;

/// Whose attempt it is.
pub(super) type Whose = fn(&World) -> &Pod;

/// Attempts that take nothing but what stands.
const STANDING: [(u16, Whose, To, Way); 10] = [
    (
        301,
        |w| &w.fake,
        |i| SocketAddr::new(of(plan::OUTSIDE, i), UDP),
        Way::Udp,
    ),
    (
        302,
        |w| &w.strict,
        |i| SocketAddr::new(of(plan::pod(14), i), LISTENER),
        Way::Tcp,
    ),
    (
        306,
        |w| &w.web,
        |i| SocketAddr::new(of(plan::service(NO_SELECTOR), i), UDP),
        Way::Udp,
    ),
    (
        307,
        |w| &w.web,
        |i| SocketAddr::new(of(plan::service(MIXED), i), UDP),
        Way::Udp,
    ),
    (
        308,
        |w| &w.web,
        |i| SocketAddr::new(claimed(EXTERNAL)[i], UDP),
        Way::Udp,
    ),
    (
        309,
        |w| &w.web,
        |i| SocketAddr::new(claimed(BALANCER)[i], UDP),
        Way::Udp,
    ),
    (
        310,
        |w| &w.web,
        |i| SocketAddr::new(of(plan::OUTSIDE, i), UDP),
        Way::Udp,
    ),
    (
        311,
        |w| &w.web,
        |i| SocketAddr::new(of(plan::NODE, i), OUTSIDE_NODE_PORT),
        Way::Udp,
    ),
    (
        312,
        |w| &w.web,
        |i| SocketAddr::new(of(plan::NODE, i), HOST_PORT),
        Way::Tcp,
    ),
    (
        318,
        |w| &w.web,
        |i| SocketAddr::new(of(plan::pod(TUNNEL), i), OUTSIDE_NODE_PORT),
        Way::Udp,
    ),
];
/// The Service of a gateway's port that is no listener.
const ADMIN_PORT: u16 = 15_000;

fn claimed(number: u8) -> [IpAddr; 2] {
    let v6 = format!("2001:db8:113::{number}")
        .parse()
        .expect("an address");
    [IpAddr::from([203, 0, 113, number]), v6]
}

/// Makes the objects, and plays all of it while nothing holds.
pub(super) fn without(world: &World) -> Result<Control> {
    prepare(world)?;
    let mut control = Seen::new();
    for index in [0, 1] {
        signals::check()?;
        for (number, pod, to, way) in STANDING {
            if came(world, pod(world), to(index), way)? {
                control.insert((number, index));
            }
        }
        let admin = SocketAddr::new(of(plan::service(ADMIN), index), ADMIN_PORT);
        if came(world, &world.web, admin, Way::Tcp)? {
            control.insert((315, index));
        }
    }
    for (number, spec) in [
        (300, PodSpec::new("bookinfo", "init-0", 41)),
        (303, PodSpec::new("bookinfo", "reuser-0", REUSED)),
        (313, PodSpec::new("bookinfo", "hostly-0", 50).host_network()),
    ] {
        let pod = world.node.pod(&spec)?;
        for index in [0, 1] {
            let to = SocketAddr::new(of(plan::OUTSIDE, index), UDP);
            if came(world, &pod, to, Way::Udp)? {
                control.insert((number, index));
            }
        }
        if number == 303 {
            listen(&pod, LISTENER)?;
            for index in [0, 1] {
                let to = SocketAddr::new(of(plan::pod(REUSED), index), LISTENER);
                if came(world, &world.strict, to, Way::Tcp)? {
                    control.extend([(304, index), (305, index)]);
                }
            }
        }
        pod.delete()?;
    }
    let second = second(world)?;
    for index in [0, 1] {
        if by_second(world, &second, index)? {
            control.insert((314, index));
        }
    }
    Ok(Control {
        came: control,
        second,
    })
}

fn prepare(world: &World) -> Result<()> {
    let outside = Backend {
        ips: plan::OUTSIDE,
        pod: None,
    };
    let service = |name: &str, number, port: ServicePort| Service {
        namespace: "bookinfo".to_owned(),
        name: name.to_owned(),
        selector: Vec::new(),
        cluster_ips: plan::service(number),
        ports: vec![port],
        backend: outside.clone(),
    };
    world.service(&service(
        "no-selector",
        NO_SELECTOR,
        ServicePort::udp("udp", UDP, UDP),
    ))?;
    let node_port = ServicePort::udp("udp", UDP, UDP).node_port(OUTSIDE_NODE_PORT);
    world.service(&service("node-port", 63, node_port))?;
    let mixed = service("mixed", MIXED, ServicePort::udp("udp", UDP, UDP));
    world.service(&mixed)?;
    for (mut slice, ratings) in objects::endpoint_slices(&mixed)
        .into_iter()
        .zip(world.ratings.ips().all())
    {
        let inside = json!({ "addresses": [ratings], "conditions": { "ready": true } });
        slice["endpoints"]
            .as_array_mut()
            .context("endpoints")?
            .insert(0, inside);
        world.state.apply(&slice)?;
    }
    let mut admin = super::world::service(
        &world.gateway,
        "admin",
        ADMIN,
        vec![ServicePort::tcp("admin", ADMIN_PORT, ADMIN_PORT)],
    );
    "istio-egress".clone_into(&mut admin.namespace);
    world.service(&admin)?;
    // Claims on addresses outside, by Services that lead to an ordinary pod.
    let port = ServicePort::udp("udp", UDP, WORKLOAD);
    for (name, number, field) in [("external", 64, EXTERNAL), ("balancer", 65, BALANCER)] {
        let service = super::world::service(&world.ratings, name, number, vec![port.clone()]);
        let mut object = objects::service(&service);
        if name == "external" {
            object["spec"]["externalIPs"] = json!(claimed(field));
        } else {
            object["spec"]["type"] = json!("LoadBalancer");
            let ingress = claimed(field).map(|ip| json!({ "ip": ip }));
            object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        }
        world.state.apply(&object)?;
        for slice in objects::endpoint_slices(&service) {
            world.state.apply(&slice)?;
        }
    }
    world.state.apply(&json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": "bookinfo", "name": "by-name" },
        "spec": { "type": "ExternalName", "externalName": plan::OUTSIDE_NAME },
    }))?;
    world.state.apply(&another_node())?;
    world.node.host().nft(&host_ports(world)).map(drop)
}

/// One whose tunnel's address lies among the pods.
fn another_node() -> Value {
    let [v4, v6] = plan::pod(TUNNEL).all();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "another", "annotations": {
            "projectcalico.org/IPv4VXLANTunnelAddr": v4,
            "projectcalico.org/IPv6VXLANTunnelAddr": v6,
        } },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.11" }] },
    })
}

/// As a CNI's portmap does it.
fn host_ports(world: &World) -> String {
    let mut rules = String::new();
    for (port, pod) in [(HOST_PORT, &world.ratings), (WEB_HOST_PORT, &world.web)] {
        let ([n4, n6], [p4, p6]) = (plan::NODE.all(), pod.ips().all());
        let _ = write!(
            rules,
            "ip daddr {n4} tcp dport {port} dnat ip to {p4}:{WORKLOAD}\n\
             ip6 daddr {n6} tcp dport {port} dnat ip6 to [{p6}]:{WORKLOAD}\n"
        );
    }
    // And as the other node takes what comes to a NodePort there.
    let ([t4, t6], [o4, o6]) = (plan::pod(TUNNEL).all(), plan::OUTSIDE.all());
    let _ = write!(
        rules,
        "ip daddr {t4} udp dport {OUTSIDE_NODE_PORT} dnat ip to {o4}:{UDP}\n\
         ip6 daddr {t6} udp dport {OUTSIDE_NODE_PORT} dnat ip6 to [{o6}]:{UDP}\n"
    );
    format!(
        "table inet hostport {{\n\
         chain prerouting {{\n\
         type nat hook prerouting priority -110\n\
         {rules}}}\n\
         }}\n"
    )
}

/// A pod with a second interface, whose host side routes on as the first does.
fn second(world: &World) -> Result<Pod> {
    let spec = PodSpec::new("bookinfo", "second", 15);
    world.state.apply(&objects::pod(&spec))?;
    let pod = world.node.pod(&spec)?;
    world.node.host().ip(&format!(
        "link add second0 type veth peer name net1 netns {}\n\
         link set second0 address {SECOND_MAC} up\n",
        pod.netns().name()
    ))?;
    pod.netns().ip("link set net1 up\n")?;
    Ok(pod)
}

const SECOND_MAC: &str = "ee:ee:ee:ee:ee:ef";

/// In the pod's own name, by the second interface.
fn by_second(world: &World, pod: &Pod, index: usize) -> Result<bool> {
    let (own, to) = (of(pod.ips(), index), of(plan::OUTSIDE, index));
    let token = tries::token();
    let mark = world.wire.mark();
    let ends = Ends::new(own, to).context("one family")?;
    let datagram = craft::udp(ends, (40_000, UDP), token.as_bytes());
    let packet = craft::packet(ends, craft::protocol::UDP, &datagram);
    pod.netns().within(move || {
        craft::send_cooked("net1", [0xee, 0xee, 0xee, 0xee, 0xee, 0xef], &packet)
            .context("cannot send by the second interface")
    })?;
    Ok(world
        .wire
        .since(mark)
        .iter()
        .any(|packet| packet.contains(&token)))
}

/// Plays what objects could open while the lockdown holds.
pub(super) fn held(
    world: &World,
    agent: &mut Agent,
    control: &Control,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let mut add = |agent: &Agent,
                   number: u16,
                   pod: Option<&Pod>,
                   index: usize,
                   play: &dyn Fn() -> Result<bool>| {
        signals::check()?;
        rows.push(row(world, agent, control, (number, pod, index), play)?);
        anyhow::Ok(())
    };
    let out = |index| SocketAddr::new(of(plan::OUTSIDE, index), UDP);
    for index in [0, 1] {
        for (number, pod, to, way) in STANDING {
            let pod = pod(world);
            add(agent, number, Some(pod), index, &|| {
                came(world, pod, to(index), way)
            })?;
        }
        let admin = SocketAddr::new(of(plan::service(ADMIN), index), ADMIN_PORT);
        add(agent, 315, Some(&world.web), index, &|| {
            came(world, &world.web, admin, Way::Tcp)
        })?;
    }
    let init = world.node.pod(&PodSpec::new("bookinfo", "init", 42))?;
    for index in [0, 1] {
        add(agent, 300, None, index, &|| {
            came(world, &init, out(index), Way::Udp)
        })?;
    }
    init.delete()?;
    let hostly = PodSpec::new("bookinfo", "hostly", 50).host_network();
    let pod = world.node.pod(&hostly)?;
    agent.declare(|| world.state.apply(&objects::pod(&hostly)))?;
    let standing = &control.second;
    for index in [0, 1] {
        add(agent, 313, Some(&pod), index, &|| {
            let tcp = SocketAddr::new(of(plan::OUTSIDE, index), plan::OUTSIDE_HTTP);
            Ok(came(world, &pod, out(index), Way::Udp)?
                | came(world, &pod, tcp, Way::Tcp)?
                | came(world, &pod, out(index), Way::Raw)?)
        })?;
        add(agent, 314, Some(standing), index, &|| {
            by_second(world, standing, index)
        })?;
    }
    changing_hands(world, agent, &mut add)
}

type Add<'a> =
    dyn FnMut(&Agent, u16, Option<&Pod>, usize, &dyn Fn() -> Result<bool>) -> Result<()> + 'a;

/// A gateway that comes, is not ready, goes; and a held pod at its address.
fn changing_hands(world: &World, agent: &mut Agent, add: &mut Add<'_>) -> Result<()> {
    let spec =
        PodSpec::new("istio-egress", "gateway-2", REUSED).label("app", "istio-egressgateway");
    let gateway = world.node.pod(&spec)?;
    listen(&gateway, LISTENER)?;
    let mut object = objects::pod(&spec);
    let service = super::world::service(
        &gateway,
        "gateway-2",
        66,
        vec![ServicePort::tcp("https", 443, LISTENER)],
    );
    agent.declare(|| {
        world.state.apply(&object)?;
        world.service(&service)
    })?;
    let to = |index| SocketAddr::new(of(plan::pod(REUSED), index), LISTENER);
    for index in [0, 1] {
        let reached = came(world, &world.strict, to(index), Way::Tcp)?;
        anyhow::ensure!(
            reached,
            "a gateway that is ready is not reached at {}",
            to(index)
        );
    }
    object["status"]["conditions"] = json!([{ "type": "Ready", "status": "False" }]);
    agent.declare(|| world.state.apply(&object))?;
    for index in [0, 1] {
        add(agent, 305, Some(&world.strict), index, &|| {
            came(world, &world.strict, to(index), Way::Tcp)
        })?;
    }
    gateway.delete()?;
    let spec = PodSpec::new("bookinfo", "reuser", REUSED);
    let reuser = world.node.pod(&spec)?;
    listen(&reuser, LISTENER)?;
    agent.declare(|| {
        world.state.remove(&objects::file_name(&object))?;
        for slice in objects::endpoint_slices(&service) {
            world.state.remove(&objects::file_name(&slice))?;
        }
        world.state.apply(&objects::pod(&spec))
    })?;
    // The pod's own hooks come with the pass that knows it.
    sleep(Duration::from_millis(300));
    for index in [0, 1] {
        let out = SocketAddr::new(of(plan::OUTSIDE, index), UDP);
        add(agent, 303, Some(&reuser), index, &|| {
            came(world, &reuser, out, Way::Udp)
        })?;
        add(agent, 304, Some(&world.strict), index, &|| {
            came(world, &world.strict, to(index), Way::Tcp)
        })?;
    }
    Ok(())
}

/// Plays one; without a pod it is one that the kernel does not know.
fn row(
    world: &World,
    agent: &Agent,
    control: &Control,
    (number, pod, index): (u16, Option<&Pod>, usize),
    play: &dyn Fn() -> Result<bool>,
) -> Result<Row> {
    let case = catalogue::find(number).context("a case of the catalogue")?;
    let counters = || match pod {
        Some(pod) => agent.counters(&world.node, pod),
        None => agent.unknown(&world.node),
    };
    let before = counters()?;
    let out = play()?;
    let mut row = Row::of(case, index);
    row.reasons = since(&before, counters()?);
    row.judge(control.came.contains(&(number, index)), out);
    Ok(row)
}

pub(super) fn since(
    before: &BTreeMap<String, u64>,
    after: BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    after
        .into_iter()
        .map(|(reason, count)| {
            let old = before.get(&reason).copied().unwrap_or_default();
            (reason, count.saturating_sub(old))
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}
