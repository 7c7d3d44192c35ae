use serde_json::{Value, json};

use super::*;
use crate::source::decode;

fn object(value: &Value) -> Object {
    let mut objects = decode(&value.to_string()).expect("a good object");
    objects.pop().expect("one").object
}

fn pod(namespace: &str, name: &str, meta: &Value, spec: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name, "uid": format!("{namespace}-{name}") },
        "spec": { "nodeName": "n", "serviceAccountName": "app",
                  "containers": [{ "name": "app" }] },
        "status": { "phase": "Running", "podIPs": [],
                    "conditions": [{ "type": "Ready", "status": "True" }] },
    });
    for (part, more) in [("metadata", meta), ("spec", spec)] {
        for (field, value) in more.as_object().into_iter().flatten() {
            pod[part][field] = value.clone();
        }
    }
    pod
}

fn lockdown(namespace: &str, spec: &Value) -> Value {
    let mut all = json!({
        "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": namespace } },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        all[field] = value.clone();
    }
    json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": "EgressLockdown",
        "metadata": { "name": namespace }, "spec": all,
    })
}

fn ours(kind: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": kind,
        "metadata": { "namespace": "egress", "name": "x" }, "spec": spec,
    })
}

fn risks(values: &[Value]) -> Vec<Risk> {
    let objects: Vec<Object> = values.iter().map(object).collect();
    let mut index = Index::default();
    index.reset(objects.clone());
    assert_eq!(index.problems().count(), 0);
    let now = "2026-01-01T00:00:00Z".parse().expect("a time");
    assess(&objects, &index, &Settings::default(), &|_| true, now)
}

fn told(values: &[Value]) -> Vec<(Standing, Kind, String)> {
    let short = |risk: Risk| (risk.standing, risk.kind, risk.object);
    risks(values).into_iter().map(short).collect()
}

fn container(security: &Value) -> Value {
    json!({ "containers": [{ "name": "app", "securityContext": security }] })
}

/// Each means to get around, with what is told where the pod is held.
#[allow(clippy::too_many_lines, reason = "a table")]
fn means() -> Vec<(Value, Value, Kind, Standing)> {
    use Kind::{
        HostNetwork, NetworkCapability, NoSidecar, NodeAccess, SidecarExclusion, SidecarUid,
    };
    use Standing::{Neutralized, Partly};
    let none = json!({});
    let annotated = |name: &str, value: &str| json!({ "annotations": { name: value } });
    let traffic = |what: &str| format!("traffic.sidecar.istio.io/{what}");
    vec![
        (
            annotated(&traffic("excludeOutboundIPRanges"), "203.0.113.0/24"),
            none.clone(),
            SidecarExclusion,
            Neutralized,
        ),
        (
            annotated(&traffic("includeOutboundPorts"), "80"),
            none.clone(),
            SidecarExclusion,
            Neutralized,
        ),
        (
            json!({ "labels": { "sidecar.istio.io/inject": "false" } }),
            none.clone(),
            NoSidecar,
            Neutralized,
        ),
        (
            none.clone(),
            container(&json!({ "runAsUser": 1337 })),
            SidecarUid,
            Neutralized,
        ),
        (
            none.clone(),
            json!({ "securityContext": { "runAsUser": 1337 } }),
            SidecarUid,
            Neutralized,
        ),
        (
            none.clone(),
            container(&json!({ "capabilities": { "add": ["CAP_NET_RAW"] } })),
            NetworkCapability,
            Neutralized,
        ),
        (
            none.clone(),
            json!({ "ephemeralContainers": [
                { "name": "debug", "securityContext": { "capabilities": { "add": ["NET_ADMIN"] } } },
            ] }),
            NetworkCapability,
            Neutralized,
        ),
        (
            none.clone(),
            container(&json!({ "privileged": true })),
            NodeAccess,
            Partly,
        ),
        (none.clone(), json!({ "hostPID": true }), NodeAccess, Partly),
        (none.clone(), json!({ "hostIPC": true }), NodeAccess, Partly),
        (
            none.clone(),
            container(&json!({ "capabilities": { "add": ["SYS_ADMIN"] } })),
            NodeAccess,
            Partly,
        ),
        (
            none.clone(),
            container(&json!({ "procMount": "Unmasked" })),
            NodeAccess,
            Partly,
        ),
        (
            none.clone(),
            json!({ "volumes": [{ "name": "a", "hostPath": { "path": "/run/containerd" } }] }),
            NodeAccess,
            Partly,
        ),
        (
            annotated("config.linkerd.io/skip-outbound-ports", "443"),
            none.clone(),
            SidecarExclusion,
            Neutralized,
        ),
        (
            annotated("sidecar.istio.io/interceptionMode", "NONE"),
            none.clone(),
            NoSidecar,
            Neutralized,
        ),
        (
            annotated("linkerd.io/inject", "disabled"),
            none.clone(),
            NoSidecar,
            Neutralized,
        ),
        (
            json!({ "labels": { "istio.io/dataplane-mode": "none" } }),
            none.clone(),
            NoSidecar,
            Neutralized,
        ),
        (
            none.clone(),
            container(&json!({ "runAsGroup": 1337 })),
            SidecarUid,
            Neutralized,
        ),
        (
            none.clone(),
            container(&json!({ "runAsUser": 2102 })),
            SidecarUid,
            Neutralized,
        ),
        // Its name makes no container a sidecar.
        (
            none.clone(),
            json!({ "initContainers": [
                { "name": "istio-proxy", "securityContext": { "runAsUser": 1337 } },
            ] }),
            SidecarUid,
            Neutralized,
        ),
        (
            none,
            json!({ "hostNetwork": true, "containers": [{ "name": "app", "securityContext":
                { "capabilities": { "drop": ["ALL"] } } }] }),
            HostNetwork,
            Partly,
        ),
    ]
}

