//! A small cluster on a node in miniature, with the agent on it.
//!
//! `bookinfo` is held; `web` is its pod. `ratings` and `coredns` are held by nobody, `gateway` is an
//! egress gateway behind a Service.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod api;
pub mod bpf;
pub mod frames;
pub mod held;
pub mod sockets;
pub mod stranger;
pub mod traffic;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use xtask::node::objects::{self, StateDirectory};
use xtask::node::{Backend, Node, NodeOptions, Pod, PodSpec, Service, ServicePort, patience, plan};

/// Prints and returns true if tests that need root were switched off by name.
pub fn skipped(name: &str) -> bool {
    let off = std::env::var_os("SALLYPORT_SKIP_ROOT_TESTS").is_some_and(|value| value == "1");
    if off {
        println!("skipped: {name}: needs root");
    }
    off
}

fn program(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable);
    path.unwrap_or_else(|| panic!("{variable} names the program; `cargo xtask test` sets it"))
        .into()
}

/// Where an agent runs.
#[derive(Clone, Copy)]
enum Whereabouts<'a> {
    Node,
    /// In this pod.
    Pod(&'a Pod),
    /// With these rights: flags of `xtask node confine`.
    Confined(&'a [String]),
    /// In this pod of a node that is a container, as kind's are.
    Nested(&'a Pod),
}

pub struct Cluster {
    pub state: StateDirectory,
    pub web: Pod,
    pub ratings: Pod,
    pub gateway: Pod,
    pub dns: Pod,
    /// Further flags of agents that are started from now on.
    pub flags: Vec<String>,
    /// Their environment.
    pub environment: BTreeMap<String, String>,
    /// Where they and `egressctl` are, if they are not those that are tested otherwise.
    pub version: Option<PathBuf>,
    /// Last: the pods go before it.
    pub node: Node,
}

/// Number of the Service of `gateway`; port 443 leads to 8443.
pub const GATEWAY_SERVICE: u8 = 20;
/// Number of the Service of `ratings`; port 9080.
pub const RATINGS_SERVICE: u8 = 30;

impl Cluster {
    /// Pods, Services and all objects but a lockdown.
    pub fn new() -> Self {
        let options = NodeOptions::with_helper(env!("CARGO_BIN_EXE_xtask"));
        let node = Node::new(&options).expect("a node");
        let directory = node.directory().join("state");
        fs::create_dir_all(&directory).expect("a directory");
        let state = StateDirectory::new(directory);
        let apply = |object: &Value| state.apply(object).expect("write an object");
        apply(&objects::node());
        for namespace in ["bookinfo", "other", "istio-egress", "kube-system"] {
            apply(&objects::namespace(namespace));
            apply(&objects::service_account(namespace, "default"));
        }
        let make = |spec: PodSpec| {
            apply(&objects::pod(&spec));
            node.pod(&spec).expect("a pod")
        };
        let web = make(PodSpec::new("bookinfo", "web", 11));
        let ratings = make(PodSpec::new("other", "ratings", 12).label("app", "ratings"));
        let gateway = PodSpec::new("istio-egress", "gateway", 20);
        let gateway = make(gateway.label("app", "istio-egressgateway"));
        let dns = make(PodSpec::new("kube-system", "coredns", 10).label("k8s-app", "kube-dns"));
        let services = [
            service(
                &ratings,
                "ratings",
                RATINGS_SERVICE,
                &[ServicePort::tcp("http", 9080, 9080)],
            ),
            service(
                &gateway,
                "gateway",
                GATEWAY_SERVICE,
                &[ServicePort::tcp("https", 443, 8443)],
            ),
            service(
                &dns,
                "kube-dns",
                plan::DNS,
                &[
                    ServicePort::udp("dns", 53, 53),
                    ServicePort::tcp("dns-tcp", 53, 53),
                ],
            ),
        ];
        for service in services {
            node.service(&service).expect("a Service");
            apply(&objects::service(&service));
            for slice in objects::endpoint_slices(&service) {
                apply(&slice);
            }
        }
        let manifest = include_str!("../../../deploy/examples/guide/virtualgateway.yaml");
        state
            .write("virtualgateway.yaml", manifest)
            .expect("write an object");
        Self {
            state,
            web,
            ratings,
            gateway,
            dns,
            // A runtime of the machine is none of this node's.
            flags: vec!["--nri-socket".to_owned(), "off".to_owned()],
            environment: BTreeMap::new(),
            version: None,
            node,
        }
    }

    /// Holds `bookinfo`; `more` is merged into the spec.
    pub fn lockdown(&self, mode: &str, more: &Value) {
        let mut spec = json!({
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "bookinfo" } },
            "mode": mode,
            "allow": { "cidrs": [{
                "cidr": "198.51.100.0/24",
                "except": ["198.51.100.128/25"],
                "ports": [{ "protocol": "UDP", "port": 80, "endPort": 90 }],
            }] },
        });
        for (field, value) in more.as_object().expect("an object") {
            spec[field] = value.clone();
        }
        let lockdown = json!({
            "apiVersion": "sallyport.dev/v1alpha1",
            "kind": "EgressLockdown",
            "metadata": { "name": "bookinfo" },
            "spec": spec,
        });
        self.state.apply(&lockdown).expect("write the lockdown");
    }

    fn program(&self, name: &str, variable: &str) -> PathBuf {
        match &self.version {
            Some(directory) => directory.join(name),
            None => program(variable),
        }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.node.directory().join("run")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.node.directory().join("agent.log")
    }

    /// Starts the agent; `wait` until it is in step.
    pub fn agent(&self, wait: bool) -> Agent {
        self.start(Whereabouts::Node, &["--state-dir"], self.state.path(), wait)
    }

    /// As `agent`, with its declared state from the API server that the kubeconfig names.
    pub fn agent_of_api_server(&self, kubeconfig: &Path, wait: bool) -> Agent {
        let source = ["--source", "kubernetes", "--kubeconfig"];
        self.start(Whereabouts::Node, &source, kubeconfig, wait)
    }

    /// As `agent_of_api_server`, but as a process of this pod, which must be in the node's network.
    pub fn agent_in(&self, pod: &Pod, kubeconfig: &Path) -> Agent {
        let source = ["--source", "kubernetes", "--kubeconfig"];
        self.start(Whereabouts::Pod(pod), &source, kubeconfig, false)
    }

    /// As a process of this pod, which must be in the node's network, on a node that is itself a
    /// container: what is above the node's cgroup can't be seen.
    pub fn agent_in_nested(&self, pod: &Pod) -> Agent {
        let state = self.state.path();
        self.start(Whereabouts::Nested(pod), &["--state-dir"], state, false)
    }

    /// With the rights that these flags of `xtask node confine` leave it; nobody waits.
    pub fn agent_confined(&self, rights: &[String]) -> Agent {
        let place = Whereabouts::Confined(rights);
        self.start(place, &["--state-dir"], self.state.path(), false)
    }

    /// A command of the node with these rights.
    pub fn confined(&self, rights: &[String], program: &Path) -> Command {
        let xtask = Path::new(env!("CARGO_BIN_EXE_xtask"));
        let mut command = self.node.host_command(xtask).expect("a command");
        command.args(["node", "confine"]).args(rights);
        command.arg("--").arg(program);
        command
    }

    fn start(&self, place: Whereabouts<'_>, source: &[&str], path: &Path, wait: bool) -> Agent {
        // What a killed agent left behind says nothing of this one.
        let _ = fs::remove_file(self.run_dir().join("ready"));
        let log: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log");
        let agent = self.program("egress-agent", "SALLYPORT_AGENT");
        let mut command = self.command(&place, &agent);
        let (cgroup_root, kubepods) = match place {
            Whereabouts::Nested(_) => (self.nested_cgroups(), PathBuf::from("kubepods")),
            _ => (self.node.cgroup_root().to_owned(), self.node.kubepods()),
        };
        let child = command
            .args(["--node-name", plan::NODE_NAME, "--log-format", "json"])
            .args(source)
            .arg(path)
            .args(&self.flags)
            .envs(&self.environment)
            .arg("--bpffs")
            .arg(self.node.bpffs())
            .arg("--cgroup-root")
            .arg(cgroup_root)
            .arg("--kubepods")
            .arg(kubepods)
            .arg("--run-dir")
            .arg(self.run_dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("start the agent");
        let mut agent = Agent { child };
        if wait {
            agent.wait(self, "its first ready", Self::ready);
        }
        agent
    }

    /// Where a node that is a container has its part of the hierarchy mounted.
    fn nested_cgroups(&self) -> PathBuf {
        self.node.directory().join("nested-cgroups")
    }

    fn command(&self, place: &Whereabouts<'_>, agent: &Path) -> Command {
        let command = |program| self.node.host_command(program).expect("a command");
        if let Whereabouts::Confined(rights) = place {
            return self.confined(rights, agent);
        }
        let mut shell = command(Path::new("/bin/sh"));
        let (Whereabouts::Pod(pod) | Whereabouts::Nested(pod)) = place else {
            return command(agent);
        };
        let container = pod.cgroup().join("agent");
        fs::create_dir_all(&container).expect("a cgroup");
        shell.arg("-c");
        if let Whereabouts::Nested(_) = place {
            let root = self.node.cgroup_root().join(self.node.kubepods());
            let mount = self.nested_cgroups();
            fs::create_dir_all(&mount).expect("a directory");
            // Its namespace begins where it is, so it goes to the pod afterwards.
            shell
                .arg(
                    "echo $$ >\"$0/../cgroup.procs\" && exec unshare --cgroup --mount sh -c \
                     'mount -t cgroup2 none \"$0\" && echo $$ >\"$1/cgroup.procs\" && shift && \
                     exec \"$@\"' \"$@\"",
                )
                .args([root, mount, container]);
        } else {
            shell
                .arg("echo $$ >\"$0/cgroup.procs\" && exec \"$@\"")
                .arg(container);
        }
        shell.arg(agent);
        shell
    }

    /// What the `ready` file says: the revision that is in force, and the agent's writes so far.
    pub fn ready(&self) -> Option<(String, u64)> {
        let text = fs::read(self.run_dir().join("ready")).ok()?;
        let ready: Value = serde_json::from_slice(&text).ok()?;
        Some((
            ready["revision"].as_str()?.to_owned(),
            ready["writes"].as_u64()?,
        ))
    }

    /// `egressctl … -o json`; how it ended, and what it printed.
    pub fn egressctl(&self, args: &[&str]) -> (Option<i32>, Value) {
        let program = self.program("egressctl", "SALLYPORT_EGRESSCTL");
        self.ask(self.node.host_command(&program).expect("a command"), args)
    }

    /// The same with these rights and no others.
    pub fn egressctl_confined(&self, rights: &[String], args: &[&str]) -> (Option<i32>, Value) {
        let program = self.program("egressctl", "SALLYPORT_EGRESSCTL");
        self.ask(self.confined(rights, &program), args)
    }

    fn ask(&self, mut egressctl: Command, args: &[&str]) -> (Option<i32>, Value) {
        let output = egressctl
            .arg("--bpffs")
            .arg(self.node.bpffs())
            .arg("--run-dir")
            .arg(self.run_dir())
            .args(["-o", "json"])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("run egressctl");
        let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code(), value)
    }

    /// Packets by (pod, reason); pods that are not known are slot 0's.
    pub fn counters(&self) -> BTreeMap<(u64, String), u64> {
        let (code, dump) = self.egressctl(&["maps", "dump", "sp_counters"]);
        assert_eq!(code, Some(0), "{dump}");
        let items = dump["items"].as_array().expect("items");
        items
            .iter()
            .map(|item| {
                let slot = item["slot"].as_u64().expect("slot");
                let reason = item["reason"].as_str().expect("reason").to_owned();
                ((slot, reason), item["packets"].as_u64().expect("packets"))
            })
            .collect()
    }

    /// The slot of a pod.
    pub fn slot(&self, pod: &Pod) -> u64 {
        let (code, got) = self.egressctl(&["pods", "get", &pod.id()]);
        assert_eq!(code, Some(0), "{got}");
        let text = got.to_string();
        find(&got, "slot")
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("no slot in {text}"))
    }
}

