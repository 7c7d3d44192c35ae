//! What is open beside the gateways, and what stays closed within it.

use serde_json::{Value, json};

use super::make::{
    TCP, UDP, ask, compiled, compiled_with, index, ip, mk_lockdown, mk_node, mk_pod, mk_raw_slice,
    mk_service, mk_slice, reason, settings,
};
use crate::compile::Compiled;
use crate::index::Object;
use egress_common::reason::Reason;

pub fn held(allow: Value, objects: impl IntoIterator<Item = Object>) -> Compiled {
    let base = [
        mk_pod("shop", "web", "web", &["10.244.0.2"], json!({})),
        mk_lockdown("l", json!({"mode": "Enforce", "allow": allow})),
        mk_node("n2", &["10.244.2.0/24"], &["192.168.0.2"]),
    ];
    compiled(&index(base.into_iter().chain(objects)))
}

#[test]
fn pods_are_open_and_the_nodes_among_them_are_not() {
    let compiled = held(json!({}), []);
    let (passed, rule) = ask(&compiled, "web", "10.244.3.4", UDP, 4789);
    assert_eq!(
        (passed, rule.as_str()),
        (Reason::Cluster, "EgressLockdown/l allow.cluster Pods")
    );
    assert_eq!(
        reason(&compiled, "web", "fd00:244::77", TCP, 80),
        Reason::Cluster
    );
    assert_eq!(
        reason(&compiled, "web", "10.244.0.1", UDP, 4789),
        Reason::Excepted,
        "own bridge"
    );
    assert_eq!(
        reason(&compiled, "web", "10.244.2.1", UDP, 4789),
        Reason::Excepted,
        "n2's bridge"
    );
    assert_eq!(
        reason(&compiled, "web", "192.168.0.2", TCP, 443),
        Reason::NotAllowed
    );
    let taken = mk_pod(
        "shop",
        "first",
        "x",
        &["10.244.2.1"],
        json!({"spec": {"nodeName": "n2"}}),
    );
    assert_eq!(
        reason(&held(json!({}), [taken]), "web", "10.244.2.1", TCP, 80),
        Reason::Cluster
    );
}

#[test]
fn a_service_is_open_while_all_behind_it_is_in_the_cluster() {
    let service = |patch: Value| mk_service("shop", "db", "10.96.0.20", 80, patch);
    let open = |service: Object, slice: Object| {
        reason(
            &held(json!({"cluster": ["Services"]}), [service, slice]),
            "web",
            "10.96.0.20",
            TCP,
            80,
        )
    };
    let slice = |ip: &str, pod: Option<&str>| mk_slice("shop", "db", 8080, &[(ip, pod)]);
    assert_eq!(
        open(service(json!({})), slice("10.244.1.2", Some("db"))),
        Reason::Cluster
    );
    assert_eq!(
        open(
            service(json!({"type": "LoadBalancer"})),
            slice("10.244.1.2", Some("db"))
        ),
        Reason::Cluster
    );
    assert_eq!(
        open(service(json!({})), slice("10.244.0.2", None)),
        Reason::Cluster,
        "a known pod"
    );
    for (ip, pod) in [
        ("10.244.1.2", None),
        ("203.0.113.5", None),
        ("203.0.113.5", Some("db")),
        ("192.168.0.2", Some("db")),
        ("10.244.2.1", Some("db")),
        ("169.254.169.254", Some("db")),
    ] {
        assert!(
            !open(service(json!({})), slice(ip, pod)).passes(),
            "{ip} {pod:?}"
        );
    }
    let not_ready = json!([{"addresses": ["10.244.1.2"], "targetRef": {"kind": "Pod"}},
        {"addresses": ["203.0.113.5"], "conditions": {"ready": false}}]);
    let slice_of = |endpoints: Value| mk_raw_slice("shop", "db", json!([{"port": 80}]), endpoints);
    assert!(
        !open(service(json!({})), slice_of(not_ready)).passes(),
        "not ready, but it may be"
    );
    assert!(
        !open(service(json!({})), slice_of(json!([]))).passes(),
        "nothing behind it"
    );
    assert!(
        !open(
            service(json!({})),
            slice_of(json!([{"addresses": ["example.com"]}]))
        )
        .passes()
    );
    assert!(
        !open(
            service(json!({"clusterIPs": ["None"]})),
            slice("10.244.1.2", Some("db"))
        )
        .passes()
    );
    let name = json!({"type": "ExternalName", "externalName": "example.com"});
    assert!(!open(service(name), slice("10.244.1.2", Some("db"))).passes());
}

