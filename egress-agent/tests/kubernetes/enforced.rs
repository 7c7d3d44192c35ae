//! From the API server to each packet: whatever changes and whatever goes wrong, no operation on the
//! kernel lets a packet go that neither what was known before nor what is known now allows, nor stops
//! one that both allow; and in the end the kernel does what the final objects say.
//!
//! What is known is made of states that were true (`converge`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use egress_agent::compile::{self, Compiled};
use egress_agent::gateway::OutboundPolicy;
use egress_agent::index::{Index, Key};
use egress_agent::node::{Device, Sighting, Sightings};
use egress_agent::policy_server::Served;
use egress_agent::reconcile::{Op, Reconciler};
use egress_common::maps::{Config, MODE_ENFORCE};
use k8s_openapi::jiff::Timestamp;
use tokio::time::{Instant, timeout};
use xtask::apiserver::Faults;

use super::converge::{Witness, expected, parts};
use super::history::History;
use super::kernel::{Births, Body, Memory, Passing};
use super::objects::NODE;
use super::wide::addresses;
use super::world::{Follower, log};

/// Changes of one run.
const CHANGES: u32 = 120;
/// After the last fault the true state is there within so long.
const BOUND: Duration = Duration::from_secs(20);

const CONFIG: Config = Config {
    qos_cgroups: [0; 2],
    kubepods: 1,
    kubepods_level: 1,
    event_interval_ns: 1,
    event_burst: 1,
    unknown_mode: MODE_ENFORCE,
    pad: [0; 3],
};

/// Where pods try to go.
fn destinations() -> Vec<SocketAddr> {
    let mut to: Vec<SocketAddr> = [
        // The Service and its endpoints, the gateways' Service, each exception, nodes, an overlay.
        "10.96.0.7:80",
        "10.96.0.20:443",
        "10.244.1.10:80",
        "203.0.113.9:80",
        "192.0.2.1:443",
        "192.0.2.129:443",
        "198.51.100.7:443",
        "203.0.113.1:443",
        "192.168.0.1:443",
        "192.168.0.2:4789",
        "8.8.8.8:443",
        "[2001:db8::1]:443",
    ]
    .map(|to| to.parse().expect("an address"))
    .into();
    for number in [20, 22, 24] {
        let (v4, v6) = addresses(2, number);
        let more: [SocketAddr; 3] = [(v4, 8443).into(), (v4, 443).into(), (v6, 8443).into()];
        to.extend(more);
    }
    to
}

/// As the agent does it.
fn compiled(index: &Index) -> Compiled {
    let settings = compile::Settings {
        node_name: NODE.to_owned(),
        ..compile::Settings::default()
    };
    let outbound = OutboundPolicy::default();
    let (served, _) = Served::from_index(index, "cluster.local", None, outbound, None);
    let admits = |account: &Key| served.policy.admits(&account.namespace, &account.name);
    compile::compile(index, &settings, &admits, Timestamp::UNIX_EPOCH)
}

fn sightings(bodies: &[Body]) -> Sightings {
    let sighting = |body: &Body| Sighting {
        cgroup: Some(body.cgroup),
        devices: vec![Device {
            ifindex: body.ifindex,
            name: format!("veth{}", body.ifindex),
        }],
        running: true,
        ..Sighting::default()
    };
    let pods = bodies.iter();
    Sightings {
        pods: pods
            .map(|body| (body.uid.clone(), sighting(body)))
            .collect(),
        outlying: bodies.iter().map(|body| body.ifindex).collect(),
        devices: bodies.iter().map(|body| body.ifindex).collect(),
        ..Sightings::default()
    }
}

/// What a kernel does that is told of this and of nothing before.
fn fresh(compiled: &Compiled, bodies: &[Body], to: &[SocketAddr]) -> Passing {
    let mut kernel = Memory::default();
    kernel.set_alive(bodies.iter().map(|body| body.ifindex).collect());
    let mut reconciler = Reconciler::new(kernel);
    let report = reconciler.reconcile(&compiled.desired, &sightings(bodies), CONFIG, 1);
    assert_eq!(report.expect("it can be read").failures, []);
    reconciler.executor.passing(bodies, to)
}

/// A node, and what was done to its kernel.
struct Node {
    reconciler: Reconciler<Memory>,
    births: Births,
    to: Vec<SocketAddr>,
    passes: u64,
    operations: u64,
    crashes: u64,
    /// Passes that changed what some packet meets.
    flips: u64,
}

impl Node {
    fn new() -> Self {
        Self {
            reconciler: Reconciler::new(Memory::default()),
            births: Births::default(),
            to: destinations(),
            passes: 0,
            operations: 0,
            crashes: 0,
            flips: 0,
        }
    }

