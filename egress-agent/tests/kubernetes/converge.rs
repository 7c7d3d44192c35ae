//! Whatever changes and whatever goes wrong: every state that is told is made of states that were
//! true, none older than what was told before, and in the end it is the true one.

use std::collections::BTreeMap;
use std::time::Duration;

use egress_agent::compile::{self, Compiled, Hold};
use egress_agent::index::{Index, Key, Object};
use k8s_openapi::jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout};
use xtask::apiserver::{Fault, Faults};

use super::history::{History, typed};
use super::objects::NODE;
use super::world::{Follower, log};

/// Changes of one run.
const CHANGES: u32 = 120;
/// After the last fault the true state is there within so long.
const BOUND: Duration = Duration::from_secs(20);
/// The part that comes and goes with definitions.
const GLOO: &str = "gloo's gateways";

/// Parts of the state that are read by one watch each: what is told of one must have been true.
pub fn parts(index: &Index) -> BTreeMap<&'static str, String> {
    let pods = |own: bool| {
        let pods = index
            .pods()
            .iter()
            .filter(|(_, pod)| (pod.node == NODE) == own);
        pods.map(|(key, pod)| format!("{key} {pod:?}"))
            .collect::<Vec<_>>()
    };
    let gateways = |gloo: bool| {
        let all = index.virtual_gateways().iter();
        let some = all.filter(|(key, _)| key.name.starts_with("gloo") == gloo);
        some.map(|(key, gateway)| format!("{key} {gateway:?}"))
            .collect::<Vec<_>>()
    };
    let slices: Vec<_> = index.slices_of(&Key::new("bookinfo", "s")).collect();
    let namespaces = ["bookinfo", "other", "istio-egress"].map(|name| index.namespace(name));
    BTreeMap::from([
        ("lockdowns", format!("{:?}", index.lockdowns())),
        ("own pods", format!("{:?}", pods(true))),
        ("gateways", format!("{:?}", gateways(false))),
        (GLOO, format!("{:?}", gateways(true))),
        ("services", format!("{:?}", index.services())),
        ("slices", format!("{slices:?}")),
        ("accounts", format!("{:?}", index.service_accounts())),
        ("nodes", format!("{:?}", index.nodes())),
        ("namespaces", format!("{namespaces:?}")),
        ("outside", format!("{:?}", index.external_services())),
        ("policies", format!("{:?}", index.access_policies())),
    ])
}

fn compiled(index: &Index) -> Compiled {
    let settings = compile::Settings {
        node_name: NODE.to_owned(),
        ..compile::Settings::default()
    };
    compile::compile(index, &settings, &|_: &Key| true, Timestamp::UNIX_EPOCH)
}

/// How `web`, which is always there, is held, and which exceptions it has. That depends on nothing
/// but lockdowns: kinds are read one by one, and two of them may never have been so at one time.
fn held(index: &Index) -> (Hold, Vec<String>) {
    let compiled = compiled(index);
    let mut pods = compiled.desired.pods.values();
    let web = pods.find(|pod| pod.name == "web").expect("it is there");
    let policy = web.policy.map(|digest| &compiled.desired.policies[&digest]);
    let prefixes = policy.into_iter().flat_map(|policy| policy.prefix4.keys());
    let prefixes = prefixes.map(|prefix| format!("{prefix:?}"));
    (
        web.hold,
        prefixes.filter(|p| !p.contains("10.244")).collect(),
    )
}

/// What is checked of each state that is told.
#[derive(Default)]
pub struct Witness {
    /// For each part the state, by number, that was told last at the earliest.
    told: BTreeMap<&'static str, usize>,
    pub states: usize,
}

impl Witness {
    fn check(&mut self, seed: u64, view: &Index, history: &History) {
        self.check_parts(seed, view, history);
        // And what comes of it is no looser than it was at some time since then.
        let since = self.told["lockdowns"];
        let mut before = history.states[since..].iter().map(held);
        let now = held(view);
        assert!(
            before.any(|held| held == now),
            "seed {seed}: never so held: {now:?}"
        );
    }

    /// Each part was so, not before what was told of it last.
    pub fn check_parts(&mut self, seed: u64, view: &Index, history: &History) {
        self.states += 1;
        let known: Vec<_> = history.states.iter().map(parts).collect();
        let watched = parts(view).into_iter().filter(|(part, _)| *part != GLOO);
        for (part, content) in watched {
            let from = self.told.get(part).copied().unwrap_or(0);
            let found = (from..known.len()).find(|&i| known[i][part] == content);
            let Some(found) = found else {
                let before = (0..from).rev().find(|&i| known[i][part] == content);
                panic!(
                    "seed {seed}: {part} never were so since {from} (but at {before:?}): {content}"
                );
            };
            self.told.insert(part, found);
        }
        // Pods of other nodes come and go with the selectors, and Gloo's objects one by one with their
        // definition; each must have been so.
        let others = view.pods().iter().filter(|(_, pod)| pod.node != NODE);
        for (key, pod) in others {
            let was = history
                .states
                .iter()
                .any(|s| s.pods().get(key) == Some(pod));
            assert!(was, "seed {seed}: {key} never was so: {pod:?}");
        }
        for (key, gateway) in view.virtual_gateways() {
            let mut states = history.states.iter();
            let was = states.any(|s| s.virtual_gateways().get(key) == Some(gateway));
            assert!(was, "seed {seed}: {key} never was so: {gateway:?}");
        }
    }
}