#[test]
fn a_service_is_no_way_around_to_a_tunnel_of_a_node() {
    let ports = |port: u16| json!([{"port": port, "protocol": "UDP"}]);
    let behind = |target: u16, cluster: Value| {
        let objects = [
            mk_service("shop", "db", "10.96.0.20", 80, json!({"ports": ports(80)})),
            mk_raw_slice(
                "shop",
                "db",
                ports(target),
                json!([{"addresses": ["192.168.0.2"]}]),
            ),
        ];
        reason(
            &held(json!({"cluster": cluster}), objects),
            "web",
            "10.96.0.20",
            UDP,
            80,
        )
    };
    assert_eq!(behind(5000, json!(["Services", "Nodes"])), Reason::Cluster);
    assert!(!behind(5000, json!(["Services"])).passes());
    assert!(!behind(4789, json!(["Services", "Nodes"])).passes());
}

#[test]
fn every_slice_of_a_service_counts() {
    let second = |ip: &str| {
        let mut slice = mk_slice("shop", "db", 80, &[(ip, Some("db2"))]);
        if let Object::EndpointSlice(slice) = &mut slice {
            slice.metadata.name = Some("db-y".into());
        }
        let service = mk_service("shop", "db", "10.96.0.20", 80, json!({}));
        let first = mk_slice("shop", "db", 80, &[("10.244.1.2", Some("db"))]);
        let compiled = held(json!({}), [slice, service, first]);
        reason(&compiled, "web", "10.96.0.20", TCP, 80)
    };
    assert_eq!(second("10.244.1.3"), Reason::Cluster);
    assert!(!second("203.0.113.5").passes());
}

#[test]
fn the_addresses_of_a_service_outside_are_not_the_cluster() {
    let service = mk_service(
        "shop",
        "db",
        "10.96.0.20",
        80,
        json!({"externalIPs": ["203.0.113.7"]}),
    );
    let slice = mk_slice("shop", "db", 80, &[("10.244.1.2", Some("db"))]);
    let compiled = held(json!({}), [service, slice]);
    assert_eq!(
        reason(&compiled, "web", "203.0.113.7", TCP, 80),
        Reason::NotAllowed
    );
    assert_eq!(
        reason(&compiled, "web", "10.96.0.20", TCP, 81),
        Reason::NotAllowed
    );
    assert_eq!(
        reason(&compiled, "web", "10.96.0.20", UDP, 80),
        Reason::NotAllowed
    );
}

