//! The daemon: waits for what may change something, and lets one pass at a time bring the kernel
//! in step. While a pass runs, changes gather; the next sees them all at once.
#![forbid(unsafe_code)]

mod announced;
mod calendar;
mod conntrack;
mod core;
mod disturbed;
mod fence;
pub mod gateway_status;
mod gateways;
mod newcomers;
mod options;
mod own_pod;
mod policy;
mod privileges;
mod program;
mod run_dir;
mod source;
pub mod startup_taint;
mod static_pods;
pub mod status;
mod telling;
mod turning;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

pub use self::core::{Core, Outcome};
pub use conntrack::Conntrack;
pub use options::{
    ClientBinding, GatewayAuthz, Gloo, HooksChoice, LogFormat, NriSocket, Options, Outbound,
    Source, TlsMin, UnknownPods,
};
pub use program::main;
pub use run_dir::{LAST_GOOD, Ready, RunDir};

use crate::datapath::pinned::Pinned;
use crate::datapath::{Datapath, Kernel};
use crate::fence::Part;
use crate::node::{Kubepods, Scout, Watcher};
use crate::nri;
use crate::policy_server::xds::XdsStatus;
use crate::source::{Updates, kubernetes};
use crate::telemetry::{Consumer, Hub, Metrics, http, socket};
use gateways::Gateways;
use status::{Board, Telling, Terms};

/// The kernel's state is compared with the desired one so often whatever happens.
const RESYNC: Duration = Duration::from_secs(10);
/// What stands in the kernel is compared so often with what the last pass left, so that a hook that
/// somebody takes off or goes before is back within a second.
const PLACE_CHECK: Duration = Duration::from_millis(500);
/// First and longest wait before what failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Between a pass and the next one for new objects: in a big cluster endpoints change all the time.
const GATHER: Duration = Duration::from_millis(50);
/// A pass for a time that has come waits at least so long, should the clock be behind.
const EPSILON: Duration = Duration::from_millis(10);