/// The first value of this field anywhere in it.
pub fn find<'a>(value: &'a Value, field: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map
            .get(field)
            .or_else(|| map.values().find_map(|value| find(value, field))),
        Value::Array(items) => items.iter().find_map(|value| find(value, field)),
        _ => None,
    }
}

fn service(pod: &Pod, name: &str, number: u8, ports: &[ServicePort]) -> Service {
    let spec = pod.spec();
    Service {
        namespace: spec.namespace.clone(),
        name: name.to_owned(),
        selector: spec.labels.clone().into_iter().collect(),
        cluster_ips: plan::service(number),
        ports: ports.to_vec(),
        backend: Backend {
            ips: spec.ips,
            pod: Some((spec.namespace.clone(), spec.name.clone(), spec.uid.clone())),
        },
    }
}

/// A running agent; killed when dropped.
pub struct Agent {
    child: Child,
}

impl Agent {
    /// Waits until `holds` tells something.
    pub fn wait<T>(
        &mut self,
        cluster: &Cluster,
        what: &str,
        holds: impl Fn(&Cluster) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + patience();
        loop {
            if let Some(it) = holds(cluster) {
                return it;
            }
            let ended = self.child.try_wait().expect("look after the agent");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "waiting for {what}; agent {ended:?}, log:\n{}",
                cluster.log()
            );
            sleep(Duration::from_millis(10));
        }
    }

    /// Changes the declared state, and waits until the kernel has it.
    pub fn declare(&mut self, cluster: &Cluster, change: impl FnOnce()) {
        let old = cluster.ready();
        change();
        self.wait(cluster, "a new revision", |cluster| {
            cluster
                .ready()
                .filter(|now| old.as_ref().is_none_or(|old| old.0 != now.0))
        });
    }

    /// Waits until it has ended by itself; how.
    pub fn ended(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + patience();
        loop {
            if let Some(status) = self.child.try_wait().expect("look after the agent") {
                return status;
            }
            assert!(Instant::now() < deadline, "the agent goes on");
            sleep(Duration::from_millis(5));
        }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("look after the agent")
            .is_none()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it, or has it go on.
    pub fn stall(&self, stop: bool) {
        self.signal(if stop {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        });
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("a signal");
    }

    pub fn kill(mut self) {
        self.child.kill().expect("kill -9");
        self.child.wait().expect("wait");
    }

    /// Tells it to end, and waits.
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.child.wait().expect("wait");
        assert!(status.success(), "the agent ended with {status}");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
