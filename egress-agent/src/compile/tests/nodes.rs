//! What is a node's, wherever its address lies.

use egress_common::reason::Reason;
use serde_json::{Value, json};

use super::make::{TCP, UDP, ask, mk_annotated_node, mk_node, mk_service, mk_slice, reason};
use super::reach::held;
use crate::compile::Compiled;

const OVERLAYS: [u16; 11] = [
    4789, 5555, 6081, 6635, 6783, 6784, 8285, 8472, 51820, 51821, 51871,
];

#[test]
fn nodes_are_open_but_for_their_tunnels() {
    let compiled = held(json!({"cluster": ["Pods", "Nodes"]}), []);
    for port in OVERLAYS {
        assert!(
            !reason(&compiled, "web", "192.168.0.2", UDP, port).passes(),
            "{port}"
        );
        assert_eq!(
            reason(&compiled, "web", "192.168.0.2", TCP, port),
            Reason::Cluster
        );
        for beside in [port - 1, port + 1] {
            assert_eq!(
                reason(&compiled, "web", "192.168.0.2", UDP, beside).passes(),
                !OVERLAYS.contains(&beside),
                "{beside}"
            );
        }
    }
    assert_eq!(
        reason(&compiled, "web", "192.168.0.2", 1, 0),
        Reason::Cluster,
        "ping"
    );
    assert_eq!(
        reason(&compiled, "web", "10.244.0.1", UDP, 80),
        Reason::Excepted
    );
}

#[test]
fn tunnels_of_other_nodes_are_no_pods_wherever_their_addresses_lie() {
    let tunnels = [
        ("projectcalico.org/IPv4IPIPTunnelAddr", "10.244.7.64"),
        ("projectcalico.org/IPv4VXLANTunnelAddr", "10.244.7.128"),
        ("projectcalico.org/IPv6VXLANTunnelAddr", "fd00:244::7:1"),
        (
            "projectcalico.org/IPv4WireguardInterfaceAddr",
            "10.244.7.192",
        ),
        (
            "projectcalico.org/IPv6WireguardInterfaceAddr",
            "fd00:244::7:2",
        ),
        ("network.cilium.io/ipv4-cilium-host", "10.244.8.77"),
        ("network.cilium.io/ipv6-cilium-host", "fd00:244::7:3"),
        ("io.cilium.network.ipv4-cilium-host", "10.244.8.78"),
        ("io.cilium.network.ipv6-cilium-host", "fd00:244::7:4"),
        ("flannel.alpha.coreos.com/public-ip", "10.244.8.79"),
        ("flannel.alpha.coreos.com/public-ipv6", "fd00:244::7:5"),
    ];
    let annotations: serde_json::Map<String, Value> = tunnels
        .iter()
        .map(|(name, ip)| ((*name).to_owned(), json!(ip)))
        .collect();
    let node = || mk_annotated_node("n3", &["10.244.3.0/24"], &[], json!(annotations));
    let pods = held(json!({}), [node()]);
    let nodes = held(json!({"cluster": ["Pods", "Nodes"]}), [node()]);
    for (name, ip) in tunnels {
        for (proto, port) in [(TCP, 30_080), (TCP, 10_250), (UDP, 8472)] {
            let closed = reason(&pods, "web", ip, proto, port);
            assert_eq!(closed, Reason::Excepted, "{name} {proto} {port}");
        }
        assert_eq!(reason(&nodes, "web", ip, TCP, 10_250), Reason::Cluster);
        assert!(!reason(&nodes, "web", ip, UDP, 8472).passes(), "{name}");
        // Nor does a slice make a pod of it that says so.
        let service = mk_service("shop", "db", "10.96.0.20", 80, json!({}));
        let slice = mk_slice("shop", "db", 30_080, &[(ip, Some("db"))]);
        let behind = held(json!({"cluster": ["Services"]}), [node(), service, slice]);
        assert!(!reason(&behind, "web", "10.96.0.20", TCP, 80).passes());
    }
    let odd = json!({
        "projectcalico.org/IPv4VXLANTunnelAddr": "10.244.7.128/32",
        "network.cilium.io/ipv4-cilium-host": "here",
        "projectcalico.org/IPv4IPIPTunnelAddr": "",
    });
    let odd = held(json!({}), [mk_annotated_node("n3", &[], &[], odd)]);
    assert!(!reason(&odd, "web", "10.244.7.128", TCP, 80).passes());
    let [problem] = odd.problems.as_slice() else {
        panic!("{:?}", odd.problems);
    };
    assert_eq!(
        problem.field,
        "metadata.annotations[network.cilium.io/ipv4-cilium-host]"
    );
}

