//! A node in miniature: a network namespace of the test's own thread, pods as processes in
//! namespaces of theirs, cgroups on the real cgroup2 mount. All of it goes when it is dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use egress_agent::node::{Kubepods, mounts};
use nix::sched::{CloneFlags, setns, unshare};

/// False if root is missing and the test was switched off by name.
pub fn have_root(name: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var("SALLYPORT_SKIP_ROOT_TESTS").is_ok_and(|value| value == "1"),
        "{name} needs root; set SALLYPORT_SKIP_ROOT_TESTS=1 to leave such tests out"
    );
    println!("skipped: {name}: needs root");
    false
}

pub struct World {
    /// Holds kubepods, and nothing else does.
    pub root: PathBuf,
    kubepods: PathBuf,
    processes: Vec<Child>,
}

impl World {
    /// Moves the calling thread into a new network namespace, which is the node's from then on.
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let all = mounts::mounts().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sallyport-test-{}-{number}", std::process::id());
        let root = mounts::cgroup2(&all).unwrap().point.join(name);
        let kubepods = root.join("kubepods");
        fs::create_dir_all(kubepods.join("burstable")).unwrap();
        ip(&["link", "set", "lo", "up"]);
        Self {
            root,
            kubepods,
            processes: Vec::new(),
        }
    }

    pub fn kubepods(&self) -> Kubepods {
        Kubepods::find(Some(&self.root), None).unwrap()
    }

    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.kubepods.join("burstable").join(format!("pod{uid}"))
    }

    /// A pod's cgroup with one container, and nobody in it.
    pub fn pod_cgroup(&self, uid: &str) -> PathBuf {
        let container = self.pod_dir(uid).join("container");
        fs::create_dir_all(&container).unwrap();
        container
    }

    /// A process in a network namespace of its own.
    pub fn process(&mut self) -> u32 {
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let pid = self.spawn(Command::new("unshare").args(["--net", "sleep", "1000"]));
        let link = format!("/proc/{pid}/ns/net");
        until("the process has its namespace", || {
            fs::read_link(&link).is_ok_and(|namespace| namespace != own)
        });
        inside(pid, &["link", "set", "lo", "up"]);
        pid
    }

    /// A process in the node's network namespace.
    pub fn host_process(&mut self) -> u32 {
        self.spawn(Command::new("sleep").arg("1000"))
    }

    /// A pod that runs, and whose network is still to come.
    pub fn pod(&mut self, uid: &str) -> u32 {
        let pid = self.process();
        enter_cgroup(&self.pod_cgroup(uid), pid);
        pid
    }

    fn spawn(&mut self, command: &mut Command) -> u32 {
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        self.processes.push(child);
        pid
    }

    /// Ends a process.
    pub fn kill(&mut self, pid: u32) {
        for child in self.processes.iter_mut().filter(|child| child.id() == pid) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        self.processes.retain(|child| child.id() != pid);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        // A cgroup is busy until its last process is gone for good.
        let deadline = Instant::now() + Duration::from_secs(5);
        while remove(&self.root).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes a tree of cgroups; the files in them go by themselves.
pub fn remove(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

pub fn enter_cgroup(cgroup: &Path, pid: u32) {
    fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
}

/// A veth from the node to the namespace of a process.
pub fn veth(name: &str, pid: u32, inner: &str) {
    let pid = pid.to_string();
    ip(&[
        "link", "add", name, "type", "veth", "peer", "name", inner, "netns", &pid,
    ]);
}

/// `ip` in the node's namespace.
pub fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

/// `ip` in the namespace of a process.
pub fn inside(pid: u32, arguments: &[&str]) {
    run(Command::new("nsenter")
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .arg("ip")
        .args(arguments));
}

/// Rules for the node's namespace.
pub fn nft(rules: &str) {
    run(Command::new("nft").arg(rules));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
}

/// Runs something in the network namespace of a process; sockets made there stay there.
pub fn in_namespace<T: Send>(pid: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let enter = || {
            let namespace = File::open(format!("/proc/{pid}/ns/net")).unwrap();
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(enter).join().unwrap()
    })
}

pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