/// Runs until it is told to end. Pins stay, and with them enforcement.
///
/// # Errors
/// If it can't start: no kernel programs, no BPF file system, no kubepods, no state directory,
/// another agent. Later trouble is logged and tried again.
pub async fn run(options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hooks = options.device_hooks();
    hooks.check().map_err(privileges::explain)?;
    let run_dir = RunDir::lock(&options.run_dir)?;
    let kubepods = Kubepods::find(options.cgroup_root.as_deref(), options.kubepods.as_deref())
        .context("can't find the pods' cgroups")?;
    let mut sources = JoinSet::new();
    let heritage = run_dir.heritage();
    let mut updates = source::open(&options, heritage.clone(), &mut sources).await?;
    // Watch first, look then: nothing is missed.
    let mut watcher = Watcher::new(kubepods.clone(), RESYNC)?;
    let scout = Scout::new(kubepods.clone())?;
    let datapath = Datapath::load(&options.bpffs, hooks, (&kubepods.path, kubepods.id))
        .map_err(privileges::explain)?;
    tracing::info!(
        event = "loaded", pins = %datapath.pins().root().display(),
        kubepods = %kubepods.path.display(), device_hooks = hooks.name(), instructions = ?datapath.verified_instructions()
    );
    let mut kernel = kernel_of(datapath);
    own_pod::let_through(&mut kernel, &kubepods)?;
    let gateways = Gateways::new(&options);
    let pinned = Pinned::open(&options.bpffs)?;
    let metrics = Metrics::new(Some(pinned.clone()));
    let mut tasks = telemetry(&options, pinned, run_dir.path(), &metrics).await?;
    let status = XdsStatus::default();
    let (board, telling) = tell_api_server(&options, &status, &metrics, &mut tasks).await?;
    let policy_server = policy::serve(
        &options,
        run_dir.path(),
        gateways.served(),
        status,
        metrics.policy(),
        &mut tasks,
    )?;
    let mut core = Core::new(&options, scout, kernel, gateways, run_dir, metrics, board)?;
    core.inherit(heritage);
    let mut asked = core.nri().changes();
    begin_of_pods(&options, &core, &mut tasks).await?;

    let mut place_check = place_check();
    let mut retry = Retry::default();
    // Sync first: what the kernel holds stands until everything was read once.
    let mut stop = tokio::select! {
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
        first = first_objects(&mut updates, &mut core) => first.map(|()| false)?,
    };
    let mut fresh = Some(updates.take());
    while !stop {
        let outcome = tokio::task::block_in_place(|| core.pass(fresh.take()));
        let outcome = outcome.unwrap_or_else(|error| {
            tracing::error!(event = "pass_failed", error = format!("{error:#}"));
            Outcome {
                failed: true,
                incomplete: true,
                next_change: None,
            }
        });
        let passed = Instant::now();
        watcher.looked(outcome.incomplete);
        let again = retry.next(outcome.failed, outcome.next_change);
        stop = loop {
            core.goes_round();
            tokio::select! {
                _ = terminate.recv() => break true,
                _ = interrupt.recv() => break true,
                // A sandbox is held until a pass has seen it.
                changed = asked.changed() => {
                    changed.context("nobody tells of sandboxes any more")?;
                    break false;
                }
                changed = updates.changed() => {
                    changed?;
                    tokio::select! {
                        () = sleep_until(passed + GATHER) => {}
                        _ = asked.changed() => {}
                    }
                    fresh = Some(updates.take());
                    break false;
                }
                changed = watcher.changed() => {
                    changed.context("can't watch the node")?;
                    break false;
                }
                () = sleep_until(again) => break false,
                _ = place_check.tick() => {
                    if core.is_due() || tokio::task::block_in_place(|| core.is_disturbed()) {
                        break false;
                    }
                }
            }
        };
    }
    sources.shutdown().await;
    policy_server.stop().await;
    if let Some(telling) = telling {
        telling.end().await;
    }
    tasks.shutdown().await;
    tracing::info!(event = "stopped", "what is pinned stays in force");
    Ok(())
}

/// The kernel that passes write to, with a fence where it has what that takes.
fn kernel_of(datapath: Datapath) -> Kernel {
    let kernel = Kernel::new(datapath, Box::<Conntrack>::default());
    kernel.with_fence(fence::open(Part::Fence))
}