#[test]
fn a_service_that_takes_packets_out_closes_where_it_takes_them() {
    let service = mk_service(
        "shop",
        "leak",
        "10.96.0.20",
        80,
        json!({"externalIPs": ["10.244.1.2", "203.0.113.7"], "selector": null,
            "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    let slice = mk_slice("shop", "leak", 80, &[("198.51.100.9", None)]);
    let allow = json!({"cluster": ["Pods", "Nodes", "Services"], "cidrs": [
        {"cidr": "203.0.113.7/32", "ports": [{"port": 80}, {"port": 81}]}, {"cidr": "10.96.0.0/16"}]});
    let compiled = held(allow, [service, slice]);
    for (to, port) in [
        ("10.244.1.2", 80),
        ("203.0.113.7", 80),
        ("10.96.0.20", 80),
        ("192.168.0.2", 30080),
    ] {
        let (denied, rule) = ask(&compiled, "web", to, TCP, port);
        assert_eq!(
            (denied, rule.as_str()),
            (Reason::Excepted, "Service/shop/leak leads elsewhere")
        );
    }
    assert_eq!(
        reason(&compiled, "web", "10.244.1.2", TCP, 81),
        Reason::Cluster
    );
    assert_eq!(
        reason(&compiled, "web", "10.244.1.2", UDP, 80),
        Reason::Cluster
    );
    assert_eq!(
        reason(&compiled, "web", "203.0.113.7", TCP, 81),
        Reason::Exception
    );
    assert_eq!(
        reason(&compiled, "web", "192.168.0.2", TCP, 30081),
        Reason::Cluster
    );
}

#[test]
fn the_api_server_is_where_its_service_says() {
    let api = || {
        [
            mk_service(
                "default",
                "kubernetes",
                "10.96.0.1",
                443,
                json!({"selector": null}),
            ),
            mk_slice("default", "kubernetes", 6443, &[("172.18.0.2", None)]),
        ]
    };
    for part in ["APIServer", "Services"] {
        let compiled = held(json!({"cluster": [part]}), api());
        assert_eq!(
            reason(&compiled, "web", "10.96.0.1", TCP, 443),
            Reason::Cluster,
            "{part}"
        );
        let direct = reason(&compiled, "web", "172.18.0.2", TCP, 6443);
        assert_eq!(direct.passes(), part == "APIServer", "{part}");
        assert_eq!(
            reason(&compiled, "web", "172.18.0.2", TCP, 22),
            Reason::NotAllowed
        );
    }
    let posing = mk_slice("shop", "kubernetes", 6443, &[("203.0.113.5", None)]);
    let compiled = held(json!({}), api().into_iter().chain([posing]));
    assert_eq!(
        reason(&compiled, "web", "203.0.113.5", TCP, 6443),
        Reason::NotAllowed
    );
}

#[test]
fn slices_that_others_make_of_the_api_servers_service_open_nothing() {
    let posing = |name: &str, ip: &str| {
        let ports = json!([{"port": 443, "protocol": "TCP"}]);
        let Object::EndpointSlice(mut slice) =
            mk_raw_slice("default", "kubernetes", ports, json!([{"addresses": [ip]}]))
        else {
            unreachable!("it was made");
        };
        slice.metadata.name = Some(name.into());
        Object::EndpointSlice(slice)
    };
    let api = |ips: Value| {
        let service = json!({"selector": null, "clusterIPs": ips});
        [
            mk_service("default", "kubernetes", "10.96.0.1", 443, service),
            mk_slice("default", "kubernetes", 6443, &[("172.18.0.2", None)]),
        ]
    };
    let (single, dual) = (json!(["10.96.0.1"]), json!(["10.96.0.1", "fd00:96::1"]));
    for (ips, name, ip, opens) in [
        (&single, "kubernetes-abcde", "203.0.113.5", false),
        (&single, "kubernetes-v6", "2001:db8::5", false),
        (&dual, "kubernetes-v4", "203.0.113.5", false),
        (&dual, "kubernetes-v6", "203.0.113.5", false),
        (&dual, "kubernetes-v6", "2001:db8::5", true),
    ] {
        let objects = api(ips.clone()).into_iter().chain([posing(name, ip)]);
        let compiled = held(json!({}), objects);
        let direct = reason(&compiled, "web", ip, TCP, 443);
        assert_eq!(direct.passes(), opens, "{name} {ip}");
        // kube-proxy would take packets for the Service there as well.
        let service = reason(&compiled, "web", "10.96.0.1", TCP, 443);
        assert_eq!(service.passes(), opens, "{name} {ip}");
        let told = compiled.problems.iter().any(|it| it.object.name == name);
        assert_eq!(told, !opens, "{name} {ip}");
        let own = reason(&compiled, "web", "172.18.0.2", TCP, 6443);
        assert_eq!(own, Reason::Cluster, "{name} {ip}");
    }
}

fn dns() -> [Object; 2] {
    let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"}, {"name": "metrics", "port": 9153}]);
    let targets = json!([{"name": "dns", "port": 5353, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 5353, "protocol": "TCP"}, {"name": "metrics", "port": 9153}]);
    let endpoints =
        json!([{"addresses": ["10.244.0.3"], "targetRef": {"kind": "Pod", "uid": "u"}}]);
    let service = mk_service(
        "kube-system",
        "kube-dns",
        "10.96.0.53",
        53,
        json!({"ports": ports}),
    );
    [
        service,
        mk_raw_slice("kube-system", "kube-dns", targets, endpoints),
    ]
}

#[test]
fn the_clusters_dns_is_found() {
    let compiled = held(json!({"cluster": []}), dns());
    for proto in [TCP, UDP] {
        let (passed, rule) = ask(&compiled, "web", "10.96.0.53", proto, 53);
        assert_eq!(
            (passed, rule.as_str()),
            (Reason::Dns, "EgressLockdown/l allow.dns cluster")
        );
        assert_eq!(
            reason(&compiled, "web", "10.244.0.3", proto, 5353),
            Reason::Dns
        );
        assert!(!reason(&compiled, "web", "169.254.20.10", proto, 53).passes());
    }
    assert!(!reason(&compiled, "web", "10.96.0.53", TCP, 9153).passes());
    assert!(!reason(&compiled, "web", "8.8.8.8", UDP, 53).passes());
    let off = held(json!({"cluster": [], "dns": {"cluster": false}}), dns());
    assert!(!reason(&off, "web", "10.96.0.53", UDP, 53).passes());
    let resolvers = json!({"cluster": [], "dns": {"resolvers": ["8.8.8.8", "2001:db8::53"]}});
    let compiled = held(resolvers, []);
    for to in ["8.8.8.8", "2001:db8::53"] {
        assert_eq!(reason(&compiled, "web", to, UDP, 53), Reason::Dns);
        assert_eq!(reason(&compiled, "web", to, TCP, 53), Reason::Dns);
        assert!(!reason(&compiled, "web", to, TCP, 853).passes());
    }
}

#[test]
fn the_dns_of_openshift_is_the_clusters() {
    let objects = |namespace: &str| {
        let port = json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]});
        [
            mk_service(namespace, "dns-default", "10.96.0.54", 53, port),
            mk_raw_slice(
                namespace,
                "dns-default",
                json!([{"name": "dns", "port": 5353, "protocol": "UDP"}]),
                json!([{"addresses": ["10.244.0.3"], "targetRef": {"kind": "Pod", "uid": "u"}}]),
            ),
        ]
    };
    let allow = || json!({"cluster": []});
    let compiled = held(allow(), objects("openshift-dns"));
    for (ip, port) in [("10.96.0.54", 53), ("10.244.0.3", 5353)] {
        assert_eq!(reason(&compiled, "web", ip, UDP, port), Reason::Dns, "{ip}");
    }
    let elsewhere = held(allow(), objects("shop"));
    assert!(!reason(&elsewhere, "web", "10.96.0.54", UDP, 53).passes());
}