#[test]
fn each_means_to_get_around_is_told_with_what_holds_against_it() {
    let enforced = lockdown("shop", &json!({ "mode": "Enforce" }));
    let audited = lockdown("shop", &json!({ "mode": "Audit" }));
    for (meta, spec, kind, standing) in means() {
        let web = pod("shop", "web", &meta, &spec);
        let expected = |standing| (standing, kind, "Pod/shop/web".to_owned());
        let held = told(&[enforced.clone(), web.clone()]);
        assert_eq!(held, [expected(standing)], "{meta} {spec}");
        let free = told(std::slice::from_ref(&web));
        assert_eq!(free, [expected(Standing::Open)], "{meta} {spec}");
        let reported = told(&[audited.clone(), web]);
        assert!(reported.contains(&expected(Standing::Open)), "{reported:?}");
    }
}

#[test]
fn what_every_pod_of_a_mesh_has_is_nothing_to_tell() {
    let enforced = lockdown("shop", &json!({ "mode": "Enforce" }));
    let meta = json!({ "annotations": {
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "*",
        "traffic.sidecar.istio.io/excludeOutboundPorts": "",
        "sidecar.istio.io/inject": "true",
        "sidecar.istio.io/status": "{}",
    } });
    let spec = json!({
        "initContainers": [{ "name": "istio-init", "securityContext": {
            "runAsUser": 0, "capabilities": { "add": ["NET_ADMIN", "NET_RAW"] } } }],
        "containers": [
            { "name": "app", "securityContext": { "capabilities": { "add": ["CHOWN"] } } },
            { "name": "istio-proxy", "securityContext": { "runAsUser": 1337 } },
        ],
    });
    assert_eq!(
        told(&[enforced.clone(), pod("shop", "web", &meta, &spec)]),
        []
    );
    // A pod that is over gets nowhere.
    let mut over = pod(
        "shop",
        "job",
        &json!({}),
        &container(&json!({ "privileged": true })),
    );
    over["status"]["phase"] = json!("Succeeded");
    assert_eq!(told(&[enforced, over]), []);
}

#[test]
fn a_host_network_pod_is_held_by_its_sockets_alone() {
    let enforced = lockdown("shop", &json!({ "mode": "Enforce" }));
    let mut spec = container(&json!({ "runAsUser": 1337, "capabilities": { "add": ["NET_RAW"] } }));
    spec["hostNetwork"] = json!(true);
    let web = || "Pod/shop/web".to_owned();
    let expected = [
        (Standing::Open, Kind::NetworkCapability, web()),
        (Standing::Partly, Kind::NodeAccess, web()),
        (Standing::Partly, Kind::HostNetwork, web()),
        (Standing::Neutralized, Kind::SidecarUid, web()),
    ];
    assert_eq!(
        told(&[enforced, pod("shop", "web", &json!({}), &spec)]),
        expected
    );
}

