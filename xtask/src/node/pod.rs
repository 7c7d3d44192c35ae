//! A pod: a network namespace with a veth and a host route, a cgroup below `kubepods`, files of
//! its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::plan::{self, Both};
use super::probe::Answer;
use super::process::PodCommand;
use super::{Netns, Node, Placement, cgroup, teardown};

/// The container that probes run in.
pub const ANY_CONTAINER: &str = "app";

/// Quality of service; decides where below `kubepods` the pod's cgroup is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    #[default]
    Burstable,
    BestEffort,
}

/// What a pod is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub service_account: String,
    pub labels: BTreeMap<String, String>,
    pub qos: Qos,
    /// Addresses; see [`plan::pod`].
    pub ips: Both,
    /// It shares the node's network namespace, and has the node's addresses.
    pub host_network: bool,
}

impl PodSpec {
    /// With the addresses of this number, the service account `default`, and a UID that follows
    /// from its name.
    pub fn new(namespace: &str, name: &str, number: u8) -> Self {
        let id = identifier(&format!("{namespace}/{name}"));
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!(
                "{}-{}-4{}-8{}-{}",
                &id[..8],
                &id[8..12],
                &id[13..16],
                &id[17..20],
                &id[20..32]
            ),
            service_account: "default".to_owned(),
            labels: BTreeMap::new(),
            qos: Qos::default(),
            ips: plan::pod(number),
            host_network: false,
        }
    }

    /// With this service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// With this label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With this quality of service.
    #[must_use]
    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// As the kubelet makes it by itself, from a manifest with this hash.
    #[must_use]
    pub fn of_manifest(mut self, hash: &str) -> Self {
        hash.clone_into(&mut self.uid);
        self
    }

    /// In the node's network namespace.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self.ips = plan::NODE;
        self
    }

    fn cgroup_path(&self) -> PathBuf {
        let pod = format!("pod{}", self.uid);
        match self.qos {
            Qos::Guaranteed => PathBuf::from(pod),
            Qos::Burstable => Path::new("burstable").join(pod),
            Qos::BestEffort => Path::new("besteffort").join(pod),
        }
    }
}

/// 64 hexadecimal digits, the same for the same text: a container's id, or the source of a UID.
fn identifier(text: &str) -> String {
    let mut digits = String::with_capacity(64);
    for round in 0u8..4 {
        // FNV-1a, started differently each round.
        let start = 0xcbf2_9ce4_8422_2325 ^ u64::from(round);
        let hash = text.bytes().fold(start, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let _ = write!(digits, "{hash:016x}");
    }
    digits
}

/// The host side's MAC address, the same for every pod, so that raw frames can be addressed.
pub(super) const HOST_MAC: &str = "ee:ee:ee:ee:ee:ee";
/// The same, as it is in a frame.
pub(crate) const HOST_MAC_BYTES: [u8; 6] = [0xee; 6];

/// A pod that runs.
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    netns: Netns,
    host: Netns,
    device: String,
    cgroup: PathBuf,
    directory: PathBuf,
    helper: PathBuf,
    helper_inside: PathBuf,
}

impl Pod {
    pub(super) fn start(node: &Node, spec: &PodSpec) -> Result<Self> {
        let label = format!("{}.{}", spec.namespace, spec.name);
        let directory = node.directory().join("pods").join(&label);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let device = format!("veth{}", &identifier(&label)[..8]);
        let netns = if spec.host_network {
            node.host().clone()
        } else {
            let netns = Netns::create(format!("{}{label}", teardown::netns_prefix(node.id())))?;
            connect(node.host(), &netns, &device, spec.ips)?;
            netns
        };
        let pod = Self {
            cgroup: node.kubepods_directory().join(spec.cgroup_path()),
            spec: spec.clone(),
            netns,
            host: node.host().clone(),
            device,
            directory,
            helper: node.helper().to_owned(),
            helper_inside: node.directory().join("bin/xtask"),
        };
        pod.write_files()?;
        pod.helper("pause", &["pause"])?.spawn("pause")?;
        Ok(pod)
    }