/// What an agent of this node has to know of the whole.
pub fn expected(history: &History) -> Index {
    let whole = history.states.last().expect("a state");
    let selected = |key: &Key, labels: &BTreeMap<String, String>| {
        whole.virtual_gateways().iter().any(|(gateway, declared)| {
            gateway.namespace == key.namespace
                && declared.spec.workloads[0]
                    .selector
                    .labels
                    .iter()
                    .all(|(k, v)| labels.get(k) == Some(v))
        })
    };
    let mut index = Index::default();
    let objects = history.truth.values().map(typed);
    index.reset(
        objects
            .filter(|object| {
                let Object::Pod(pod) = object else {
                    return true;
                };
                let id = object.id();
                let labels = pod.metadata.labels.clone().unwrap_or_default();
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
                node == Some(NODE) || selected(&Key::new(&id.namespace, &id.name), &labels)
            })
            .collect(),
    );
    index
}

/// States that were told, and faults that happened.
async fn run(seed: u64, faults: Faults) -> (usize, usize) {
    let mut history = History::new(seed);
    let mut follower = Follower::new(&history.api).await;
    follower.until("the first state", |f| f.changes > 0).await;
    let mut witness = Witness::default();
    witness.check(seed, &follower.index, &history);
    history.api.set_faults(Faults { seed, ..faults });
    for _ in 0..CHANGES {
        history.change();
        match history.random.below(40) {
            0 => history.api.compact(),
            1 => history.api.break_connections(),
            2 => {
                history.api.compact();
                history.api.break_connections();
            }
            3 => history.api.set_away(true),
            4..8 => history.api.set_away(false),
            _ => {}
        }
        let pause = Duration::from_millis(history.random.below(30));
        let until = Instant::now() + pause;
        while let Ok(news) = timeout(
            until - Instant::now().min(until),
            follower.updates.changed(),
        )
        .await
        {
            news.expect("the source runs");
            if follower.take() {
                witness.check(seed, &follower.index, &history);
            }
        }
    }
    let faults = history.api.faults().len();
    history.api.set_faults(Faults::default());
    history.api.set_away(false);
    let expected = expected(&history);
    let (want, want_pods) = (parts(&expected), expected.pods().clone());
    let start = Instant::now();
    while parts(&follower.index) != want || *follower.index.pods() != want_pods {
        let left = BOUND.checked_sub(start.elapsed());
        let left = left.unwrap_or_else(|| {
            let mut is = parts(&follower.index);
            is.retain(|part, content| want[part] != *content);
            let pods = follower.index.pods();
            panic!("seed {seed}: after {BOUND:?} these are not true: {is:#?}\npods: {pods:#?}\nthey should be {want:#?}\n{want_pods:#?}")
        });
        if let Ok(news) = timeout(left, follower.updates.changed()).await {
            news.expect("the source runs");
            if follower.take() {
                witness.check(seed, &follower.index, &history);
            }
        }
    }
    assert_eq!(
        compiled(&follower.index),
        compiled(&expected),
        "seed {seed}"
    );
    // It stays so.
    sleep(Duration::from_millis(100)).await;
    follower.take();
    assert_eq!(parts(&follower.index), want, "seed {seed}");
    (witness.states, faults)
}

/// `SALLYPORT_SEEDS` runs so many, `SALLYPORT_SEED` begins at another; `RUST_LOG=egress_agent=debug`
/// tells how it went.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_told_state_was_true_and_the_last_is() {
    log();
    let number = |variable: &str, default| {
        std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
    };
    let (first, runs) = (number("SALLYPORT_SEED", 1), number("SALLYPORT_SEEDS", 12));
    let (mut states, mut faults) = (0, 0);
    for seed in first..first + runs {
        let some = Faults {
            per_mille: 60,
            budget: 80,
            delay: Duration::from_millis(20),
            ..Faults::default()
        };
        let (told, happened) = run(seed, some).await;
        states += told;
        faults += happened;
    }
    println!("{runs} runs, {states} states told, {faults} faults");
    let runs = usize::try_from(runs).expect("few");
    assert!(
        states > 10 * runs && faults > 10 * runs,
        "{states} states, {faults} faults"
    );
}

/// Where every other watch has to list anew, from servers of which some are behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_never_older_than_what_was_told() {
    log();
    for seed in 101..107 {
        let faults = Faults {
            per_mille: 400,
            budget: 400,
            kinds: vec![Fault::Gone, Fault::EarlyEnd, Fault::Stale, Fault::Delay],
            delay: Duration::from_millis(20),
            ..Faults::default()
        };
        let (told, happened) = run(seed, faults).await;
        assert!(
            told > 10 && happened > 50,
            "{told} states, {happened} faults"
        );
    }
}
