//! From the index to what the kernel should hold. Pure: no I/O, no clock, no lock.
#![forbid(unsafe_code)]

mod admission;
mod cluster;
pub mod desired;
mod digest;
mod gateways;
mod inside;
mod lockdowns;
mod policy;
mod ports;
mod services;
mod special;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::limits::MAX_RANGES;
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;

pub use admission::GatewayAdmission;
pub use desired::{DesiredPod, DesiredState, Digest, Hold, Policy};
pub use inside::Inside;
pub use ports::PortSet;

use cluster::Cluster;
use gateways::Gateways;
use policy::{Recipe, World};
use tables::{Beside, Lost, Overflow, Owner};

use crate::index::{Finding, Index, Key, ObjectId, Pod, Problem};

/// What compiling needs to know beside the objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Pods of this node are compiled; empty is every node.
    pub node_name: String,
    /// Ranges of pods beside those that Node objects name.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of this node's own devices, its bridges' included.
    pub local_addresses: Vec<IpAddr>,
    /// Name of this cluster in selectors that give one; without it every name is this cluster.
    pub cluster_name: Option<String>,
    /// The gateways let hosts through that no `ExternalService` names.
    pub allow_any: bool,
    /// Where `node-local-dns` listens on nodes that run it.
    pub node_local_dns: Vec<IpAddr>,
}

/// Where `node-local-dns` listens if nobody says otherwise.
pub const NODE_LOCAL_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));

impl Default for Settings {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            pod_cidrs: Vec::new(),
            local_addresses: Vec::new(),
            cluster_name: None,
            allow_any: false,
            node_local_dns: vec![NODE_LOCAL_DNS],
        }
    }
}

/// What comes of compiling.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    pub desired: DesiredState,
    /// What is wrong with objects, those problems included that the index knows; sorted.
    pub problems: Vec<Problem>,
    /// Compile again at this time even if nothing changes: a lockdown's audit ends.
    pub next_change: Option<Timestamp>,
}

/// Compiles; `admission` says who reaches the gateways under `gatewayAccess: Policy`.
pub fn compile(
    index: &Index,
    settings: &Settings,
    admission: &impl GatewayAdmission,
    now: Timestamp,
) -> Compiled {
    let cluster = Cluster::find(index, settings);
    let gateways = Gateways::find(index, settings, &cluster);
    let here = |pod: &Pod| settings.node_name.is_empty() || pod.node == settings.node_name;
    let routes: Vec<_> = index
        .services()
        .iter()
        .map(|(key, s)| (key, s, services::routes(index, &cluster, &gateways, key, s)))
        .collect();
    let node_local_dns = index
        .pods()
        .iter()
        .any(|(key, pod)| here(pod) && !pod.finished && is_node_local_dns(key, pod));
    let world = World {
        index,
        cluster: &cluster,
        gateways: &gateways,
        routes: &routes,
        node_local_dns: if node_local_dns {
            &settings.node_local_dns
        } else {
            &[]
        },
    };
    let mut compiled = Compiled {
        problems: index
            .problems()
            .cloned()
            .chain(cluster.problems.iter().cloned())
            .chain(gateways.problems.iter().cloned())
            .collect(),
        next_change: lockdowns::next_change(index, now),
        ..Compiled::default()
    };
    compiled.desired.inside = Inside::find(index, &cluster);
    let mut digests: BTreeMap<Recipe<'_>, Digest> = BTreeMap::new();
    let objects = index.pods().iter().map(|(key, pod)| (key, pod, false));
    // Their keys may be those of pods that were before them.
    let early = index.early_pods().map(|(key, pod)| (key, pod, true));
    for (key, pod, early) in objects
        .chain(early)
        .filter(|(_, pod, _)| here(pod) && !pod.finished)
    {
        let gateway = !early && gateways.pods.contains(key);
        let mut desired = desired_pod(key, pod, gateway);
        (desired.v4, desired.v6) = addresses(index.ips(pod));
        if !gateway {
            let holding = lockdowns::holding(index, &key.namespace, pod, now);
            desired.hold = holding.hold;
            desired.on_deny = holding.on_deny;
            desired.lockdowns = holding
                .lockdowns
                .iter()
                .map(|(n, _)| (*n).to_owned())
                .collect();
            if holding.hold != Hold::Off {
                let account = Key::new(&key.namespace, &pod.service_account);
                let recipe = Recipe {
                    lockdowns: holding.lockdowns.iter().map(|(name, _)| *name).collect(),
                    gateways: !holding.by_policy || admission.admits(&account),
                };
                let digest = *digests.entry(recipe).or_insert_with_key(|recipe| {
                    let (policy, overflows) = world.policy(recipe);
                    compiled.problems.extend(left_out(&overflows));
                    let digest = digest::digest(&policy);
                    compiled.desired.policies.insert(digest, policy);
                    digest
                });
                desired.policy = Some(digest);
            }
        }
        // A mirror of a static pod must not take the place of a pod whose UID it repeats.
        if !pod.mirror || !compiled.desired.pods.contains_key(&pod.uid) {
            compiled.desired.pods.insert(pod.uid.clone(), desired);
        }
    }
    compiled.problems.sort();
    compiled.problems.dedup();
    compiled
}

