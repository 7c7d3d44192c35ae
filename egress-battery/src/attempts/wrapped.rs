//! What the pod's own kernel wraps packets in, where it has the modules.

use egress_common::Reason::{NotAllowed, NotIp};

use super::devices::{INTRUSIVE, NAME, by_device, ip, stacked, tool};
use super::{pod, sockets};
use crate::case::{BOTH, Case, Group::Devices, Trouble};
use crate::ground::Ground;

pub(super) const CASES: [Case; 3] = [
    pod(
        (295, Devices),
        "a Geneve device to the outside",
        BOTH,
        &[NotAllowed],
        |g| stacked(g, "", &format!("geneve id 5 remote {}", g.order.aim)),
    )
    .with(INTRUSIVE),
    pod(
        (296, Devices),
        "a MACsec device on the pod's own",
        BOTH,
        &[NotIp],
        secured,
    )
    .with(INTRUSIVE),
    pod(
        (297, Devices),
        "a route that wraps packets for MPLS",
        BOTH,
        &[NotIp],
        labelled,
    )
    .with(INTRUSIVE),
];

/// Signed and not encrypted, so that the token can be seen.
fn secured(ground: &Ground) -> Result<(), Trouble> {
    ip(&format!(
        "link add link {} name {NAME} type macsec encrypt off\n",
        ground.device
    ))?;
    let attempted = ip(&format!(
        "macsec add {NAME} tx sa 0 pn 1 on key 01 000102030405060708090a0b0c0d0e0f\n"
    ))
    .and_then(|()| by_device(ground));
    ip(&format!("link del {NAME}\n"))?;
    attempted
}

fn labelled(ground: &Ground) -> Result<(), Trouble> {
    let aim = ground.order.aim;
    let (family, via) = if ground.is_v6() {
        ("-6", "inet6")
    } else {
        ("-4", "inet")
    };
    let routes = tool("ip", &[family, "route", "show", "default"], None)?;
    let mut words = routes.split_whitespace();
    let router = words.find(|word| *word == "via").and_then(|_| words.next());
    let router = router.ok_or_else(|| Trouble::Absent("the pod's route has no router".into()))?;
    ip(&format!(
        "route add {aim} encap mpls 100 via {via} {router} dev {}\n",
        ground.device
    ))?;
    let attempted = sockets::udp(ground);
    ip(&format!("route del {aim}\n"))?;
    attempted
}
