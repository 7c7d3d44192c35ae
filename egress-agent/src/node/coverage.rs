//! Whether hooks on the node's devices see every packet of a pod. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::Device;
use super::devices::{ARPHRD_ETHER, ARPHRD_LOOPBACK, Link};

/// The devices inside one network namespace, or why they could not be listed.
pub(super) type Interior = Result<Vec<Link>, String>;

/// What is to be said of one pod that runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Coverage {
    /// The node's ends of the pod's veth pairs, sorted.
    pub(super) devices: Vec<Device>,
    pub(super) host_network: bool,
    /// Why it can't be covered; empty if it can.
    pub(super) reasons: Vec<String>,
}

/// `links` are the node's own devices and `own` its namespace; `in_node` is a process of the pod
/// in there; `interiors` are the pod's other namespaces by id.
///
/// Both ends are looked at: from the node's end alone a second device that passes by (macvlan,
/// SR-IOV) would not be noticed beside the first.
pub(super) fn assess(
    links: &[Link],
    own: i32,
    in_node: Option<u32>,
    interiors: &BTreeMap<i32, &Interior>,
) -> Coverage {
    let mut reasons = Vec::new();
    let devices = devices(links, interiors, &mut reasons);
    for (nsid, interior) in interiors {
        match interior {
            Ok(inside) => {
                reasons.extend(
                    inside
                        .iter()
                        .filter_map(|link| way_around(link, *nsid, own, links, interiors)),
                );
            }
            Err(error) => reasons.push(error.clone()),
        }
    }
    // A sandbox within the pod (a browser's, say) has a namespace with nothing in it.
    let isolated = |interior: &&Interior| {
        interior
            .as_ref()
            .is_ok_and(|links| links.iter().all(is_loopback))
    };
    let host_network = in_node.is_some() && interiors.values().all(isolated);
    match in_node {
        Some(pid) if !host_network => reasons.push(format!(
            "its process {pid} is in the node's own network namespace, others of it are not"
        )),
        None if devices.is_empty() && reasons.is_empty() => {
            reasons.push("no device of the node leads to its network namespace".into());
        }
        _ => {}
    }
    reasons.sort();
    reasons.dedup();
    Coverage {
        devices,
        host_network,
        reasons,
    }
}

/// The node's ends of all veth pairs whose other end is in another network namespace: what a pod's device
/// looks like before there is a process that tells whose it is.
pub(super) fn outlying(links: &[Link]) -> BTreeSet<u32> {
    let devices = links.iter().filter(|link| leads_out(link));
    devices.map(|link| link.ifindex).collect()
}

/// Whether it is one of these.
pub(super) fn leads_out(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth")
        && link.hardware == ARPHRD_ETHER
        && link.link_nsid.is_some()
}

/// The node's devices that lead into one of the namespaces.
fn devices(
    links: &[Link],
    interiors: &BTreeMap<i32, &Interior>,
    reasons: &mut Vec<String>,
) -> Vec<Device> {
    let leading = |link: &&Link| {
        link.link_nsid
            .is_some_and(|nsid| interiors.contains_key(&nsid))
    };
    let mut devices = Vec::new();
    for link in links.iter().filter(leading) {
        let (name, kind) = (&link.name, kind(link));
        if kind != "veth" {
            reasons.push(format!(
                "the node's device {name} that leads to it is a {kind}, no veth"
            ));
        } else if link.hardware != ARPHRD_ETHER {
            reasons.push(format!(
                "the node's device {name} that leads to it is not Ethernet"
            ));
        } else {
            devices.push(Device {
                ifindex: link.ifindex,
                name: name.clone(),
            });
        }
    }
    devices.sort();
    devices
}

/// Why a device in the pod's namespace `nsid` is a way out that no device of `devices` is on.
fn way_around(
    link: &Link,
    nsid: i32,
    own: i32,
    links: &[Link],
    interiors: &BTreeMap<i32, &Interior>,
) -> Option<String> {
    if is_loopback(link) {
        return None;
    }
    let (name, kind) = (&link.name, kind(link));
    let Some(leads_to) = link.link_nsid else {
        // A virtual device stands on others in the same namespace, which are looked at too.
        return link
            .kind
            .is_none()
            .then(|| format!("{name} in it is a hardware device (SR-IOV?): no device of the node sees its packets"));
    };
    if interiors.contains_key(&leads_to) {
        return None;
    }
    if leads_to != own {
        return Some(format!(
            "{name} in it ({kind}) leads to a network namespace that is neither the node's nor the pod's"
        ));
    }
    let peer = links.iter().find(|peer| Some(peer.ifindex) == link.link);
    match peer {
        // `devices` says what is to be said about it.
        Some(peer) if peer.link_nsid == Some(nsid) && peer.link == Some(link.ifindex) => None,
        Some(peer) => Some(format!(
            "{name} in it is a {kind} on {}: no device of the node sees its packets first",
            peer.name
        )),
        None => Some(format!(
            "the node's end of {name} in it ({kind}) is not there yet"
        )),
    }
}

fn is_loopback(link: &Link) -> bool {
    link.hardware == ARPHRD_LOOPBACK
}

fn kind(link: &Link) -> &str {
    link.kind.as_deref().unwrap_or("hardware device")
}

#[cfg(test)]
#[path = "coverage_tests.rs"]
mod tests;
