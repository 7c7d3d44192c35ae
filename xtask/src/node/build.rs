//! Builds the node: its own namespace, the uplink, the outside host, the cgroup tree.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::Flock;
use nix::mount::{MsFlags, mount};
use nix::unistd::Uid;

use super::pod::{Pod, PodSpec};
use super::reaper::Reaper;
use super::service::{self, Service};
use super::wire::Wire;
use super::{Netns, Placement, cgroup, plan, teardown};

/// What a node is made with.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The `xtask` program: it is the pause process, the servers, and what attempts connections.
    pub helper: PathBuf,
}

impl NodeOptions {
    /// With this `xtask` program; tests have it as `env!("CARGO_BIN_EXE_xtask")`.
    pub fn with_helper(helper: impl Into<PathBuf>) -> Self {
        Self {
            helper: helper.into(),
        }
    }
}

/// A node that stands. Dropping it takes it down.
#[derive(Debug)]
pub struct Node {
    id: String,
    directory: PathBuf,
    cgroup_root: PathBuf,
    helper: PathBuf,
    host: Netns,
    outside: Netns,
    services: Mutex<Vec<Service>>,
    reaper: Reaper,
    down: bool,
    _lock: Flock<fs::File>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Directories below a node's own.
const DIRECTORIES: [&str; 9] = [
    "bin", "bpf", "certs", "gateway", "log", "pods", "run", "state", "upstream",
];

impl Node {
    /// Builds it, without any pod. Needs root, `ip` and `nft`.
    pub fn new(options: &NodeOptions) -> Result<Self> {
        if !Uid::effective().is_root() {
            bail!("a node in miniature needs root; run it again with sudo");
        }
        let helper = fs::canonicalize(&options.helper)
            .with_context(|| format!("cannot find {}", options.helper.display()))?;
        let id = format!(
            "{:x}{}",
            process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = teardown::directory(&id);
        for name in DIRECTORIES {
            let path = directory.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let lock = teardown::lock(&directory)?;
        let reaper = Reaper::start(&helper, &id)?;
        let prefix = teardown::netns_prefix(&id);
        // From here on the drop of a half-built node takes it down.
        let parts = (|| {
            Ok((
                cgroup::mount_point()?,
                Netns::create(format!("{prefix}host"))?,
                Netns::create(format!("{prefix}outside"))?,
            ))
        })();
        let (cgroup_root, host, outside) = match parts {
            Ok(parts) => parts,
            Err(error) => {
                let mut reaper = reaper;
                reaper.dismiss()?;
                teardown::teardown(&id)?;
                return Err(error);
            }
        };
        let node = Self {
            id,
            directory,
            cgroup_root,
            helper,
            host,
            outside,
            services: Mutex::default(),
            reaper,
            down: false,
            _lock: lock,
        };
        node.build_cgroups()?;
        node.build_network()?;
        fs::write(node.directory.join("bin/xtask"), "")?;
        mount(
            Some("bpf"),
            &node.bpffs(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .context("cannot mount a BPF file system")?;
        Ok(node)
    }

    fn build_cgroups(&self) -> Result<()> {
        let base = self.cgroup_base();
        for name in [
            "kubepods/burstable",
            "kubepods/besteffort",
            "outside",
            "system",
        ] {
            let path = base.join(name);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        }
        Ok(())
    }

    fn build_network(&self) -> Result<()> {
        self.host.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv6/conf/all/forwarding", "1"),
        ])?;
        self.host.ip(&format!(
            "link add uplink0 type veth peer name uplink0 netns {outside}\n\
             addr add {node4}/24 dev uplink0\n\
             addr add {node6}/64 dev uplink0 nodad\n\
             link set uplink0 up\n",
            outside = self.outside.name(),
            node4 = plan::NODE.v4,
            node6 = plan::NODE.v6,
        ))?;
        let mut outside = format!(
            "addr add {router4}/24 dev uplink0\n\
             addr add {router6}/64 dev uplink0 nodad\n\
             addr add {outside4}/32 dev lo\n\
             addr add {outside6}/128 dev lo nodad\n\
             link set uplink0 up\n",
            router4 = plan::ROUTER.v4,
            router6 = plan::ROUTER.v6,
            outside4 = plan::OUTSIDE.v4,
            outside6 = plan::OUTSIDE.v6,
        );
        for (i, cidr) in plan::POD_CIDRS.iter().enumerate() {
            let (via, source) = (plan::NODE.all()[i], plan::OUTSIDE.all()[i]);
            let _ = writeln!(
                outside,
                "route add {cidr} via {via} dev uplink0 src {source}"
            );
        }
        self.outside.ip(&outside)?;
        let routes = plan::ROUTER
            .all()
            .map(|via| format!("route add default via {via}\n"));
        self.host.ip(&routes.concat())?;
        Ok(())
    }

    /// What tells it from other nodes; part of every name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The network namespace that plays the host; the agent belongs in there.
    pub fn host(&self) -> &Netns {
        &self.host
    }

    /// The network namespace of the outside host and of clients outside.
    pub fn outside(&self) -> &Netns {
        &self.outside
    }

    /// Its files: `bin certs gateway log pods run state upstream`, and the BPF file system `bpf`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A BPF file system of its own.
    pub fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// Where the cgroup2 file system is mounted.
    pub fn cgroup_root(&self) -> &Path {
        &self.cgroup_root
    }

    /// Its `kubepods`, relative to [`Node::cgroup_root`].
    pub fn kubepods(&self) -> PathBuf {
        Path::new(&teardown::cgroup_name(&self.id)).join("kubepods")
    }

    fn cgroup_base(&self) -> PathBuf {
        self.cgroup_root.join(teardown::cgroup_name(&self.id))
    }

    pub(super) fn kubepods_directory(&self) -> PathBuf {
        self.cgroup_base().join("kubepods")
    }

    pub(super) fn helper(&self) -> &Path {
        &self.helper
    }

    /// Starts a pod: its namespace, veth, routes, cgroup, and the pause process.
    pub fn pod(&self, spec: &PodSpec) -> Result<Pod> {
        Pod::start(self, spec)
    }

    /// Sets a Service's address translation, as kube-proxy would. A Service of the same name is
    /// replaced.
    pub fn service(&self, service: &Service) -> Result<()> {
        let mut services = self
            .services
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        services
            .retain(|other| (&other.namespace, &other.name) != (&service.namespace, &service.name));
        services.push(service.clone());
        self.host.nft(&service::ruleset(&services)).map(drop)
    }

    /// A command that runs as a process of the node itself (not of a pod): the agent.
    pub fn host_command(&self, program: &Path) -> Result<Command> {
        self.place(program, &self.host, "system")
    }

    /// A command that runs on the outside host.
    pub fn outside_command(&self, program: &Path) -> Result<Command> {
        self.place(program, &self.outside, "outside")
    }

    fn place(&self, program: &Path, netns: &Netns, group: &str) -> Result<Command> {
        let mut command = Command::new(program);
        Placement {
            netns: netns.path(),
            cgroup: self.cgroup_base().join(group),
            uid: None,
            mounts: Vec::new(),
        }
        .apply(&mut command)?;
        Ok(command)
    }

    /// Watches what arrives at the outside host's device.
    pub fn wire(&self) -> Result<Wire> {
        Wire::watch(&self.outside)
    }

    /// Leaves it standing when this process ends; `cargo xtask demo --cleanup` takes it down.
    pub fn keep(mut self) -> Result<()> {
        self.down = true;
        self.reaper.dismiss()
    }

    /// Takes it down and says what went wrong with that; a drop can't.
    pub fn teardown(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        if self.down {
            return Ok(());
        }
        self.down = true;
        teardown::teardown(&self.id)?;
        self.reaper.dismiss()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("warning: {error:#}; take it down with: cargo xtask demo --cleanup");
        }
    }
}