    fn write_files(&self) -> Result<()> {
        let Self {
            spec, directory, ..
        } = self;
        let resolv = format!(
            "nameserver {}\nsearch {}.svc.cluster.local svc.cluster.local cluster.local\n\
             options ndots:5 timeout:1 attempts:2\n",
            plan::service(plan::DNS).v4,
            spec.namespace
        );
        let hosts = format!(
            "127.0.0.1 localhost\n::1 localhost\n{} {}\n",
            spec.ips.v4, spec.name
        );
        for (name, content) in [
            ("resolv.conf", resolv),
            ("hosts", hosts),
            ("nsswitch.conf", "hosts: files dns\n".into()),
        ] {
            fs::write(directory.join(name), content)
                .with_context(|| format!("cannot write {name} of pod {}", spec.name))?;
        }
        Ok(())
    }

    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// `namespace/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.spec.namespace, self.spec.name)
    }

    pub fn ips(&self) -> Both {
        self.spec.ips
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Name of the host side of its veth, in the node's namespace.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Directory of its cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Files of its own: configuration, certificates, logs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A program in a container of it; the container's cgroup is made if it is new.
    pub fn command(&self, container: &str, program: &Path) -> Result<PodCommand> {
        let id = identifier(&format!("{}/{container}", self.id()));
        let cgroup = self.cgroup.join(id);
        fs::create_dir_all(&cgroup)
            .with_context(|| format!("cannot make the cgroup {}", cgroup.display()))?;
        let inside = self
            .helper_inside
            .with_file_name(program.file_name().context("a program")?);
        if !inside.exists() {
            fs::write(&inside, "").with_context(|| format!("cannot make {}", inside.display()))?;
        }
        let mut mounts: Vec<(PathBuf, PathBuf)> = ["resolv.conf", "hosts", "nsswitch.conf"]
            .iter()
            .map(|name| (self.directory.join(name), Path::new("/etc").join(name)))
            .filter(|(_, to)| to.exists())
            .collect();
        // A user other than root may not reach where the program was built; it is shown to it
        // where everybody may look.
        mounts.push((program.to_owned(), inside.clone()));
        Ok(PodCommand {
            command: Command::new(inside),
            place: Placement {
                netns: self.netns.path(),
                cgroup,
                uid: None,
                mounts,
            },
            log: self.directory.clone(),
        })
    }

    /// `xtask node <args>` in a container.
    pub fn helper(&self, container: &str, args: &[&str]) -> Result<PodCommand> {
        Ok(self
            .command(container, &self.helper)?
            .args(&["node"])
            .args(args))
    }

    /// One attempt from inside the pod, as root.
    pub fn probe(&self, args: &[&str]) -> Result<Answer> {
        self.probe_as(None, args)
    }

    /// One attempt from inside the pod, as this user.
    pub fn probe_as(&self, uid: Option<u32>, args: &[&str]) -> Result<Answer> {
        let output = self
            .helper(ANY_CONTAINER, &["probe"])?
            .args(args)
            .uid(uid)
            .output()?;
        serde_json::from_slice(&output)
            .with_context(|| format!("probe {args:?} said: {}", String::from_utf8_lossy(&output)))
    }

    /// Has the node's side of its device receive in bulk (GRO), or not.
    pub fn receive_offload(&self, on: bool) -> Result<()> {
        let device = self.device.clone();
        self.host.within(move || {
            super::raw::receive_offload(&device, on)
                .with_context(|| format!("cannot set the offload of {device}"))
        })
    }

    /// Takes its device away and gives it another of the same name.
    pub fn replace_device(&self) -> Result<()> {
        self.host.ip(&format!("link del {}\n", self.device))?;
        connect(&self.host, &self.netns, &self.device, self.spec.ips)
    }

    /// Another sandbox, as the runtime makes one when the first has died: the same pod, cgroup and
    /// addresses, another network namespace and device.
    pub fn replace_sandbox(&mut self) -> Result<()> {
        fs::write(self.cgroup.join("cgroup.kill"), "1").context("cannot end its processes")?;
        self.host.ip(&format!("link del {}\n", self.device))?;
        let name = self.netns.name().to_owned();
        Netns::delete(&name)?;
        self.netns = Netns::create(name)?;
        connect(&self.host, &self.netns, &self.device, self.spec.ips)?;
        self.helper("pause", &["pause"])?.spawn("pause")?;
        Ok(())
    }

    /// Deletes it: its processes, cgroup, namespace and device.
    pub fn delete(self) -> Result<()> {
        cgroup::remove(&self.cgroup)?;
        if !self.spec.host_network {
            // The kernel would do it with the namespace, but only some time later.
            self.host.ip(&format!("link del {}\n", self.device))?;
            Netns::delete(self.netns.name())?;
        }
        fs::remove_dir_all(&self.directory).context("cannot remove the files of a pod")
    }
}

/// Veth with host routes, as Calico and the `ptp` plug-in make it.
fn connect(host: &Netns, pod: &Netns, device: &str, ips: Both) -> Result<()> {
    host.ip(&format!(
        "link add {device} type veth peer name eth0 netns {}\n\
         link set {device} address {HOST_MAC} addrgenmode none\n\
         addr add {}/64 dev {device} nodad\n\
         link set {device} up\n",
        pod.name(),
        plan::POD_GATEWAY.v6,
    ))?;
    host.sysctl(&[
        (&format!("ipv4/conf/{device}/proxy_arp"), "1"),
        // Answer at once: nobody else answers for this address.
        (&format!("ipv4/neigh/{device}/proxy_delay"), "0"),
    ])?;
    let gateway = plan::POD_GATEWAY;
    pod.ip(&format!(
        "addr add {v4}/32 dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         link set eth0 up\n\
         route add {gw4} dev eth0 scope link\n\
         route add default via {gw4} dev eth0\n\
         route add default via {gw6} dev eth0\n",
        v4 = ips.v4,
        v6 = ips.v6,
        gw4 = gateway.v4,
        gw6 = gateway.v6,
    ))?;
    host.ip(&format!(
        "route add {}/32 dev {device}\nroute add {}/128 dev {device}\n",
        ips.v4, ips.v6
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_look_like_uids_and_differ() {
        let reviews = PodSpec::new("bookinfo", "reviews", 11);
        let ratings = PodSpec::new("bookinfo", "ratings", 12);
        assert_ne!(reviews.uid, ratings.uid);
        let lengths: Vec<usize> = reviews.uid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
    }

    #[test]
    fn guaranteed_pods_are_right_below_kubepods() {
        let spec = PodSpec::new("a", "b", 2);
        let pod = format!("pod{}", spec.uid);
        assert_eq!(
            spec.clone().qos(Qos::Guaranteed).cgroup_path(),
            PathBuf::from(&pod)
        );
        assert_eq!(spec.cgroup_path(), Path::new("burstable").join(pod));
    }
}
