//! The attempts, by subject: each file has its cases in front and how they are tried behind.

mod devices;
mod forwarding;
mod fragments;
mod headers4;
mod headers6;
mod legacy;
mod link;
mod objects;
mod places;
mod protocols;
mod rings;
mod skipped;
mod sockets;
mod spoofed;
mod tunnels;
mod unsummed;
mod uring;
mod who;
mod works;
mod wrapped;
mod xdp;

use egress_common::Reason;

use crate::case::{Attempt, By, Case, Family, Group};

/// Every subject's cases; the numbers rise.
pub(crate) const ALL: [&[Case]; 18] = [
    &who::CASES,
    &sockets::CASES,
    &rings::CASES,
    &protocols::CASES,
    &unsummed::CASES,
    &link::CASES,
    &fragments::CASES,
    &headers4::CASES,
    &headers6::CASES,
    &tunnels::CASES,
    &spoofed::CASES,
    &places::CASES,
    &devices::CASES,
    &forwarding::CASES,
    &wrapped::CASES,
    &skipped::CASES,
    &objects::CASES,
    &works::CASES,
];

/// A case that a process in the pod plays.
const fn pod(
    (number, group): (u16, Group),
    name: &'static str,
    families: &'static [Family],
    expect: &'static [Reason],
    attempt: Attempt,
) -> Case {
    Case {
        number,
        group,
        name,
        families,
        expect,
        needs: &[],
        by: By::Pod(attempt),
    }
}

/// A case that needs the cluster's objects.
const fn cluster(
    (number, group): (u16, Group),
    name: &'static str,
    families: &'static [Family],
    expect: &'static [Reason],
) -> Case {
    Case {
        number,
        group,
        name,
        families,
        expect,
        needs: &[],
        by: By::Cluster,
    }
}
