//! A held cluster under traffic while something happens to it, and what must come of it.

use std::hash::{BuildHasher as _, Hasher as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use egress_common::Reason;
use serde_json::json;
use xtask::node::wire::Wire;

use super::traffic::{SECRET, Traffic};
use super::{Cluster, skipped};

/// Forbidden packets that were sent, and those that the kernel counted as denied.
struct Forbidden {
    sent: u64,
    denied: u64,
}

/// As `under_traffic`, where each packet must be found in the counters, however the agent fares: none was lost on the
/// way to the hook, and none went by it.
pub fn under_counted_traffic(name: &str, during: impl FnOnce(&mut Cluster)) {
    if let Some(forbidden) = held(name, during) {
        assert_eq!(forbidden.sent, forbidden.denied, "{name}");
    }
}

/// A held cluster that an agent has been on, and traffic; `during` happens to it.
pub fn under_traffic(name: &str, during: impl FnOnce(&mut Cluster)) {
    held(name, during);
}

fn held(name: &str, during: impl FnOnce(&mut Cluster)) -> Option<Forbidden> {
    if skipped(name) {
        return None;
    }
    let mut cluster = Cluster::new();
    cluster.lockdown("Enforce", &json!({}));
    let agent = cluster.agent(true);
    let wire = cluster.node.wire().expect("a recorder");
    let mark = wire.mark();
    let before = denied(&cluster);
    let traffic = Traffic::start(&cluster);
    sleep(Duration::from_millis(300));
    agent.stop();
    during(&mut cluster);
    let (answered, sent) = traffic.stop();
    let denied = denied(&cluster) - before;
    println!(
        "{name}: {answered:?} requests answered, {sent} forbidden packets sent, {denied} denied"
    );
    assert!(
        answered.iter().all(|n| *n > 20) && sent > 100,
        "there was traffic"
    );
    nothing_got_out(&wire, mark);
    no_stranger_was_seen(&cluster);
    Some(Forbidden { sent, denied })
}

/// Packets of `web` that were denied, as the kernel has counted them.
fn denied(cluster: &Cluster) -> u64 {
    let slot = cluster.slot(&cluster.web);
    let reason = Reason::NotAllowed.as_str().to_owned();
    let counters = cluster.counters();
    counters.get(&(slot, reason)).copied().unwrap_or(0)
}

/// The agent takes nothing that it did itself for somebody's doing. Hooks do get lost: with a device that
/// is moved away and comes back.
pub fn no_stranger_was_seen(cluster: &Cluster) {
    let log = cluster.log();
    let events = ["entries_changed", "hook_displaced"];
    let told = |line: &&str| events.iter().any(|event| line.contains(event));
    let lines: Vec<&str> = log.lines().filter(told).collect();
    assert!(lines.is_empty(), "nobody did that: {lines:#?}");
}

/// No forbidden packet has arrived outside since.
pub fn nothing_got_out(wire: &Wire, mark: usize) {
    let out = wire.since(mark);
    let out: Vec<_> = out
        .iter()
        .filter(|packet| packet.contains(SECRET))
        .collect();
    assert!(
        out.is_empty(),
        "{} got out, such as {:?}",
        out.len(),
        out[0]
    );
}

/// Numbers of a seed that is printed, so that a failure can be looked into.
pub struct Random(u64);

impl Random {
    /// `SALLYPORT_SEED`, or another one each time.
    pub fn new() -> Self {
        let given = std::env::var("SALLYPORT_SEED").ok();
        let seed = given.and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
            std::collections::hash_map::RandomState::new()
                .build_hasher()
                .finish()
        });
        println!("SALLYPORT_SEED={seed}");
        Self(seed)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A number that the environment may change.
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}"))
    })
}

/// Where an agent and `egressctl` are whose maps have another layout and are small;
/// `cargo xtask test` has built them, else they are built now.
pub fn other_layout() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        if let Some(path) = std::env::var_os("SALLYPORT_OTHER_LAYOUT") {
            return path.into();
        }
        let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["build", "--other-layout"])
            .stderr(Stdio::inherit())
            .output()
            .expect("run xtask");
        assert!(output.status.success(), "the other layout does not build");
        let printed = String::from_utf8_lossy(&output.stdout);
        printed.lines().last().expect("a path").into()
    };
    BUILT.get_or_init(build).clone()
}
