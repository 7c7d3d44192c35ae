//! A node of one pod: loopback is its device, and the pins are the agent's.

use std::cell::RefCell;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap};
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{
    CgroupAttachMode, LinkOrder, Program, SchedClassifier, TcAttachType, TestRun as _,
    TestRunOptions,
};
use egress_agent::datapath::{DeviceHooks, layout, loader, object};
use egress_common::Reason;
use egress_common::limits::MAX_RANGES;
use egress_common::maps::{
    Config, Endpoint, ExactKey4, ExactRule, FLAG_COVERED, MODE_ENFORCE, NO_RULE, Origin, OriginKey,
    PodInfo, PolicyInfo, PortRange, PrefixKey4, PrefixRule, RuleInfo, RuleKey, name,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

const OWN: [u8; 4] = [10, 244, 1, 5];
const OUTSIDE: [u8; 4] = [203, 0, 113, 10];
const LOOPBACK: u32 = 1;

/// What the tests look at.
pub struct Node {
    pub bpffs: PathBuf,
    pub run_dir: PathBuf,
    /// Kubepods.
    pub cgroup: PathBuf,
    ebpf: RefCell<Option<Ebpf>>,
}

/// Runs a test on a node of its own, which ends with it.
pub fn on_a_node(name: &'static str, test: impl FnOnce(&Node) + Send + 'static) {
    if std::env::var_os("SALLYPORT_SKIP_ROOT_TESTS").is_some_and(|value| value == "1") {
        println!("skipped: cli {name}: needs root");
        return;
    }
    // Namespaces are a thread's, and so are those of the processes it starts.
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
            .expect("needs root; SALLYPORT_SKIP_ROOT_TESTS=1 leaves this test out");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("own mounts");
        let dir = tempfile::tempdir().expect("tempdir");
        let bpffs = dir.path().join("bpf");
        std::fs::create_dir(&bpffs).expect("mkdir");
        let none = MsFlags::empty();
        mount(Some("bpf"), &bpffs, Some("bpf"), none, None::<&str>).expect("mount a bpffs");
        let cgroup = cgroup_root().join(format!("sallyport-cli-{name}-{}", std::process::id()));
        let pod = cgroup.join("pod");
        std::fs::create_dir_all(&pod).expect("make cgroups");
        // So that the pod's cgroup has a process.
        let mut sleeper = Command::new("sleep")
            .arg("600")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sleep");
        std::fs::write(pod.join("cgroup.procs"), sleeper.id().to_string()).expect("move it");
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            test(&Node {
                ebpf: RefCell::new(Some(install(&bpffs, &cgroup))),
                run_dir: dir.path().join("run"),
                cgroup: cgroup.clone(),
                bpffs: bpffs.clone(),
            });
        }));
        sleeper.kill().expect("kill");
        sleeper.wait().expect("wait");
        umount2(&bpffs, MntFlags::MNT_DETACH).expect("umount");
        std::fs::remove_dir(&pod).expect("remove the cgroup");
        std::fs::remove_dir(&cgroup).expect("remove the cgroup");
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn cgroup_root() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    PathBuf::from(
        line.expect("a cgroup2 mount")
            .split(' ')
            .nth(4)
            .expect("its place"),
    )
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

/// Where an agent of this version pins.
pub fn root(bpffs: &Path) -> PathBuf {
    bpffs.join(layout::DIRECTORY).join(layout::OWN.as_str())
}

