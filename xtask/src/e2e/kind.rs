//! A kind cluster for one run.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::cmd::{Cmd, find_program, say};
use crate::workspace::Workspace;

/// Name of the cluster; one that is there already is somebody's, and not touched.
const NAME: &str = "sallyport-e2e";

/// What gives the pods their network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cni {
    Kindnet,
    Calico,
    Cilium,
}

impl Cni {
    /// Values of the chart that the cluster needs, as `deploy/kind/README.md` has them.
    pub fn values(self) -> Value {
        match self {
            Self::Kindnet => Value::Null,
            Self::Calico => json!({ "podCIDRs": ["192.168.0.0/16", "fd00:10:244::/56"] }),
            Self::Cilium => json!({ "podCIDRs": ["10.244.0.0/16", "fd00:10:244::/56"] }),
        }
    }
}

impl fmt::Display for Cni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kindnet => "kindnet",
            Self::Calico => "calico",
            Self::Cilium => "cilium",
        })
    }
}

/// A cluster that is deleted with this value, unless it is kept.
#[derive(Debug)]
pub struct Kind {
    program: PathBuf,
    kubeconfig: PathBuf,
    keep: bool,
}

impl Kind {
    /// Makes it as `deploy/kind/CNI.yaml` says, and puts the images of these archives on its nodes.
    pub fn create(
        workspace: &Workspace,
        cni: Cni,
        manifest: Option<&Path>,
        archives: &[PathBuf],
        keep: bool,
    ) -> Result<Self> {
        match manifest {
            None if cni != Cni::Kindnet => bail!(
                "kind does not bring {cni} along: give its manifest with --cni-manifest \
                 (deploy/kind/README.md says what must be set in it)"
            ),
            Some(manifest) if !manifest.is_file() => bail!("there is no {}", manifest.display()),
            _ => {}
        }
        let Some(program) = find_program("kind") else {
            bail!(
                "kind is not installed: `go install sigs.k8s.io/kind@latest`, or see \
                 https://kind.sigs.k8s.io; it needs Docker, Podman or nerdctl. Without it point \
                 KUBECONFIG at any cluster and leave --kind out"
            );
        };
        let there = Cmd::new(&program)
            .args(["get", "clusters"])
            .output()
            .context("kind can't reach a container engine: start Docker, Podman or containerd")?;
        if there.lines().any(|name| name.trim() == NAME) {
            bail!("there is a kind cluster {NAME} already: `kind delete cluster --name {NAME}`");
        }
        let config = workspace.root.join(format!("deploy/kind/{cni}.yaml"));
        if !config.is_file() {
            bail!("there is no {}", workspace.display(&config));
        }
        let kubeconfig = workspace.target.join("e2e").join("kubeconfig");
        std::fs::create_dir_all(kubeconfig.parent().unwrap_or(Path::new("/")))?;
        say("kind", format_args!("a cluster with {cni}"));
        let kind = Self {
            program,
            kubeconfig,
            keep,
        };
        // From here on the cluster goes with `kind`, even if making it fails half-way.
        let mut create = Cmd::new(&kind.program)
            .args(["create", "cluster", "--name", NAME, "--config"])
            .arg(&config)
            .arg("--kubeconfig")
            .arg(&kind.kubeconfig);
        // Nodes of a cluster without its CNI never become ready.
        if cni == Cni::Kindnet {
            create = create.args(["--wait", "3m"]);
        }
        create.run()?;
        let engine = engine()?;
        kind.mount_bpffs(&engine)?;
        for archive in archives {
            Cmd::new(&kind.program)
                .args(["load", "image-archive", "--name", NAME])
                .arg(archive)
                .run()?;
        }
        if let Some(manifest) = manifest {
            install_cni(&engine, manifest)?;
        }
        Ok(kind)
    }

    /// Gives each node a BPF file system of its own: kind mounts none, and with the machine's they
    /// would take each other's pins for their own.
    fn mount_bpffs(&self, engine: &str) -> Result<()> {
        let nodes = Cmd::new(&self.program)
            .args(["get", "nodes", "--name", NAME])
            .output()?;
        for node in nodes.split_whitespace() {
            Cmd::new(engine)
                .args(["exec", node, "sh", "-c"])
                .arg("mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf")
                .run()
                .with_context(|| format!("mounting a BPF file system in {node}"))?;
        }
        Ok(())
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }
}

/// Applies the manifest of a CNI, and waits until it has made the nodes ready.
fn install_cni(engine: &str, manifest: &Path) -> Result<()> {
    let node = format!("{NAME}-control-plane");
    say("kind", manifest.display());
    Cmd::new(engine)
        .arg("cp")
        .arg(manifest)
        .arg(format!("{node}:/cni.yaml"))
        .run()?;
    // The node's own: nothing but kind and an engine is needed here.
    let kubectl = |args: &[&str]| {
        Cmd::new(engine)
            .args(["exec", &node, "kubectl"])
            .arg("--kubeconfig=/etc/kubernetes/admin.conf")
            .args(args)
            .run()
    };
    kubectl(&["apply", "--server-side", "-f", "/cni.yaml"])?;
    kubectl(&[
        "wait",
        "--for=condition=Ready",
        "nodes",
        "--all",
        "--timeout=5m",
    ])
    .context("the CNI has not made the nodes ready; are its images there (--image-archive)?")
}

/// The engine that kind takes: the one that it is told, or the first that is there.
fn engine() -> Result<String> {
    if let Ok(told) = std::env::var("KIND_EXPERIMENTAL_PROVIDER") {
        return Ok(told);
    }
    ["docker", "podman", "nerdctl"]
        .into_iter()
        .find(|engine| find_program(engine).is_some())
        .map(str::to_owned)
        .context("no container engine: install Docker, Podman or nerdctl")
}

impl Drop for Kind {
    fn drop(&mut self) {
        if self.keep {
            let kubeconfig = self.kubeconfig.display();
            say(
                "kind",
                format_args!("kept; KUBECONFIG={kubeconfig}, `kind delete cluster --name {NAME}`"),
            );
            return;
        }
        let deleted = Cmd::new(&self.program)
            .args(["delete", "cluster", "--name", NAME, "--kubeconfig"])
            .arg(&self.kubeconfig)
            .run();
        if let Err(error) = deleted {
            say(
                "kind",
                format_args!("the cluster {NAME} is still there: {error:#}"),
            );
        }
    }
}