    /// As the agent's: what is known is brought to the kernel. In `within` operations, if it dies in
    /// the middle of it.
    fn pass(&mut self, seed: u64, view: &Index, history: &History, within: Option<u32>) {
        let bodies = history.bodies(&mut self.births);
        let compiled = compiled(view);
        let new = fresh(&compiled, &bodies, &self.to);
        let kernel = &mut self.reconciler.executor;
        kernel.set_alive(bodies.iter().map(|body| body.ifindex).collect());
        let old = kernel.passing(&bodies, &self.to);
        let allowed: Passing = old.union(&new).cloned().collect();
        let kept: Passing = old.intersection(&new).cloned().collect();
        let (place, to) = (format!("seed {seed}"), self.to.clone());
        let seen = bodies.clone();
        kernel.check = Some(Box::new(move |kernel: &Memory, op: &Op| {
            let now = kernel.passing(&seen, &to);
            let leaks: Vec<_> = now.difference(&allowed).collect();
            assert!(leaks.is_empty(), "{place}: {op} lets go: {leaks:#?}");
            let breaks: Vec<_> = kept.difference(&now).collect();
            assert!(breaks.is_empty(), "{place}: {op} stops: {breaks:#?}");
        }));
        kernel.left = within;
        self.passes += 1;
        self.flips += u64::from(old != new);
        let (desired, sightings) = (&compiled.desired, sightings(&bodies));
        let report = self
            .reconciler
            .reconcile(desired, &sightings, CONFIG, self.passes);
        let report = report.expect("it can be read");
        self.operations += report.writes;
        let kernel = &mut self.reconciler.executor;
        kernel.left = None;
        if !report.failures.is_empty() {
            assert!(within.is_some(), "seed {seed}: {:#?}", report.failures);
            self.crashes += 1;
            return;
        }
        let now = kernel.passing(&bodies, &self.to);
        assert_eq!(now, new, "seed {seed}: as if it had been told nothing else");
        let again = self
            .reconciler
            .reconcile(desired, &sightings, CONFIG, self.passes + 1);
        assert_eq!(again.expect("it can be read").writes, 0, "seed {seed}");
    }
}

/// Takes what has come, and brings it to the kernel.
fn take(
    seed: u64,
    follower: &mut Follower,
    witness: &mut Witness,
    node: &mut Node,
    history: &mut History,
) {
    if follower.take() {
        witness.check_parts(seed, &follower.index, history);
        let dies = history.random.below(6) == 0;
        let within = dies.then(|| u32::try_from(history.random.below(12)).expect("few"));
        node.pass(seed, &follower.index, history, within);
    }
}

async fn run(seed: u64) -> (Node, usize) {
    let mut history = History::wide(seed);
    let mut follower = Follower::new(&history.api).await;
    follower.until("the first state", |f| f.changes > 0).await;
    let (mut witness, mut node) = (Witness::default(), Node::new());
    witness.check_parts(seed, &follower.index, &history);
    node.pass(seed, &follower.index, &history, None);
    history.api.set_faults(Faults {
        seed,
        per_mille: 60,
        budget: 80,
        delay: Duration::from_millis(20),
        ..Faults::default()
    });
    for _ in 0..CHANGES {
        history.change_widely();
        match history.random.below(50) {
            0 => history.api.compact(),
            1 => history.api.break_connections(),
            2 => history.api.set_away(true),
            3..8 => history.api.set_away(false),
            8 => {
                // The agent begins anew, and finds the kernel as it left it.
                history.api.set_away(false);
                follower = Follower::new(&history.api).await;
                follower.until("its first state", |f| f.changes > 0).await;
                witness.check_parts(seed, &follower.index, &history);
                node.pass(seed, &follower.index, &history, None);
            }
            // Pods come and go without an object's change being told.
            9..16 => node.pass(seed, &follower.index, &history, None),
            _ => {}
        }
        let until = Instant::now() + Duration::from_millis(history.random.below(30));
        while let Ok(news) = timeout(
            until - Instant::now().min(until),
            follower.updates.changed(),
        )
        .await
        {
            news.expect("the source runs");
            take(seed, &mut follower, &mut witness, &mut node, &mut history);
        }
    }
    let faults = history.api.faults().len();
    history.api.set_faults(Faults::default());
    history.api.set_away(false);
    let expected = expected(&history);
    let (want, want_pods) = (parts(&expected), expected.pods().clone());
    let start = Instant::now();
    while parts(&follower.index) != want || *follower.index.pods() != want_pods {
        let left = BOUND.saturating_sub(start.elapsed());
        let news = timeout(left, follower.updates.changed()).await;
        let news = news.unwrap_or_else(|_| panic!("seed {seed}: not told within {BOUND:?}"));
        news.expect("the source runs");
        take(seed, &mut follower, &mut witness, &mut node, &mut history);
    }
    // The last pass may have been one that died.
    node.pass(seed, &follower.index, &history, None);
    let bodies = history.bodies(&mut node.births);
    let is = node.reconciler.executor.passing(&bodies, &node.to);
    let should = fresh(&compiled(&expected), &bodies, &node.to);
    assert_eq!(is, should, "seed {seed}: what the final objects say");
    (node, faults)
}

/// `SALLYPORT_SEEDS` runs so many, `SALLYPORT_SEED` begins at another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_never_lets_go_what_neither_old_nor_new_state_allows() {
    log();
    let number = |variable: &str, default| {
        std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
    };
    let (first, runs) = (number("SALLYPORT_SEED", 1), number("SALLYPORT_SEEDS", 6));
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in first..first + runs {
        let (node, faults) = run(seed).await;
        for (what, many) in [
            ("passes", node.passes),
            ("operations", node.operations),
            ("crashes", node.crashes),
            ("flips", node.flips),
            ("faults", faults as u64),
        ] {
            *sums.entry(what).or_default() += many;
        }
    }
    println!("{runs} runs: {sums:?}");
    for (what, least) in [
        ("passes", 30),
        ("operations", 100),
        ("crashes", 1),
        ("flips", 15),
        ("faults", 10),
    ] {
        assert!(sums[what] >= least * runs, "too few {what}: {sums:?}");
    }
}