/// For each `VirtualGateway` with pods: from the port of a listener to the ports on which its pods
/// listen for it, as the Services that select them have it.
pub fn listener_ports(
    index: &Index,
    settings: &Settings,
) -> BTreeMap<Key, BTreeMap<u16, BTreeSet<u16>>> {
    Gateways::find(index, settings, &Cluster::find(index, settings)).ports
}

fn desired_pod(key: &Key, pod: &Pod, gateway: bool) -> DesiredPod {
    DesiredPod {
        uid: pod.uid.clone(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        service_account: pod.service_account.clone(),
        v4: None,
        v6: None,
        host_network: pod.host_network,
        node_access: pod.node_access.clone(),
        gateway,
        hold: Hold::Off,
        on_deny: crate::api::lockdown::OnDeny::Drop,
        policy: None,
        lockdowns: Vec::new(),
    }
}

/// The first of each family, as the kernel knows them.
fn addresses(ips: &[IpAddr]) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let v4 = ips.iter().find_map(|ip| match ip {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    let v6 = ips.iter().find_map(|ip| match ip {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    });
    (v4, v6)
}

fn is_node_local_dns(key: &Key, pod: &Pod) -> bool {
    key.namespace == "kube-system"
        && pod
            .labels
            .get("k8s-app")
            .is_some_and(|app| app == "node-local-dns")
}

/// One problem for each field and kind of loss, however many nodes it is the same at.
fn left_out(overflows: &[Overflow]) -> Vec<Problem> {
    let mut places: BTreeMap<(&Owner, Lost), Vec<IpNet>> = BTreeMap::new();
    for Overflow { owner, lost, net } in overflows {
        places.entry((owner, *lost)).or_default().push(*net);
    }
    let problem = |((owner, lost), nets): ((&Owner, Lost), Vec<IpNet>)| {
        let object = ObjectId {
            kind: "EgressLockdown",
            namespace: String::new(),
            name: owner.lockdown.clone(),
        };
        let others = if nets.len() > 1 { " and elsewhere" } else { "" };
        let place = format!("{}{others}", nets[0]);
        let (what, why, advice) = match lost {
            Lost::ToGrants => {
                let why = "together with other lockdowns of the same pod it needs";
                ("", why, "join ranges")
            }
            Lost::ToHoles(closed) => {
                let what = if closed == Beside::Udp { "UDP " } else { "" };
                let why = "what is beside ports that Services lead elsewhere needs";
                (
                    what,
                    why,
                    "take NodePorts or external IPs off those Services",
                )
            }
        };
        let reason = format!(
            "{what}left out at {place}: {why} more than {MAX_RANGES} ranges of ports there; {advice}"
        );
        Finding::ignored(format!("spec.{}", owner.field), reason).of(&object)
    };
    places.into_iter().map(problem).collect()
}

#[cfg(any(test, fuzzing))]
pub(crate) mod tests;
