use super::*;

const NODE: i32 = 0;
const POD: i32 = 4;
const OTHER: i32 = 9;

fn link(ifindex: u32, name: &str, kind: &str, to: Option<(u32, i32)>) -> Link {
    Link {
        ifindex,
        name: name.into(),
        hardware: ARPHRD_ETHER,
        kind: (!kind.is_empty()).then(|| kind.into()),
        link: to.map(|(link, _)| link),
        link_nsid: to.map(|(_, nsid)| nsid),
    }
}

fn loopback() -> Link {
    Link {
        hardware: ARPHRD_LOOPBACK,
        ..link(1, "lo", "", None)
    }
}

fn uplink() -> Link {
    link(2, "eth0", "veth", Some((7, NODE)))
}

/// The node: a loopback, a network card, and veths to two pods.
fn node() -> Vec<Link> {
    vec![
        loopback(),
        link(3, "eth0", "", None),
        link(7, "veth7", "veth", Some((2, POD))),
        link(8, "veth8", "veth", Some((2, OTHER))),
    ]
}

fn judge(node: &[Link], in_node: Option<u32>, inside: Vec<(i32, Interior)>) -> Coverage {
    let inside: BTreeMap<_, _> = inside.into_iter().collect();
    assess(
        node,
        NODE,
        in_node,
        &inside.iter().map(|(nsid, all)| (*nsid, all)).collect(),
    )
}

fn reasons(inside: Vec<Link>) -> String {
    judge(&node(), None, vec![(POD, Ok(inside))])
        .reasons
        .join("; ")
}

#[test]
fn a_pod_with_a_veth_is_covered() {
    let found = judge(&node(), None, vec![(POD, Ok(vec![loopback(), uplink()]))]);
    let devices = vec![Device {
        ifindex: 7,
        name: "veth7".into(),
    }];
    assert_eq!(
        found,
        Coverage {
            devices,
            ..Coverage::default()
        }
    );
}

#[test]
fn virtual_devices_on_top_of_the_veth_do_no_harm() {
    let inside = vec![
        loopback(),
        uplink(),
        link(3, "eth0.5", "vlan", Some((2, POD))),
        link(4, "tun0", "tun", None),
        link(5, "mv0", "macvlan", None),
    ];
    assert_eq!(reasons(inside), "");
}

#[test]
fn a_second_way_out_is_told_beside_a_covered_one() {
    for (second, told) in [
        (
            link(3, "net1", "macvlan", Some((3, NODE))),
            "net1 in it is a macvlan on eth0",
        ),
        (link(3, "net1", "", None), "net1 in it is a hardware device"),
        (
            link(3, "net1", "veth", Some((5, 12))),
            "neither the node's nor the pod's",
        ),
        (link(3, "wg0", "wireguard", Some((0, NODE))), "wg0"),
        (
            link(3, "net1", "veth", Some((99, NODE))),
            "is not there yet",
        ),
        // A node's device of that index that is another pod's.
        (
            link(3, "net1", "veth", Some((8, NODE))),
            "net1 in it is a veth on veth8",
        ),
    ] {
        let said = reasons(vec![loopback(), uplink(), second]);
        assert!(said.contains(told), "{said}");
    }
}

#[test]
fn devices_that_can_t_take_the_hook_are_told() {
    let mut node = node();
    node[2].kind = Some("netkit".into());
    let inside = vec![loopback(), link(2, "eth0", "netkit", Some((7, NODE)))];
    let found = judge(&node, None, vec![(POD, Ok(inside.clone()))]);
    assert_eq!(found.devices, []);
    assert_eq!(
        found.reasons,
        ["the node's device veth7 that leads to it is a netkit, no veth"]
    );

    node[2].kind = Some("veth".into());
    node[2].hardware = 65534;
    let found = judge(&node, None, vec![(POD, Ok(inside))]);
    assert_eq!(
        found.reasons,
        ["the node's device veth7 that leads to it is not Ethernet"]
    );
}

#[test]
fn no_device_at_all_is_told() {
    let found = judge(&node(), None, vec![(12, Ok(vec![loopback()]))]);
    assert_eq!(
        found.reasons,
        ["no device of the node leads to its network namespace"]
    );
    let found = judge(&node(), None, vec![(POD, Err("refused".into()))]);
    assert_eq!(
        found.reasons,
        ["refused"],
        "what can't be looked at is not covered"
    );
}

#[test]
fn all_namespaces_of_a_pod_count() {
    let mut inner = uplink();
    inner.link_nsid = Some(POD);
    let outer = vec![loopback(), uplink(), link(3, "in0", "veth", Some((2, 12)))];
    let found = judge(
        &node(),
        None,
        vec![(POD, Ok(outer)), (12, Ok(vec![loopback(), inner]))],
    );
    assert_eq!(found.reasons, [] as [String; 0]);

    let second = vec![loopback(), link(2, "eth0", "veth", Some((8, NODE)))];
    let found = judge(
        &node(),
        None,
        vec![(POD, Ok(vec![loopback(), uplink()])), (OTHER, Ok(second))],
    );
    let indexes: Vec<_> = found.devices.iter().map(|device| device.ifindex).collect();
    assert_eq!((indexes, found.reasons), (vec![7, 8], vec![]));
}

#[test]
fn host_network_is_all_or_uncoverable() {
    let found = judge(&node(), Some(44), vec![]);
    assert_eq!(
        found,
        Coverage {
            host_network: true,
            ..Coverage::default()
        }
    );

    let sandbox = judge(&node(), Some(44), vec![(12, Ok(vec![loopback()]))]);
    assert!(sandbox.host_network && sandbox.reasons.is_empty());

    let mixed = judge(
        &node(),
        Some(44),
        vec![(POD, Ok(vec![loopback(), uplink()]))],
    );
    assert!(!mixed.host_network);
    assert_eq!(mixed.devices.len(), 1);
    assert!(
        mixed.reasons[0].contains("process 44"),
        "{:?}",
        mixed.reasons
    );
}
