//! Mounts, a cgroup and a network of a test's own, where hooks are attached.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use egress_agent::datapath::{
    Datapath, DatapathError, DeviceHooks, Direction, LinkState, Observed,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

pub struct Place {
    pub hooks: DeviceHooks,
    pub bpffs: PathBuf,
    pub cgroup: PathBuf,
}

/// Runs a test with mounts and a network of its own, which end with it; by the better hooks that this
/// kernel has.
pub fn isolated(name: &'static str, test: impl FnOnce(&Place) + Send + 'static) {
    isolated_by(DeviceHooks::best(), name, test);
}

pub fn isolated_by(
    hooks: DeviceHooks,
    name: &'static str,
    test: impl FnOnce(&Place) + Send + 'static,
) {
    if std::env::var_os("SALLYPORT_SKIP_ROOT_TESTS").is_some_and(|value| value == "1") {
        println!("skipped: datapath {name}: needs root");
        return;
    }
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
            .expect("needs root; SALLYPORT_SKIP_ROOT_TESTS=1 leaves this test out");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let bpffs = tempfile::tempdir().unwrap();
        let (none, kind) = (MsFlags::empty(), Some("bpf"));
        mount(kind, bpffs.path(), kind, none, None::<&str>).unwrap();
        let own = format!("sallyport-{}-{name}-{}", std::process::id(), hooks.name());
        let cgroup = cgroup_root().join(own);
        std::fs::create_dir(&cgroup).unwrap();
        let place = Place {
            hooks,
            bpffs: bpffs.path().to_owned(),
            cgroup: cgroup.clone(),
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&place)));
        umount2(bpffs.path(), MntFlags::MNT_DETACH).unwrap();
        std::fs::remove_dir(&cgroup).unwrap();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn cgroup_root() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .expect("a cgroup2 mount");
    PathBuf::from(line.split(' ').nth(4).unwrap())
}

impl Place {
    pub fn load(&self) -> Datapath {
        self.load_by(self.hooks).unwrap()
    }

    pub fn load_by(&self, hooks: DeviceHooks) -> Result<Datapath, DatapathError> {
        let id = std::fs::metadata(&self.cgroup).unwrap().ino();
        Datapath::load(&self.bpffs, hooks, (&self.cgroup, id))
    }

    /// A directory for maps of a stranger's.
    pub fn other_maps(&self) -> PathBuf {
        // Bpffs takes no dots in names.
        let maps = tempfile::Builder::new()
            .prefix("other")
            .tempdir_in(&self.bpffs);
        maps.unwrap().keep()
    }
}

/// Runs a program of the system; what it printed.
pub fn system(program: &str, arguments: &str) -> String {
    let mut command = Command::new(program);
    let output = command.args(arguments.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn ip(arguments: &str) {
    system("ip", arguments);
}

/// A veth pair; the index of the end that is the node's.
pub fn veth(name: &str) -> u32 {
    ip(&format!("link add {name} type veth peer name {name}p"));
    ip(&format!("link set {name} up"));
    nix::net::if_::if_nametoindex(name).unwrap()
}

pub fn states(observed: &Observed, ifindex: u32) -> [Option<LinkState>; 2] {
    Direction::BOTH.map(|direction| observed.link(ifindex, direction))
}
