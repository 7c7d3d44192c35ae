//! One look at all pods: cgroup → processes → network namespaces → devices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::age::age;
use super::cgroups::{self, CgroupError, Kubepods, PodCgroup};
use super::coverage::{self, Interior};
use super::devices::{Link, Route};
use super::{Sighting, Sightings};
use crate::netlink::NetlinkError;

/// Why the node could not be looked at as a whole. What goes wrong with a single pod is in its
/// `Sighting`.
#[derive(Debug, thiserror::Error)]
pub enum SightError {
    #[error(transparent)]
    Cgroups(#[from] CgroupError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("the agent's own process has no network namespace that the kernel would name")]
    NoOwnNamespace,
}

/// Looks at the node's pods. Its calls block for as long as the kernel takes to answer, some
/// milliseconds on a full node.
#[derive(Debug)]
pub struct Scout {
    kubepods: Kubepods,
    route: Route,
    /// Id of the agent's own network namespace, which is the node's.
    own: i32,
    /// Files of pods' network namespaces, by UID, as the container runtime tells them.
    told: BTreeMap<String, PathBuf>,
}

/// A container runtime puts a new process (a container's first, or an exec probe's) into the
/// pod's cgroup first and into its network namespace a moment later. One that is younger and
/// still in the node's says nothing about a pod that has a namespace already.
const ARRIVED: Duration = Duration::from_secs(1);

/// A pod's processes, by network namespace; one that only the runtime has told of has none.
type Spaces = BTreeMap<i32, BTreeSet<u32>>;

/// Where a pod's processes are.
#[derive(Default)]
struct Whereabouts {
    spaces: Spaces,
    /// Some are out of sight of the agent's PID namespace.
    hidden: bool,
}

impl Scout {
    /// The network namespace of the calling thread counts as the node's.
    ///
    /// # Errors
    /// When rtnetlink can't be asked. Numbering namespaces needs `CAP_NET_ADMIN`.
    pub fn new(kubepods: Kubepods) -> Result<Self, SightError> {
        let mut route = Route::open()?;
        let thread = nix::unistd::gettid().as_raw();
        let own = u32::try_from(thread)
            .ok()
            .map(|thread| route.nsid(thread))
            .transpose()?;
        let own = own.flatten().ok_or(SightError::NoOwnNamespace)?;
        Ok(Self {
            kubepods,
            route,
            own,
            told: BTreeMap::new(),
        })
    }

    pub fn kubepods(&self) -> &Kubepods {
        &self.kubepods
    }

    /// Takes the files that stand for pods' network namespaces, by UID: such a pod's devices are
    /// found before it has a process. Files that are out of reach are as good as none.
    pub fn set_namespaces(&mut self, files: BTreeMap<String, PathBuf>) {
        self.told = files;
    }

    /// All addresses of the node's own devices; sorted.
    pub fn local_addresses(&mut self) -> Result<Vec<IpAddr>, SightError> {
        Ok(self.route.addresses()?)
    }

    /// What there is of these pods now. Each gets an entry, an empty one if nothing was found.
    ///
    /// A pod is named as its cgroup is: by UID, or, if it is a static pod, by the hash in its
    /// annotation `kubernetes.io/config.hash`.
    ///
    /// # Errors
    /// When kubepods or the node's devices can't be listed: then nothing can be said of any pod,
    /// and the last sightings should stand.
    pub fn sight<U: AsRef<str>>(
        &mut self,
        pods: impl IntoIterator<Item = U>,
    ) -> Result<Sightings, SightError> {
        let found = self.kubepods.pods()?;
        let mut all = BTreeMap::new();
        for uid in pods {
            let uid = uid.as_ref();
            let cgroup = found.get(uid);
            let mut whereabouts = match cgroup {
                Some(cgroup) => self.whereabouts(cgroup)?,
                None => Whereabouts::default(),
            };
            if let Some(file) = self.told.get(uid)
                && let Some(nsid) = self.route.nsid_of_file(file)?
            {
                whereabouts.spaces.entry(nsid).or_default();
            }
            all.insert(uid.to_owned(), (cgroup, whereabouts));
        }
        // After the processes: a namespace that is known now has had its devices since before.
        let links = self.route.links()?;
        let spaces = || all.values().map(|(_, whereabouts)| &whereabouts.spaces);
        let interiors = self.interiors(spaces().flat_map(|spaces| spaces.keys().copied()));
        let shared = shared(spaces(), self.own);
        let pods = all.iter().map(|(uid, (cgroup, whereabouts))| {
            let sighting = self.judge(*cgroup, whereabouts, &links, &interiors, &shared);
            (uid.clone(), sighting)
        });
        Ok(Sightings {
            pods: pods.collect(),
            statics: cgroups::statics(&found),
            outlying: coverage::outlying(&links),
            devices: links.iter().map(|link| link.ifindex).collect(),
        })
    }