#[test]
fn the_first_two_addresses_of_a_range_of_pods_are_its_nodes() {
    let node = || mk_node("n3", &["10.244.3.0/24", "fd00:244::3:0/112"], &[]);
    let compiled = held(json!({}), [node()]);
    for ip in ["10.244.3.0", "10.244.3.1", "fd00:244::3:0", "fd00:244::3:1"] {
        assert_eq!(
            reason(&compiled, "web", ip, TCP, 30_080),
            Reason::Excepted,
            "{ip}"
        );
    }
    for ip in ["10.244.3.2", "fd00:244::3:2", "10.244.2.255"] {
        assert_eq!(reason(&compiled, "web", ip, TCP, 80), Reason::Cluster);
    }
    // A range of one address is a pod's.
    let one = held(json!({}), [mk_node("n3", &["10.244.3.0/32"], &[])]);
    assert_eq!(reason(&one, "web", "10.244.3.0", TCP, 80), Reason::Cluster);
    // And one within those of a node opens nothing.
    let within = mk_node("n4", &["10.244.3.1/32"], &[]);
    let within = held(json!({}), [node(), within]);
    assert!(!reason(&within, "web", "10.244.3.1", TCP, 80).passes());
}

fn leading_out(count: u16) -> Compiled {
    let services = (0..count).flat_map(|i| {
        let (name, ip) = (format!("out-{i}"), format!("10.96.0.{}", 30 + i));
        let port = json!({"ports": [{"port": 80, "protocol": "TCP", "nodePort": 30_000 + 2 * i}]});
        [
            mk_service("shop", &name, &ip, 80, port),
            mk_slice("shop", &name, 80, &[("203.0.113.9", None)]),
        ]
    });
    let second = mk_node("n3", &[], &["192.168.0.3"]);
    held(json!({"cluster": ["Nodes"]}), services.chain([second]))
}

#[test]
fn a_node_with_many_holes_keeps_what_is_beside_them() {
    let compiled = leading_out(8);
    for port in 30_000..30_016 {
        assert_eq!(
            reason(&compiled, "web", "192.168.0.2", TCP, port).passes(),
            port % 2 == 1,
            "{port}"
        );
    }
    assert!(reason(&compiled, "web", "192.168.0.2", TCP, 10_250).passes());
}

#[test]
fn what_has_no_room_beside_holes_is_told() {
    let told = |count| {
        let compiled = leading_out(count);
        let tcp = ask(&compiled, "web", "192.168.0.2", TCP, 10_250);
        let udp = ask(&compiled, "web", "192.168.0.2", UDP, 10_250);
        let problems: Vec<String> = compiled.problems.iter().map(ToString::to_string).collect();
        (tcp, udp, problems)
    };
    let (tcp, udp, problems) = told(3);
    assert!(tcp.0.passes() && udp.0.passes());
    assert_eq!(problems, Vec::<String>::new());

    let (tcp, udp, problems) = told(4);
    assert!(tcp.0.passes());
    let rule = "Service/shop/out-0 leads elsewhere, and there is no room for UDP beside it";
    assert_eq!(udp, (Reason::Excepted, rule.to_owned()));
    let [problem] = problems.as_slice() else {
        panic!("one for all nodes: {problems:?}");
    };
    assert!(
        problem.contains("spec.allow.cluster Nodes: UDP left out at 192.168.0.2/32 and elsewhere"),
        "{problem}"
    );

    let (tcp, udp, problems) = told(14);
    let rule = "Service/shop/out-0 leads elsewhere, and there is no room beside it";
    assert_eq!(tcp, (Reason::Excepted, rule.to_owned()));
    assert_eq!(udp.0, Reason::Excepted);
    assert!(problems[0].contains("Nodes: left out at"), "{problems:?}");
}