fn place_check() -> Interval {
    let mut ticks = interval(PLACE_CHECK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Waits until everything was read once, however long that takes, and goes round meanwhile.
async fn first_objects(updates: &mut Updates, core: &mut Core) -> Result<()> {
    let mut tick = place_check();
    loop {
        core.goes_round();
        tokio::task::block_in_place(|| core.let_static_pods_through());
        tokio::select! {
            changed = updates.changed() => return Ok(changed?),
            _ = tick.tick() => {}
        }
    }
}

/// Starts what tells the API server what became of its objects, where they come from one.
async fn tell_api_server(
    options: &Options,
    status: &XdsStatus,
    metrics: &Metrics,
    tasks: &mut JoinSet<()>,
) -> Result<(Board, Option<Telling>)> {
    if options.source != Source::Kubernetes {
        return Ok((Board::default(), None));
    }
    let client = kubernetes::client(options.kubeconfig.as_deref()).await?;
    let node = options.node_name.clone();
    let (board, mut following) = Board::new();
    following.without_agent = metrics.nodes_without_agent();
    let telling = Telling::begin(client.clone(), &node, Terms::default(), following);
    if options.policy_address.is_some() {
        tasks.spawn(gateway_status::follow(client, node, status.follow()));
    }
    Ok((board, Some(telling)))
}

/// Starts what keeps pods from beginning before their hooks stand.
async fn begin_of_pods(options: &Options, core: &Core, tasks: &mut JoinSet<()>) -> Result<()> {
    let means = newcomers::Means {
        early: core.reconciler.executor.datapath.early()?,
        gate: newcomers::gate(options.unknown_pods),
        armed: core.armed(),
        teller: core.teller(),
    };
    if means.early.is_some() || means.gate.is_some() {
        newcomers::follow(means)?;
    }
    if let Some(settings) = options.nri() {
        tasks.spawn(nri::follow(settings, core.nri(), core.nri_metrics()));
    }
    if let Some(taint) = options.startup_taint_key.clone() {
        anyhow::ensure!(
            options.source == Source::Kubernetes,
            "--startup-taint-key needs --source kubernetes"
        );
        let client = kubernetes::client(options.kubeconfig.as_deref()).await?;
        let node = options.node_name.clone();
        tasks.spawn(startup_taint::follow(client, node, taint, core.synced()));
    }
    Ok(())
}

/// Starts what tells of events and numbers.
async fn telemetry(
    options: &Options,
    pinned: Pinned,
    run_dir: &Path,
    metrics: &Arc<Metrics>,
) -> Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    let hub = Hub::new();
    let socket = socket::Server::bind(run_dir)?;
    tasks.spawn(socket.run(hub.clone()));
    if let Some(address) = options.metrics_address {
        let server = http::Server::bind(address).await?;
        tasks.spawn(server.run(metrics.clone()));
    }
    if let Some(address) = options.metrics_tls_address {
        let source = policy::certificates(options, "--metrics-tls-address")?;
        let (identities, following) = source.follow();
        tasks.spawn(following);
        let server = http::Server::bind(address).await?.over_tls(identities);
        tasks.spawn(server.run(metrics.clone()));
    }
    let consumer = Consumer::new(pinned, run_dir, hub, metrics.clone());
    tasks.spawn(async move {
        // Enforcement does not depend on it.
        if let Err(error) = consumer.run().await {
            tracing::error!(event = "events_ended", %error, "restart the agent to follow events");
        }
    });
    Ok(tasks)
}

/// When to look again by the clock.
#[derive(Debug, Default)]
struct Retry {
    /// Failures in a row.
    failures: u32,
}

impl Retry {
    /// Waits longer after each failure in a row.
    fn next(&mut self, failed: bool, change: Option<Timestamp>) -> Instant {
        let mut wait = RESYNC;
        if failed {
            let (first, longest) = RETRY;
            let delay = first.saturating_mul(1 << self.failures.min(10));
            wait = delay.min(longest);
            self.failures += 1;
        } else {
            self.failures = 0;
        }
        if let Some(change) = change {
            let left = change.duration_since(Timestamp::now());
            let left = Duration::try_from(left).unwrap_or_default();
            wait = wait.min(left + EPSILON);
        }
        Instant::now() + wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_longer_after_each_failure_and_no_longer_than_a_change() {
        let mut retry = Retry::default();
        let waits = |retry: &mut Retry, failed, change| {
            let now = Instant::now();
            retry.next(failed, change).duration_since(now)
        };
        let first = waits(&mut retry, true, None);
        let second = waits(&mut retry, true, None);
        assert!(first >= RETRY.0 && second >= 2 * RETRY.0);
        for _ in 0..40 {
            waits(&mut retry, true, None);
        }
        assert!(waits(&mut retry, true, None) <= RETRY.1 + EPSILON);
        assert!(waits(&mut retry, false, None) >= RESYNC);
        assert!(waits(&mut retry, true, None) <= RETRY.0 + EPSILON);
        // However far the clock was set forward or back meanwhile.
        for past in [Timestamp::UNIX_EPOCH, Timestamp::MIN] {
            assert!(waits(&mut retry, false, Some(past)) <= 2 * EPSILON);
        }
        assert!(waits(&mut retry, false, Some(Timestamp::MAX)) >= RESYNC);
    }
}