/// A held pod, one of another namespace that is not, at these addresses, and its Service.
fn beside(addresses: &[&str]) -> [Value; 5] {
    let mut proxy = pod("tools", "proxy", &json!({}), &json!({}));
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    proxy["status"]["podIPs"] = ips.into();
    [
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" },
            "spec": { "podCIDRs": ["10.0.0.0/24", "fd00::/64"] },
        }),
        pod("shop", "web", &json!({}), &json!({})),
        proxy,
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "tools", "name": "s" },
            "spec": { "clusterIPs": ["10.96.0.9"], "ports": [{ "port": 80 }] },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "namespace": "tools", "name": "s-1",
                          "labels": { "kubernetes.io/service-name": "s" } },
            "ports": [{ "port": 80, "protocol": "TCP" }],
            "endpoints": [{ "addresses": ["10.0.0.9"],
                            "targetRef": { "kind": "Pod", "uid": "tools-proxy" } }],
        }),
    ]
}

#[test]
fn pods_that_are_not_held_are_a_way_out_for_those_that_reach_them() {
    let way = || (Standing::Open, Kind::WayOut, "Namespace/tools".to_owned());
    let exception = || {
        (
            Standing::Open,
            Kind::Exception,
            "EgressLockdown/shop".to_owned(),
        )
    };
    let cluster = |parts: &Value| json!({ "mode": "Enforce", "allow": { "cluster": parts } });
    let mut by_address = cluster(&json!([]));
    by_address["allow"]["cidrs"] = json!([{ "cidr": "10.0.0.9/32", "ports": [{ "port": 3128 }] }]);
    for (spec, addresses, expected) in [
        (json!({ "mode": "Enforce" }), &["10.0.0.9"][..], vec![way()]),
        (json!({ "mode": "Enforce" }), &["fd00::9"], vec![way()]),
        (
            cluster(&json!(["Pods"])),
            &["10.0.0.9", "fd00::9"],
            vec![way()],
        ),
        // Behind a Service, whose address is all that is open.
        (cluster(&json!(["Services"])), &["10.0.0.9"], vec![way()]),
        (cluster(&json!(["Services"])), &["10.0.0.8"], vec![]),
        (cluster(&json!(["APIServer"])), &["10.0.0.9"], vec![]),
        (by_address, &["10.0.0.9"], vec![way(), exception()]),
    ] {
        let mut values = vec![lockdown("shop", &spec)];
        values.extend(beside(addresses));
        assert_eq!(told(&values), expected, "{spec} {addresses:?}");
        // Held too, it is none; where it is only audited, it is one still.
        values.push(lockdown(
            "tools",
            &json!({ "mode": "Enforce", "allow": { "cluster": [] } }),
        ));
        let left = told(&values);
        assert!(!left.contains(&way()), "{spec}: {left:?}");
    }
}