/// Loads, fills, attaches and pins.
fn install(bpffs: &Path, kubepods: &Path) -> Ebpf {
    let root = root(bpffs);
    let (maps, links) = (root.join("maps"), root.join("links"));
    for directory in [&maps, &links] {
        std::fs::create_dir_all(directory).expect("mkdir");
    }
    let mut ebpf = loader()
        .unwrap()
        .default_map_pin_directory(&maps)
        .load(object(DeviceHooks::Tcx).expect("the kernel object"))
        .expect("load the kernel object");
    let id = std::fs::metadata(kubepods.join("pod")).expect("stat").ino();
    fill(&mut ebpf, id);
    let cgroup = std::fs::File::open(kubepods).expect("open kubepods");
    for (name, program) in ebpf.programs_mut() {
        let pin = |pin: &str| links.join(pin);
        match program {
            Program::SchedClassifier(program) => {
                program.load().expect("load");
                let (side, path) = match name {
                    "sp_from_pod" => (TcAttachType::Ingress, pin("dev-1-ingress")),
                    "sp_to_pod" => (TcAttachType::Egress, pin("dev-1-egress")),
                    _ => continue,
                };
                let options = TcAttachOptions::TcxOrder(LinkOrder::first());
                let link = program
                    .attach_with_options("lo", side, options)
                    .expect("attach");
                let link = program.take_link(link).expect("ours");
                FdLink::try_from(link).expect("tcx").pin(path).expect("pin");
            }
            Program::CgroupSkb(program) => {
                program.load().expect("load");
                let (side, path) = if name == "sp_cg_egress" {
                    (aya::programs::CgroupSkbAttachType::Egress, pin("cg-egress"))
                } else {
                    (
                        aya::programs::CgroupSkbAttachType::Ingress,
                        pin("cg-ingress"),
                    )
                };
                let link = program.attach(&cgroup, side, CgroupAttachMode::Single);
                let link = program.take_link(link.expect("attach")).expect("ours");
                FdLink::try_from(link)
                    .expect("a link")
                    .pin(path)
                    .expect("pin");
            }
            Program::CgroupSockAddr(program) => {
                program.load().expect("load");
                let link = program.attach(&cgroup, CgroupAttachMode::Single);
                let link = program.take_link(link.expect("attach")).expect("ours");
                let path = pin(&name.replace("sp_", "cg-"));
                FdLink::try_from(link)
                    .expect("a link")
                    .pin(path)
                    .expect("pin");
            }
            // Attached to nothing.
            Program::RawTracePoint(_) => {}
            _ => panic!("{name} is of no kind that the agent knows"),
        }
    }
    ebpf
}

fn hash<'a, K: aya::Pod, V: aya::Pod>(
    ebpf: &'a mut Ebpf,
    map: &str,
) -> HashMap<&'a mut aya::maps::MapData, K, V> {
    HashMap::try_from(ebpf.map_mut(map).expect("map")).expect("hash")
}

fn fill(ebpf: &mut Ebpf, cgroup: u64) {
    pod(ebpf, cgroup);
    policy(ebpf);
    origin(ebpf, cgroup);
}

fn pod(ebpf: &mut Ebpf, cgroup: u64) {
    let config = Config {
        qos_cgroups: [0; 2],
        kubepods: 0,
        kubepods_level: 1,
        event_interval_ns: 1,
        event_burst: 100,
        unknown_mode: MODE_ENFORCE,
        pad: [0; 3],
    };
    let map = ebpf.map_mut(name::CONFIG).expect("map");
    let mut map = Array::<_, Config>::try_from(map).expect("array");
    map.set(0, config, 0).expect("write");
    let endpoint = Endpoint {
        slot: 1,
        policy: 7,
        v4_be: OWN,
        flags: FLAG_COVERED,
        exact_networks: u64::MAX,
        ..Endpoint::nobodys(MODE_ENFORCE)
    };
    hash::<u32, _>(ebpf, name::DEVICES)
        .insert(LOOPBACK, endpoint, 0)
        .expect("write");
    hash::<u64, _>(ebpf, name::CGROUPS)
        .insert(cgroup, endpoint, 0)
        .expect("write");
    let info = PodInfo {
        uid: padded("0d3e5a54-7c6f-4b3c-9a55-0f2a7f5f1b11"),
        namespace: padded("bookinfo"),
        name: padded("reviews-v1"),
        pad: [0; 4],
        cgroup,
        since_ns: 0,
    };
    hash::<u32, _>(ebpf, name::POD_INFO)
        .insert(1, info, 0)
        .expect("write");
}