#[test]
fn node_local_dns_is_where_the_agent_is_told() {
    let patch = json!({"metadata": {"labels": {"k8s-app": "node-local-dns"}},
        "spec": {"hostNetwork": true}});
    let index = index([
        mk_pod("shop", "web", "web", &["10.244.0.2"], json!({})),
        mk_pod("kube-system", "nld", "x", &["192.168.0.1"], patch),
        mk_lockdown("l", json!({"mode": "Enforce"})),
    ]);
    let mut settings = settings();
    settings.node_local_dns = vec![ip("169.254.25.10"), ip("fd00:96::53")];
    let compiled = compiled_with(&index, &settings);
    for (ip, open) in [
        ("169.254.25.10", true),
        ("fd00:96::53", true),
        ("169.254.20.10", false),
    ] {
        for proto in [UDP, TCP] {
            let reason = reason(&compiled, "web", ip, proto, 53);
            assert_eq!(reason.passes(), open, "{ip}");
        }
    }
}

#[test]
fn node_local_dns_is_open_where_it_runs() {
    let labelled = |namespace: &str, node: &str| {
        let patch = json!({"metadata": {"labels": {"k8s-app": "node-local-dns"}},
            "spec": {"nodeName": node, "hostNetwork": true}});
        let compiled = held(
            json!({}),
            [mk_pod(namespace, "nld", "x", &["192.168.0.1"], patch)],
        );
        reason(&compiled, "web", "169.254.20.10", UDP, 53)
    };
    assert_eq!(labelled("kube-system", "n1"), Reason::Dns);
    assert_eq!(labelled("kube-system", "n2"), Reason::NotAllowed);
    assert_eq!(
        labelled("shop", "n1"),
        Reason::NotAllowed,
        "labels alone open nothing"
    );
}