#[test]
fn exceptions_are_told_with_what_they_open() {
    let spec = json!({ "mode": "Enforce", "allow": {
        "cidrs": [{ "cidr": "203.0.113.0/24" }], "dns": { "resolvers": ["192.0.2.53"] } } });
    let risks = risks(&[lockdown("shop", &spec)]);
    let found: Vec<_> = risks
        .iter()
        .map(|risk| (risk.kind, risk.at.as_str()))
        .collect();
    let expected = [
        (Kind::Exception, "spec.allow.cidrs[0]"),
        (Kind::Exception, "spec.allow.dns.resolvers[0]"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn gateways_that_let_everything_through_are_told() {
    let settings = Settings {
        allow_any: true,
        ..Settings::default()
    };
    let now = "2026-01-01T00:00:00Z".parse().expect("a time");
    let risks = assess(&[], &Index::default(), &settings, &|_| true, now);
    let kinds: Vec<Kind> = risks.iter().map(|risk| risk.kind).collect();
    assert_eq!(kinds, [Kind::AllowAny]);
}

#[test]
fn who_has_a_gateways_labels_is_looked_at() {
    let labels = json!({ "labels": { "istio": "egress" } });
    let account = |name: &str| json!({ "serviceAccountName": name });
    let mut values = vec![ours(
        "VirtualGateway",
        &json!({
            "workloads": [{ "selector": { "labels": { "istio": "egress" } } }],
            "listeners": [{ "port": { "number": 443 }, "tls": { "mode": "ISTIO_MUTUAL" } }],
        }),
    )];
    for name in ["gw-1", "gw-2"] {
        values.push(pod("egress", name, &labels, &account("gateway")));
    }
    assert_eq!(told(&values), []);
    values.push(pod("egress", "debug", &labels, &account("app")));
    values.push(pod("shop", "web", &labels, &account("app")));
    let expected = [
        (
            Standing::Open,
            Kind::Impostor,
            "Pod/egress/debug".to_owned(),
        ),
        (
            Standing::Neutralized,
            Kind::Impostor,
            "Pod/shop/web".to_owned(),
        ),
    ];
    assert_eq!(told(&values), expected);
}

#[test]
fn gateways_in_another_namespace_than_their_object_are_told() {
    let gateway = |namespace: &str| {
        let selector = json!({ "namespace": namespace, "labels": { "istio": "egress" } });
        ours(
            "VirtualGateway",
            &json!({
                "workloads": [{ "selector": selector }],
                "listeners": [{ "port": { "number": 443 }, "tls": { "mode": "ISTIO_MUTUAL" } }],
            }),
        )
    };
    assert_eq!(told(&[gateway("egress")]), []);
    let expected = [(
        Standing::Open,
        Kind::ForeignGateway,
        "VirtualGateway/egress/x".to_owned(),
    )];
    assert_eq!(told(&[gateway("shop")]), expected);
}

#[test]
fn lockdowns_that_do_not_enforce_are_told() {
    let at = |spec: &Value| {
        let risks = risks(&[lockdown("shop", spec)]);
        risks.into_iter().map(|risk| risk.text).collect::<Vec<_>>()
    };
    assert_eq!(at(&json!({ "mode": "Enforce" })), [""; 0]);
    assert_eq!(at(&json!({ "mode": "Off" })), ["it holds nobody"]);
    let audit = |until: &str| at(&json!({ "mode": "Audit", "auditUntil": until }));
    assert_eq!(audit("2025-12-31T00:00:00Z"), [""; 0], "it enforces by now");
    let told = audit("2026-02-01T00:00:00Z");
    assert_eq!(
        told,
        ["it lets everything through until 2026-02-01T00:00:00Z"]
    );
    assert_eq!(at(&json!({ "mode": "Audit" })).len(), 1);
}

#[test]
fn what_policy_leaves_open_is_told_with_its_field() {
    let risks = risks(&[
        ours(
            "ExternalService",
            &json!({
                "hosts": ["a.example.com", "*.example.com"],
                "ports": [
                    { "number": 443, "protocol": "HTTPS", "clientsideTls": {} },
                    { "number": 80, "protocol": "HTTP" },
                    { "number": 8443, "protocol": "TLS" },
                    { "number": 5432, "protocol": "TCP" },
                ],
            }),
        ),
        json!({
            "apiVersion": "networking.gloo.solo.io/v2", "kind": "ExternalService",
            "metadata": { "namespace": "egress", "name": "y" },
            "spec": { "addresses": ["192.0.2.1", "192.0.2.2/32", "198.51.100.0/24"],
                      "ports": [{ "number": 443, "protocol": "HTTPS" }] },
        }),
        ours(
            "AccessPolicy",
            &json!({ "config": { "authzList": [
                { "allowedClients": [{ "serviceAccountSelector": { "name": "a" } }] },
                { "allowedClients": [{ "serviceAccountSelector": { "name": "b" } }], "dryRun": true },
            ] } }),
        ),
    ]);
    let found: Vec<_> = risks
        .iter()
        .map(|risk| (risk.kind, risk.at.as_str()))
        .collect();
    let expected = [
        (Kind::WildcardHost, "spec.hosts[1]"),
        (Kind::WildcardHost, "spec.addresses[2]"),
        (Kind::UnverifiedServer, "spec.ports[1]"),
        (Kind::UnverifiedServer, "spec.ports[3]"),
        (Kind::DryRun, "spec.config.authzList[1].dryRun"),
    ];
    assert_eq!(found, expected);
    assert!(
        risks
            .iter()
            .all(|risk| risk.standing == Standing::Open && !risk.advice.is_empty())
    );
}