fn policy(ebpf: &mut Ebpf) {
    let info = PolicyInfo {
        digest: [7; 32],
        entries: [1, 0, 1, 0],
        rules: 1,
        complete: 1,
    };
    hash::<u32, _>(ebpf, name::POLICY_INFO)
        .insert(7, info, 0)
        .expect("write");
    let key = RuleKey {
        policy: 7,
        rule: 0,
        pad: [0; 2],
    };
    let text = padded("EgressLockdown/web allow.cidrs[0]");
    hash(ebpf, name::RULE_INFO)
        .insert(key, RuleInfo { text }, 0)
        .expect("write");
    let key = ExactKey4 {
        policy: 7,
        addr_be: [10, 244, 1, 9],
        port_be: 8443_u16.to_be_bytes(),
        proto: 6,
        pad: 0,
    };
    let rule = ExactRule {
        rule: 0,
        reason: Reason::Gateway as u8,
        pad: 0,
    };
    hash(ebpf, name::EXACT4)
        .insert(key, rule, 0)
        .expect("write");
    let every = PortRange {
        first: 0,
        last: u16::MAX,
        rule: NO_RULE,
        proto: 0,
        reason: Reason::Cluster as u8,
    };
    let rule = PrefixRule {
        count: 1,
        deny: Reason::NotAllowed as u8,
        deny_rule: NO_RULE,
        ranges: [every; MAX_RANGES],
    };
    let key = PrefixKey4 {
        policy_be: 7_u32.to_be_bytes(),
        addr_be: [10, 244, 0, 0],
    };
    let map = ebpf.map_mut(name::PREFIX4).expect("map");
    let mut map = LpmTrie::<_, PrefixKey4, PrefixRule>::try_from(map).expect("trie");
    map.insert(&Key::new(32 + 16, key), rule, 0).expect("write");
}

fn origin(ebpf: &mut Ebpf, cgroup: u64) {
    let mut dst_be = [0; 16];
    dst_be[10..12].fill(0xff);
    dst_be[12..].copy_from_slice(&OUTSIDE);
    let key = OriginKey {
        pod_cgroup: cgroup,
        dst_be,
        port_be: 443_u16.to_be_bytes(),
        proto: 6,
        pad: [0; 5],
    };
    let origin = Origin {
        seen_ns: 1,
        cgroup: cgroup + 1,
        pid: 4242,
        uid: 1337,
        comm: padded("curl"),
    };
    hash(ebpf, name::ORIGINS)
        .insert(key, origin, 0)
        .expect("write");
}

impl Node {
    pub fn egressctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_egressctl"));
        command.arg("--bpffs").arg(&self.bpffs);
        command.arg("--run-dir").arg(&self.run_dir).args(args);
        command
    }

    pub fn unpin(&self, link: &str) {
        let path = root(&self.bpffs).join("links").join(link);
        std::fs::remove_file(path).expect("unpin");
    }

    /// Lets go of the loaded programs, as a process that ends.
    pub fn forget_programs(&self) {
        drop(self.ebpf.borrow_mut().take());
    }

    /// Has the pod send that many packets that no rule allows.
    pub fn send_denied(&self, packets: usize) {
        for _ in 0..packets {
            self.send_to_port(443);
        }
    }

    /// The same once, to this port.
    pub fn send_to_port(&self, port: u16) {
        let mut out = vec![0; 256];
        let frame = syn(port);
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        };
        let ebpf = self.ebpf.borrow();
        let program = ebpf.as_ref().expect("loaded").program("sp_from_pod");
        let program: &SchedClassifier = program.expect("there").try_into().expect("classifier");
        let result = program.test_run(options).expect("BPF_PROG_TEST_RUN");
        // TC_ACT_SHOT
        assert_eq!(result.return_value, 2, "the packet is dropped");
    }
}

/// Ethernet, IPv4, TCP with SYN.
fn syn(port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let mut ip = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0];
    ip.extend(OWN);
    ip.extend(OUTSIDE);
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend(40_000_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}
