//! What the cluster's objects could open, and connections older than what holds their pod.

use egress_common::Reason::{Excepted, GatewayPort, NotAllowed, UnknownPod};

use super::cluster;
use crate::case::{BOTH, Case, Group::Objects, Group::Older};

pub(super) const CASES: [Case; 23] = [
    cluster(
        (300, Objects),
        "init container, before anything is known of the pod",
        BOTH,
        &[UnknownPod],
    ),
    cluster(
        (301, Objects),
        "a fake gateway: the labels, in another namespace, held itself",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (302, Objects),
        "to a fake gateway where pods are not allowed",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (303, Objects),
        "a held pod at a dead gateway's address",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (304, Objects),
        "to a dead gateway's address where pods are not allowed",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (305, Objects),
        "a gateway that is not ready any more",
        BOTH,
        &[GatewayPort],
    ),
    cluster(
        (306, Objects),
        "Service without selector, an endpoint outside",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (307, Objects),
        "Service with endpoints inside and outside",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (308, Objects),
        "externalIPs of a Service",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (309, Objects),
        "LoadBalancer address of a Service",
        BOTH,
        &[NotAllowed],
    ),
    cluster((310, Objects), "ExternalName", BOTH, &[NotAllowed]),
    cluster(
        (311, Objects),
        "NodePort of a Service on the node's address",
        BOTH,
        &[NotAllowed, Excepted],
    ),
    cluster(
        (312, Objects),
        "hostPort of a pod on the node's address",
        BOTH,
        &[NotAllowed, Excepted],
    ),
    cluster(
        (313, Objects),
        "host-network pod: TCP, UDP, raw sockets",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (314, Objects),
        "a second interface of the pod",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (315, Objects),
        "a gateway's admin port by its Service",
        BOTH,
        &[NotAllowed, GatewayPort],
    ),
    cluster(
        (316, Objects),
        "the pod's own device, in a network namespace that it made",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (318, Objects),
        "NodePort at the address of another node's tunnel, among the pods",
        BOTH,
        &[NotAllowed, Excepted],
    ),
    cluster(
        (330, Older),
        "a TCP connection older than the agent",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (331, Older),
        "a TCP connection older than the lockdown",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (332, Older),
        "a TCP connection older than the policy that forbids it",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (333, Older),
        "a UDP flow with an accomplice, older than the lockdown",
        BOTH,
        &[NotAllowed],
    ),
    cluster(
        (334, Older),
        "a UDP flow that the pod began with itself in an accomplice's name, older than the lockdown",
        BOTH,
        &[NotAllowed],
    ),
];