    fn whereabouts(&mut self, cgroup: &PodCgroup) -> Result<Whereabouts, NetlinkError> {
        let mut spaces = Spaces::new();
        let mut before = cgroups::processes(&cgroup.path);
        let hidden = before.remove(&0);
        for pid in &before {
            if let Some(nsid) = self.route.nsid(*pid)? {
                spaces.entry(nsid).or_default().insert(*pid);
            }
        }
        // A number that was given to another process meanwhile would lend the pod that one's
        // namespace: only who is still in the cgroup counts.
        let after = if before.is_empty() {
            before
        } else {
            cgroups::processes(&cgroup.path)
        };
        spaces.retain(|_, pids| {
            pids.retain(|pid| after.contains(pid));
            !pids.is_empty()
        });
        Ok(Whereabouts { spaces, hidden })
    }

    /// A process of the pod that is in the node's network namespace; whether it is there to stay.
    fn in_node(&self, spaces: &Spaces) -> Option<(u32, bool)> {
        let pids = spaces.get(&self.own)?;
        let settled = |pid: &&u32| age(**pid).is_some_and(|age| age >= ARRIVED);
        let settled = pids.iter().find(settled).map(|pid| (*pid, true));
        settled.or_else(|| pids.first().map(|pid| (*pid, false)))
    }

    fn interiors(&mut self, nsids: impl Iterator<Item = i32>) -> BTreeMap<i32, Interior> {
        let nsids: BTreeSet<i32> = nsids.filter(|nsid| *nsid != self.own).collect();
        nsids
            .into_iter()
            .map(|nsid| {
                (
                    nsid,
                    self.route.links_in(nsid).map_err(|error| error.to_string()),
                )
            })
            .collect()
    }

    fn judge(
        &self,
        cgroup: Option<&PodCgroup>,
        whereabouts: &Whereabouts,
        links: &[Link],
        interiors: &BTreeMap<i32, Interior>,
        shared: &BTreeSet<i32>,
    ) -> Sighting {
        let Whereabouts { spaces, hidden } = whereabouts;
        let mut sighting = Sighting {
            cgroup: cgroup.map(|cgroup| cgroup.id),
            cgroup_path: cgroup.map(|cgroup| cgroup.path.clone()),
            running: *hidden || !spaces.is_empty(),
            ..Sighting::default()
        };
        let mut reasons = Vec::new();
        if *hidden {
            reasons.push(
                "the agent can't see its processes: run it in the node's PID namespace (hostPID)"
                    .to_owned(),
            );
        }
        if !spaces.is_empty() {
            let in_node = self.in_node(spaces);
            // Nowhere else yet: judged as what it is now, which holds it by its cgroup.
            let alone = spaces.len() == 1;
            sighting.arriving = alone && in_node.is_some_and(|(_, settled)| !settled);
            let in_node = in_node.filter(|(_, settled)| alone || *settled);
            let in_node = in_node.map(|(pid, _)| pid);
            let interiors = spaces
                .keys()
                .filter_map(|nsid| interiors.get_key_value(nsid))
                .map(|(nsid, interior)| (*nsid, interior))
                .collect();
            let coverage = coverage::assess(links, self.own, in_node, &interiors);
            if spaces.keys().any(|nsid| shared.contains(nsid)) {
                reasons.push("another pod's process is in its network namespace".to_owned());
            }
            reasons.extend(coverage.reasons);
            sighting.devices = coverage.devices;
            sighting.host_network = coverage.host_network;
        }
        sighting.uncoverable = (!reasons.is_empty()).then(|| reasons.join("; "));
        sighting
    }
}

/// Namespaces other than the node's in which several pods have processes: a packet of one could
/// not be told from the other's.
fn shared<'a>(spaces: impl Iterator<Item = &'a Spaces>, own: i32) -> BTreeSet<i32> {
    let mut users: BTreeMap<i32, usize> = BTreeMap::new();
    for spaces in spaces {
        for nsid in spaces.keys() {
            *users.entry(*nsid).or_default() += 1;
        }
    }
    users
        .into_iter()
        .filter(|(nsid, count)| *count > 1 && *nsid != own)
        .map(|(nsid, _)| nsid)
        .collect()
}
