//! Scenarios and probes at random. What is wrong with them is seldom, so that most probes get far.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::make::net;
use super::scenario::{
    ADDRESSES, CIDRS, Cidr, Gateway, Lockdown, PARTS, PORTS, Pod, Port, Probe, Scenario, Service,
    Target,
};

/// Places in `ADDRESSES`: of nodes, and where most is going on (pods, Services, nodes).
const NODES: [usize; 5] = [0, 10, 11, 22, 23];
const BUSY: [usize; 11] = [1, 2, 3, 4, 7, 8, 9, 10, 11, 22, 23];

fn seldom() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.15)
}

/// Mostly the first: the gateway's namespace, and its label.
fn home() -> impl Strategy<Value = usize> {
    prop_oneof![2 => Just(0), 1 => Just(1), 1 => Just(2)]
}

pub fn pod() -> impl Strategy<Value = Pod> {
    (
        home(),
        home(),
        2..6_u8,
        any::<bool>(),
        seldom(),
        seldom(),
        seldom(),
        seldom(),
    )
        .prop_map(
            |(namespace, app, host, v6, host_network, not_ready, terminating, finished)| Pod {
                namespace,
                app,
                host,
                v6,
                host_network,
                ready: !not_ready,
                terminating,
                finished,
            },
        )
}

fn target(pods: usize) -> impl Strategy<Value = Target> {
    prop_oneof![
        6 => (0..pods, seldom()).prop_map(|(pod, stale)| Target::Pod(pod, !stale)),
        2 => (0..ADDRESSES.len(), any::<bool>()).prop_map(|(a, pod)| Target::Address(a, pod)),
        2 => (select(NODES.to_vec()), any::<bool>()).prop_map(|(a, pod)| Target::Address(a, pod)),
        1 => Just(Target::Name),
    ]
}

fn port() -> impl Strategy<Value = Port> {
    let target = prop_oneof![3 => select(PORTS.to_vec()), 1 => Just(4789), 1 => Just(8443)];
    let target = prop::option::weighted(0.9, target);
    (
        select(vec![53, 80, 443, 8080]),
        prop_oneof![5 => Just(0), 3 => Just(1), 1 => Just(2)],
        seldom(),
        target,
    )
        .prop_map(|(port, protocol, node_port, target)| Port {
            port,
            protocol,
            node_port,
            target,
        })
}

pub fn service(pods: usize) -> impl Strategy<Value = Service> {
    let endpoints = prop::collection::vec((target(pods), prop::bool::weighted(0.8)), 0..4);
    (
        any::<bool>(),
        home(),
        prop::option::weighted(0.8, home()),
        any::<bool>(),
        prop::option::weighted(0.2, 0..ADDRESSES.len()),
        prop::collection::vec(port(), 1..3),
        endpoints,
    )
        .prop_map(
            |(special, namespace, selector, v6, external, ports, endpoints)| Service {
                special,
                namespace,
                selector,
                v6,
                external,
                ports,
                endpoints,
            },
        )
}

fn cidr() -> impl Strategy<Value = Cidr> {
    let ports = select(vec![
        (0, Some(80), None),
        (0, Some(443), None),
        (0, Some(80), Some(8080)),
        (1, Some(53), None),
        (1, None, None),
        (2, Some(80), Some(90)),
        (0, Some(8081), Some(8443)),
    ]);
    let except = subsequence((0..CIDRS.len()).collect::<Vec<_>>(), 0..4);
    (0..CIDRS.len(), except, prop::collection::vec(ports, 0..4)).prop_map(
        |(cidr, except, ports)| {
            let outer = net(CIDRS[cidr]);
            let inside = |inner: &usize| outer.contains(&net(CIDRS[*inner]));
            Cidr {
                cidr,
                except: except.into_iter().filter(inside).collect(),
                ports,
            }
        },
    )
}

pub fn lockdown() -> impl Strategy<Value = Lockdown> {
    let app = prop::option::of((select(vec!["In", "NotIn"]), 0..3_usize));
    let mode = select(vec!["Enforce", "Enforce", "Audit", "Off"]);
    let until = prop::option::of(select(vec!["2025-12-31T00:00:00Z", "2026-01-02T00:00:00Z"]));
    let resolver = prop::option::weighted(0.3, select(vec![2_usize, 7, 12, 19]));
    let parts = subsequence(PARTS.to_vec(), 0..=4);
    (
        any::<bool>(),
        app,
        mode,
        until,
        any::<bool>(),
        any::<bool>(),
        parts,
        any::<bool>(),
        resolver,
        prop::collection::vec(cidr(), 0..4),
    )
        .prop_map(
            |(labelled, app, mode, until, reject, policy, cluster, dns, resolver, cidrs)| {
                let until = until.filter(|_| mode == "Audit");
                Lockdown {
                    labelled,
                    app,
                    mode,
                    until,
                    reject,
                    policy,
                    cluster,
                    dns,
                    resolver,
                    cidrs,
                }
            },
        )
}

pub fn gateway() -> impl Strategy<Value = Gateway> {
    let app = prop::option::weighted(0.9, prop_oneof![3 => Just(0), 1 => 1..3_usize]);
    (
        prop::option::weighted(0.2, 0..3_usize),
        app,
        seldom(),
        select(vec![80, 443]),
    )
        .prop_map(|(namespace, app, foreign, port)| Gateway {
            namespace,
            app,
            foreign,
            port,
        })
}

pub fn probe(pods: usize) -> impl Strategy<Value = Probe> {
    let address = prop_oneof![0..ADDRESSES.len(), select(BUSY.to_vec())];
    let protocol = prop_oneof![5 => Just(0), 3 => Just(1), 1 => Just(2), 1 => Just(3)];
    (0..pods, address, select(PORTS.to_vec()), protocol).prop_map(
        |(pod, address, port, protocol)| Probe {
            pod,
            address,
            port,
            protocol,
        },
    )
}

pub fn scenario() -> impl Strategy<Value = (Scenario, Vec<Probe>)> {
    (2..6_usize).prop_flat_map(|pods| {
        let scenario = (
            prop::collection::vec(pod(), pods),
            prop::collection::vec(service(pods), 0..4),
            prop::collection::vec(lockdown(), 1..4),
            prop::collection::vec(gateway(), 0..3),
            any::<bool>(),
        )
            .prop_map(
                |(pods, services, lockdowns, gateways, node_local_dns)| Scenario {
                    pods,
                    services,
                    lockdowns,
                    gateways,
                    node_local_dns,
                },
            );
        (scenario, prop::collection::vec(probe(pods), 60))
    })
}
