//! The kernel programs, loaded over maps of their own in a private bpffs.

use std::path::{Path, PathBuf};
use std::process::Command;

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, DevMap, HashMap, LpmTrie, PerCpuArray};
use aya::programs::{CgroupSkb, Program, SchedClassifier, TestRun, TestRunOptions};
use egress_agent::datapath::{DeviceHooks, layout, loader, object};
use egress_common::maps::{
    Config, Covered, Endpoint, ExactKey4, ExactKey6, ExactRule, Flow, FlowKey, Inbound,
    MODE_ENFORCE, NETWORKS, NO_WAYS, PodCounters, PrefixKey4, PrefixKey6, PrefixRule, covered_mark,
    covered_place, name, way_place,
};
use egress_common::memory::MemoryTables;

/// Loopback: where `BPF_PROG_TEST_RUN` lets a socket buffer come from.
pub const LOOPBACK: u32 = 1;

/// A bpffs of its own, gone when dropped.
#[derive(Debug)]
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("sallyport-")
            .tempdir()
            .expect("tempdir")
            .keep();
        let mounted = Command::new("mount")
            .args(["-t", "bpf", "bpf"])
            .arg(&dir)
            .status();
        assert!(
            mounted.expect("run mount").success(),
            "mounting a bpffs needs root"
        );
        Self(dir)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

pub struct Kernel {
    ebpf: Ebpf,
    bpffs: Bpffs,
}

impl Kernel {
    /// Loads every program; the tables are empty but for the configuration.
    pub fn load() -> Self {
        Self::load_for(DeviceHooks::Tcx)
    }

    /// The same of the object for kernels below 6.6.
    pub fn load_in_parts() -> Self {
        Self::load_for(DeviceHooks::Clsact)
    }

