//! Where the pod is, and whom it may and may not reach, as the pins say it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use egress_common::Reason;
use egress_common::maps::{Endpoint, ExactKey4, ExactKey6, ExactRule, MODE_AUDIT, name};
use egress_common::packet::{TCP, UDP};

use crate::cli::Globals;
use crate::cli::pods::{self, Coverage, Pod};
use crate::cli::snapshot::Snapshot;
use crate::datapath::pinned::Pinned;

/// Addresses of each family, IPv4 first.
type Pair<T> = [Option<T>; 2];

/// All that attempts need to know of the pod.
#[derive(Debug)]
pub(super) struct Whereabouts {
    pub slot: u32,
    /// It is not held, only audited.
    pub audited: bool,
    pub netns: File,
    pub cgroup: PathBuf,
    /// Indices of its devices on the node.
    pub devices: BTreeSet<u32>,
    pub own: Pair<IpAddr>,
    pub gateway: Pair<SocketAddr>,
    pub dns: Pair<SocketAddr>,
    pub other: Pair<IpAddr>,
    pub node: Pair<IpAddr>,
    pub host_mac: Option<[u8; 6]>,
}

impl Whereabouts {
    /// # Errors
    /// If there is no such pod here, or it is none that could be held.
    pub(super) fn find(globals: &Globals, name: &str) -> Result<Self> {
        let snapshot = Snapshot::read(globals)?;
        let pod = match &pods::find(pods::pods(&snapshot), name)?[..] {
            [pod] => pod.clone(),
            _ => bail!("several pods are called {name}; wait until the old one is gone"),
        };
        check(&pod, name)?;
        let endpoint = pod
            .devices
            .iter()
            .find_map(|device| snapshot.devices.get(&device.ifindex))
            .with_context(|| format!("the kernel has no entry for a device of {name}"))?;
        let pinned = Pinned::open(&globals.bpffs)?;
        let allowed = |reason, proto| allowed(&pinned, endpoint.policy, reason, proto);
        let cgroup = PathBuf::from(&pod.cgroup.path);
        let devices: BTreeSet<u32> = pod.devices.iter().map(|device| device.ifindex).collect();
        Ok(Self {
            slot: pod.slot,
            audited: endpoint.mode == MODE_AUDIT,
            netns: netns(&cgroup).with_context(|| format!("where does {name} run?"))?,
            host_mac: pod.devices.first().and_then(|device| mac(&device.name)),
            cgroup,
            own: own(endpoint),
            // Mostly the last is a pod's own address, which no Service stands in front of.
            gateway: allowed(Reason::Gateway, TCP)?.map(|all| all.last().copied()),
            dns: allowed(Reason::Dns, UDP)?.map(|all| all.first().copied()),
            other: other(&snapshot, pod.slot),
            node: node(),
            devices,
        })
    }
}

fn check(pod: &Pod, name: &str) -> Result<()> {
    match pod.coverage {
        Coverage::Covered => Ok(()),
        Coverage::HostNetwork => bail!(
            "{name} is in the node's own network, where its packets can't be told from others'; \
             choose a pod with a network of its own"
        ),
        Coverage::NotHeld => bail!("no lockdown holds {name}; choose a pod that one selects"),
        Coverage::Waiting => bail!("no process runs in {name}; wait until it does"),
        Coverage::NodeAccess => bail!(
            "{name} can get at its node ({}), so nothing on it can be held; choose another pod",
            pod.problem.as_deref().unwrap_or("see `egressctl status`")
        ),
        Coverage::Uncovered => bail!(
            "{name} is uncovered ({}); see `egressctl status`",
            pod.problem.as_deref().unwrap_or("no reason is known")
        ),
    }
}

fn own(endpoint: &Endpoint) -> Pair<IpAddr> {
    let v4 = Ipv4Addr::from(endpoint.v4_be);
    let v6 = Ipv6Addr::from(endpoint.v6_be);
    [
        (!v4.is_unspecified()).then_some(v4.into()),
        (!v6.is_unspecified()).then_some(v6.into()),
    ]
}

/// The addresses and ports that the policy allows for this reason, in order, by family.
fn allowed(
    pinned: &Pinned,
    policy: u32,
    reason: Reason,
    proto: u8,
) -> Result<[Vec<SocketAddr>; 2]> {
    let fits = |rule: &ExactRule| rule.reason == reason as u8;
    let four: Vec<(ExactKey4, ExactRule)> = pinned.entries(name::EXACT4)?;
    let six: Vec<(ExactKey6, ExactRule)> = pinned.entries(name::EXACT6)?;
    let four = four
        .iter()
        .filter(|(key, rule)| key.policy == policy && key.proto == proto && fits(rule))
        .map(|(key, _)| SocketAddr::new(key.addr_be.into(), u16::from_be_bytes(key.port_be)));
    let six = six
        .iter()
        .filter(|(key, rule)| key.policy == policy && key.proto == proto && fits(rule))
        .map(|(key, _)| SocketAddr::new(key.addr_be.into(), u16::from_be_bytes(key.port_be)));
    let mut all = [four.collect::<Vec<_>>(), six.collect()];
    for all in &mut all {
        all.sort_unstable();
    }
    Ok(all)
}

/// Another pod of this node with a network of its own.
fn other(snapshot: &Snapshot, slot: u32) -> Pair<IpAddr> {
    let mut others: Vec<Pair<IpAddr>> = snapshot
        .cgroups
        .values()
        .filter(|it| it.slot != slot && it.flags & egress_common::maps::FLAG_HOST_NETWORK == 0)
        .map(own)
        .collect();
    others.sort_unstable();
    [0, 1].map(|family| others.iter().find_map(|pair| pair[family]))
}

/// The address that the node itself would leave with.
fn node() -> Pair<IpAddr> {
    let by = |bind: &str, to: &str| {
        let socket = UdpSocket::bind(bind).ok()?;
        // Nothing is sent.
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    [
        by("0.0.0.0:0", "203.0.113.1:9"),
        by("[::]:0", "[2001:db8:113::1]:9"),
    ]
}

fn mac(device: &str) -> Option<[u8; 6]> {
    let devices = nix::ifaddrs::getifaddrs().ok()?;
    devices
        .filter(|it| it.interface_name == device)
        .find_map(|it| it.address?.as_link_addr()?.addr())
}

/// The network namespace of the pod's processes.
fn netns(cgroup: &Path) -> Result<File> {
    let own = fs::metadata("/proc/self/ns/net").context("cannot read /proc")?;
    let mut trees = vec![cgroup.to_owned()];
    while let Some(tree) = trees.pop() {
        let procs = fs::read_to_string(tree.join("cgroup.procs")).unwrap_or_default();
        for process in procs.split_whitespace() {
            // One that ends meanwhile is no longer there.
            let Ok(file) = File::open(format!("/proc/{process}/ns/net")) else {
                continue;
            };
            let found = file.metadata().context("cannot look at a namespace")?;
            if (found.dev(), found.ino()) != (own.dev(), own.ino()) {
                return Ok(file);
            }
        }
        let Ok(entries) = fs::read_dir(&tree) else {
            continue;
        };
        let below = entries.flatten().filter(|entry| entry.path().is_dir());
        trees.extend(below.map(|entry| entry.path()));
    }
    bail!(
        "no process below {} can be looked at; run as root, and in the node's PID namespace",
        cgroup.display()
    )
}