    fn load_for(hooks: DeviceHooks) -> Self {
        // SAFETY: no arguments, can't fail.
        let root = unsafe { libc::geteuid() } == 0;
        assert!(
            root,
            "loading kernel programs needs root; `cargo xtask test --no-root` leaves it out"
        );
        let object = object(hooks).unwrap_or_else(|error| panic!("{error}"));
        let bpffs = Bpffs::mount();
        // Where an agent pins them.
        let pins = bpffs
            .0
            .join(layout::DIRECTORY)
            .join(layout::OWN.as_str())
            .join("maps");
        std::fs::create_dir_all(&pins).expect("directories of a bpffs");
        let mut ebpf = loader()
            .unwrap()
            .default_map_pin_directory(&pins)
            .load(object)
            .expect("load the kernel object");
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::SchedClassifier(program) => program.load(),
                Program::CgroupSkb(program) => program.load(),
                Program::CgroupSockAddr(program) => program.load(),
                Program::RawTracePoint(program) => program.load(),
                _ => panic!("{name} is of no kind that the agent knows"),
            }
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let mut kernel = Self { ebpf, bpffs };
        kernel.configure(1, 0);
        kernel
    }

    /// Where the maps are pinned.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs.0
    }

    /// Sets the rate of events: at most `burst` at once, one more each `interval_ns`; 0 is never.
    pub fn configure(&mut self, interval_ns: u32, burst: u32) {
        let map = self.ebpf.map_mut(name::CONFIG).expect("map");
        let mut config = Array::<_, Config>::try_from(map).expect("array");
        config
            .set(
                0,
                Config {
                    qos_cgroups: [0; 2],
                    kubepods: 0,
                    // One above the root: every process is in the "pod" that the root cgroup is.
                    kubepods_level: u32::MAX,
                    event_interval_ns: interval_ns,
                    event_burst: burst,
                    unknown_mode: MODE_ENFORCE,
                    pad: [0; 3],
                },
                0,
            )
            .expect("write the configuration");
    }

    pub fn programs(&self) -> impl Iterator<Item = (&str, &Program)> {
        self.ebpf.programs()
    }

    pub fn program(&self, name: &str) -> &SchedClassifier {
        self.ebpf
            .program(name)
            .expect("program")
            .try_into()
            .expect("classifier")
    }

    /// Puts the pod behind the device that test runs come from.
    pub fn set_device(&mut self, endpoint: &Endpoint) {
        let map = self.ebpf.map_mut(name::DEVICES).expect("map");
        let mut map = HashMap::<_, u32, Endpoint>::try_from(map).expect("hash");
        map.insert(LOOPBACK, endpoint, 0).expect("insert");
    }

    /// Tells the cgroup hooks of a pod.
    pub fn set_cgroup(&mut self, cgroup: u64, endpoint: &Endpoint) {
        let map = self.ebpf.map_mut(name::CGROUPS).expect("map");
        let mut map = HashMap::<_, u64, Endpoint>::try_from(map).expect("hash");
        map.insert(cgroup, endpoint, 0).expect("insert");
        let (slot, ways) = (endpoint.slot, endpoint.passes_with());
        if ways == 0 {
            return;
        }
        if ways != NO_WAYS {
            let map = self.ebpf.map_mut(name::WAYS).expect("map");
            let mut map = DevMap::try_from(map).expect("a map of devices");
            for way in 0..ways {
                let place = way_place(slot) + way;
                map.set(place, LOOPBACK, None, 0).expect("set");
            }
        }
        let map = self.ebpf.map_mut(name::COVERED).expect("map");
        let mut map = Array::<_, Covered>::try_from(map).expect("array");
        let mark = covered_mark(cgroup);
        map.set(covered_place(cgroup), Covered { slot, ways, mark }, 0)
            .expect("set");
    }

    /// Writes the policies of `tables`; flows are left alone.
    pub fn fill(&mut self, tables: &MemoryTables) {
        let map = self.ebpf.map_mut(name::EXACT4).expect("map");
        let mut map = HashMap::<_, ExactKey4, ExactRule>::try_from(map).expect("hash");
        for (key, rule) in &tables.exact4 {
            map.insert(key, rule, 0).expect("insert");
        }
        let map = self.ebpf.map_mut(name::EXACT6).expect("map");
        let mut map = HashMap::<_, ExactKey6, ExactRule>::try_from(map).expect("hash");
        for (key, rule) in &tables.exact6 {
            map.insert(key, rule, 0).expect("insert");
        }
        let map = self.ebpf.map_mut(name::PREFIX4).expect("map");
        let mut map = LpmTrie::<_, PrefixKey4, PrefixRule>::try_from(map).expect("trie");
        for ((key, bits), rule) in &tables.prefix4 {
            map.insert(&Key::new(*bits, *key), rule, 0).expect("insert");
        }
        let map = self.ebpf.map_mut(name::PREFIX6).expect("map");
        let mut map = LpmTrie::<_, PrefixKey6, PrefixRule>::try_from(map).expect("trie");
        for ((key, bits), rule) in &tables.prefix6 {
            map.insert(&Key::new(*bits, *key), rule, 0).expect("insert");
        }
    }

    pub fn set_flow_in(&mut self, key: &FlowKey, flow: &Flow) {
        let map = self.ebpf.map_mut(name::FLOWS_IN).expect("map");
        let mut map = HashMap::<_, FlowKey, Flow>::try_from(map).expect("hash");
        map.insert(key, flow, 0).expect("insert");
        let map = self.ebpf.map_mut(name::INBOUND).expect("map");
        let mut map = Array::<_, Inbound>::try_from(map).expect("array");
        map.set(
            key.slot,
            Inbound {
                networks: [1; NETWORKS],
            },
            0,
        )
        .expect("set");
    }

    /// A pod's counters, one a CPU.
    pub fn counters(&self, slot: u32) -> Vec<PodCounters> {
        let map = self.ebpf.map(name::COUNTERS).expect("map");
        let map = PerCpuArray::<_, PodCounters>::try_from(map).expect("array");
        map.get(&slot, 0).expect("slot").to_vec()
    }

    /// Runs a program once; its return code and the frame afterwards.
    /// `None` if the kernel's test harness refuses such a frame itself.
    pub fn run(&self, program: &str, frame: &[u8]) -> Option<(i32, Vec<u8>)> {
        let mut out = vec![0; 2048];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        };
        match self.program(program).test_run(options) {
            Ok(result) => {
                out.truncate(result.data_size_out as usize);
                Some((result.return_value.cast_signed(), out))
            }
            Err(error) => {
                let text = format!("{error:?}");
                assert!(text.contains("code: 22"), "BPF_PROG_TEST_RUN: {text}");
                None
            }
        }
    }

    /// Nanoseconds of one run, on average over `repeat`.
    pub fn time(&self, program: &str, frame: &[u8], repeat: u32) -> f64 {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat,
            ..TestRunOptions::new()
        };
        let result = self
            .program(program)
            .test_run(options)
            .expect("BPF_PROG_TEST_RUN");
        result.duration.as_secs_f64() * 1e9
    }

    /// As `time`, for a program of the cgroup hook.
    pub fn time_cgroup(&self, program: &str, frame: &[u8], repeat: u32) -> f64 {
        let program: &CgroupSkb = self
            .ebpf
            .program(program)
            .expect("program")
            .try_into()
            .expect("cgroup_skb");
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat,
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).expect("BPF_PROG_TEST_RUN");
        result.duration.as_secs_f64() * 1e9
    }
}

/// Nanoseconds of the clock that the kernel programs read.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call, and the clock exists.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    assert_eq!(failed, 0, "clock_gettime");
    u64::try_from(time.tv_sec).expect("after boot") * 1_000_000_000
        + u64::try_from(time.tv_nsec).expect("positive")
}
