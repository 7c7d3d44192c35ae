//! One look and one reconciliation: everything of the agent that is not waiting.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use egress_common::maps::Config;
use k8s_openapi::jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::announced;
use super::calendar::Calendar;
use super::gateways::Gateways;
use super::options::{Options, Outbound};
use super::own_pod;
use super::run_dir::{LAST_GOOD, Ready, RunDir};
use super::static_pods;
use super::status::Board;
use super::turning::Turning;
use crate::compile::{self, Compiled, DesiredState};
use crate::datapath::maps::text;
use crate::datapath::{DeviceHooks, Kernel, Observed};
use crate::index::{Effect, Heritage, Index, Key, Problem};
use crate::node::{Scout, Sightings};
use crate::nri::{self, Sandboxes};
use crate::reconcile::op::Subject;
use crate::reconcile::{Failure, NodeStatus, Reconciler, Report, status};
use crate::source::Update;
use crate::telemetry::Metrics;

/// Nanoseconds between two events of one pod and CPU, on the average.
const EVENT_INTERVAL_NS: u32 = 10_000_000;
/// Events of one pod and CPU at once.
const EVENT_BURST: u32 = 64;

/// What the agent knows and holds.
#[derive(Debug)]
pub struct Core {
    pub(super) settings: compile::Settings,
    calendar: Calendar,
    unknown_mode: u8,
    kubepods_level: u32,
    index: Index,
    pub(super) compiled: Compiled,
    scout: Scout,
    sightings: Sightings,
    pub(super) reconciler: Reconciler<Kernel>,
    gateways: Gateways,
    pub(super) run_dir: RunDir,
    pub(super) metrics: Arc<Metrics>,
    nri: Arc<nri::Board>,
    /// Whether the kernel is as desired.
    synced: watch::Sender<bool>,
    /// Whether a hook on a new device stops nobody that is known.
    armed: Arc<AtomicBool>,
    turning: Turning,
    pub(super) observed: Observed,
    pub(super) status: NodeStatus,
    writes: u64,
    pub(super) announced: bool,
    /// The last update, without its objects: what could not be read, and how new it is.
    told: Update,
    /// Everything could be read and used once: from then on last good versions are known.
    clean: bool,
    /// The kernel held something when this agent began.
    heir: bool,
    /// What was left last for the agent that comes next.
    bequeathed: Vec<u8>,
    problems: BTreeSet<Problem>,
    pub(super) failures: BTreeSet<String>,
    pub(super) board: Board,
}

/// What came of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Something could not be done; to be tried again soon.
    pub failed: bool,
    /// A pod has no process or device yet; to be looked at again soon.
    pub incomplete: bool,
    /// When the state changes by itself.
    pub next_change: Option<Timestamp>,
}

impl Core {
    pub fn new(
        options: &Options,
        scout: Scout,
        kernel: Kernel,
        gateways: Gateways,
        run_dir: RunDir,
        metrics: Arc<Metrics>,
        board: Board,
    ) -> Result<Self> {
        let observed = kernel.datapath.observe()?;
        let kubepods_level = own_pod::kubepods_level(&kernel, scout.kubepods())?;
        let heir = !observed.slots.is_empty();
        Ok(Self {
            settings: compile::Settings {
                node_name: options.node_name.clone(),
                pod_cidrs: options.pod_cidrs.clone(),
                cluster_name: options.cluster_name.clone(),
                allow_any: options.outbound_policy == Outbound::AllowAny,
                node_local_dns: options.node_local_dns.clone(),
                ..compile::Settings::default()
            },
            calendar: Calendar::default(),
            unknown_mode: options.unknown_pods.mode(),
            kubepods_level,
            index: Index::default(),
            compiled: Compiled::default(),
            scout,
            sightings: Sightings::default(),
            reconciler: Reconciler::new(kernel),
            gateways,
            run_dir,
            metrics,
            nri: Arc::default(),
            synced: watch::Sender::new(false),
            armed: Arc::default(),
            turning: Turning::default(),
            observed,
            status: NodeStatus::default(),
            writes: 0,
            announced: false,
            told: Update::default(),
            clean: false,
            heir,
            bequeathed: Vec::new(),
            problems: BTreeSet::new(),
            failures: BTreeSet::new(),
            board,
        })
    }

    /// Gives it what the agent before it had taken of policy.
    pub fn inherit(&mut self, heritage: Heritage) {
        self.index.inherit(heritage);
    }

    /// The loop goes round.
    pub(super) fn goes_round(&self) {
        self.metrics.goes_round();
    }

    /// Takes new objects, if there are any, looks at the node, and brings the kernel and the
    /// gateways in step with both.
    pub fn pass(&mut self, update: Option<Update>) -> Result<Outcome> {
        let sandboxes = self.nri.sandboxes();
        let changed = update.is_some_and(|update| self.learn(update));
        let changed = self.listen(&sandboxes) || changed;
        self.compile(changed);
        self.bequeath(changed);
        if self.is_held_back() {
            self.let_static_pods_through();
            self.synced.send_replace(false);
            self.run_dir.unset_ready()?;
            self.board.publish_held_back();
            return Ok(Outcome {
                failed: true,
                incomplete: false,
                next_change: None,
            });
        }
        let start = Instant::now();
        let report = self.look_and_reconcile()?;
        let failures = report.failures.len() + report.refused.len();
        self.metrics
            .reconciled(start.elapsed(), report.writes, failures as u64);
        self.cut_diverted();
        let gateways_held_back = self.serve_gateways();
        self.log_failures(&report);
        self.writes += report.writes;
        self.tell_found(&report.found);
        self.tell_left_out(&report.observed.shared);
        let errors = report.errors();
        let synced = report.in_sync() && !gateways_held_back;
        self.observed = report.observed;
        let armed = self.observed.knows_pods();
        self.armed.store(armed, Ordering::Release);
        let desired = &self.compiled.desired;
        let mut status = status(desired, &self.sightings, &self.observed, &errors);
        status.source = self.told.health;
        self.publish(status)?;
        self.board.publish(synced, &self.status, &self.failures);
        let strict = self.told.shared;
        let standings = announced::standings(&sandboxes, &self.status, &self.index, strict);
        self.nri.publish(sandboxes.version, standings);
        self.synced.send_replace(synced);
        if synced {
            self.run_dir.set_ready(Ready {
                revision: self.revision(),
                writes: self.writes,
            })?;
            if !self.announced {
                self.announced = true;
                tracing::info!(
                    event = "ready",
                    writes = self.writes,
                    pods = self.status.pods.len()
                );
            }
        } else {
            self.run_dir.unset_ready()?;
        }
        Ok(Outcome {
            failed: !synced,
            incomplete: self.incomplete(),
            next_change: self.compiled.next_change,
        })
    }

    /// For a while after objects have changed.
    fn cut_diverted(&mut self) {
        if self.turning.is_due(Instant::now()) {
            let desired = &self.compiled.desired;
            self.reconciler.executor.cut_diverted(desired);
        }
    }

    /// For as long as there are no passes, or they must change nothing else.
    pub fn let_static_pods_through(&mut self) {
        let kernel = &mut self.reconciler.executor;
        match static_pods::let_through(kernel, self.scout.kubepods()) {
            // Else it would look like somebody else's doing.
            Ok(made) => self.observed.cgroups.extend(made),
            Err(error) => {
                tracing::error!(event = "static_pods_denied", error = format!("{error:#}"));
            }
        }
    }

    /// Whether there is something to compile.
    fn learn(&mut self, mut update: Update) -> bool {
        // The first one may well be empty.
        let changed = update.apply(&mut self.index) | update.whole;
        let known = &self.told.problems;
        for _ in update.problems.iter().filter(|p| !known.contains(p)) {
            self.metrics.source_error();
        }
        self.metrics.set_source(&update.health);
        let declared = update.declared.take();
        self.told = update;
        if let Some(declared) = declared {
            self.board.declare(declared);
            if !changed {
                self.tell_findings();
            }
        }
        changed
    }

    /// Takes what the runtime tells of pods. Whether there is something to compile.
    fn listen(&mut self, sandboxes: &Sandboxes) -> bool {
        self.scout.set_namespaces(announced::namespaces(sandboxes));
        let pods = announced::pods(sandboxes, &self.settings.node_name);
        self.index.announce(pods)
    }

    /// Leaves policy to the agent that comes next, before the kernel is told of it: that one never
    /// knows less than what it finds in the kernel.
    fn bequeath(&mut self, changed: bool) {
        // A directory's files hold their objects together, and are read anew.
        if !self.told.shared || !(changed || self.bequeathed.is_empty()) {
            return;
        }
        let all = self.index.bequeath();
        if all == self.bequeathed {
            return;
        }
        match self.run_dir.write(LAST_GOOD, &all) {
            Ok(()) => self.bequeathed = all,
            Err(error) => {
                self.bequeathed.clear();
                tracing::error!(event = "last_good_unwritten", error = format!("{error:#}"));
            }
        }
    }

    /// Whether the kernel must be left as it is: an agent that starts has no last good version of
    /// what it can't read now if none was left to it, and what the kernel holds may come from it. Until all could be read
    /// once, nothing is loosened; pods that are new meanwhile meet the closed gate.
    fn is_held_back(&mut self) -> bool {
        if self.clean {
            return false;
        }
        // Where many write objects, one of theirs must not keep what operators declare from the
        // kernel; without any other than a lockdown nothing is looser.
        let counts = |problem: &&Problem| {
            let object = &problem.object;
            let stands = self.index.was_taken(object);
            problem.effect == Effect::Refused
                && (!self.told.shared || object.kind == "EgressLockdown" && !stands)
        };
        let refused = self.compiled.problems.iter().filter(counts).count();
        self.clean = self.told.unread + refused == 0;
        if self.clean || !self.heir {
            return false;
        }
        tracing::error!(
            event = "held_back",
            unread = self.told.unread,
            refused,
            "some of the declared state can't be used, and the kernel still holds what an earlier \
             agent made of it: nothing is changed until the errors above are mended"
        );
        true
    }

    /// Whether the state has changed by itself. The clock may have been set forward, and then it is
    /// earlier than was waited for.
    pub fn is_due(&mut self) -> bool {
        let now = self.calendar.now(Timestamp::now());
        self.compiled.next_change.is_some_and(|at| at <= now)
    }

    /// Where the container runtime's questions meet what passes say.
    pub fn nri(&self) -> Arc<nri::Board> {
        Arc::clone(&self.nri)
    }

    pub fn nri_metrics(&self) -> nri::NriMetrics {
        self.metrics.nri().clone()
    }

    /// Whether a hook may be set on a new device before a pass; true after a first pass at the earliest.
    pub(super) fn armed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.armed)
    }

    /// Tells whether the kernel is as desired, from now on.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    pub fn status(&self) -> &NodeStatus {
        &self.status
    }

    fn compile(&mut self, changed: bool) {
        let now = self.calendar.now(Timestamp::now());
        let local = self.scout.local_addresses().unwrap_or_else(|error| {
            tracing::error!(event = "addresses_unreadable", %error);
            self.settings.local_addresses.clone()
        });
        let moved = local != self.settings.local_addresses;
        let due = self.is_due();
        if !(changed || moved || due) {
            return;
        }
        self.settings.local_addresses = local;
        self.turning.begin(Instant::now());
        self.gateways.compile(&self.index);
        let admits = |account: &Key| self.gateways.admits(account);
        self.compiled = compile::compile(&self.index, &self.settings, &admits, now);
        let problems: BTreeSet<Problem> = self.compiled.problems.iter().cloned().collect();
        for problem in problems.difference(&self.problems) {
            tracing::warn!(
                event = "object_problem", object = %problem.object, field = problem.field,
                "{problem}"
            );
        }
        for problem in self.problems.difference(&problems) {
            tracing::info!(
                event = "object_problem_gone", object = %problem.object, field = problem.field
            );
        }
        let refused = problems.iter().filter(|p| p.effect == Effect::Refused);
        let refused: BTreeSet<_> = refused.map(|problem| &problem.object).collect();
        self.metrics.set_objects_refused(refused.len());
        self.problems = problems;
        self.tell_findings();
    }

    fn tell_findings(&mut self) {
        let problems = &self.compiled.problems;
        let gateways = self.gateways.problems();
        self.board.compiled(&self.index, problems, gateways);
        let findings = self.board.findings().iter();
        let findings = findings.flat_map(|(id, all)| all.iter().map(|it| (id.kind, it)));
        self.metrics
            .set_findings(findings.map(|(kind, it)| (kind, it.effect.as_str())));
    }

    /// Pods of the desired state, and those that the kernel still knows. When the node can't be
    /// looked at, what was seen last stands.
    fn sight(&mut self) {
        let known = self.observed.slots.values().map(|info| text(&info.uid));
        let pods: BTreeSet<String> = self
            .compiled
            .desired
            .pods
            .keys()
            .cloned()
            .chain(known)
            .collect();
        match self.scout.sight(&pods) {
            Ok(mut sightings) => {
                if self.reconciler.executor.datapath.device_hooks() != DeviceHooks::Tcx {
                    // There every device is a pod's or nobody's.
                    sightings.outlying.clear();
                }
                self.sightings = sightings;
            }
            Err(error) => tracing::error!(event = "node_unreadable", %error),
        }
    }

    /// Pods end while they are being looked at, and their devices with them. What failed counts
    /// only if it fails again after a second look.
    fn look_and_reconcile(&mut self) -> Result<Report> {
        self.sight();
        let first = self.reconcile()?;
        let goes =
            |failure: &Failure| matches!(failure.subject, Subject::Pod(_) | Subject::Device(_));
        if !first.failures.iter().any(goes) {
            return Ok(first);
        }
        self.sight();
        let mut report = self.reconcile()?;
        report.writes += first.writes;
        report.found = first.found;
        Ok(report)
    }

    fn reconcile(&mut self) -> Result<Report> {
        let kubepods = self.scout.kubepods();
        let config = Config {
            qos_cgroups: kubepods.qos_ids()?,
            kubepods: kubepods.id,
            kubepods_level: self.kubepods_level,
            event_interval_ns: EVENT_INTERVAL_NS,
            event_burst: EVENT_BURST,
            unknown_mode: self.unknown_mode,
            pad: [0; 3],
        };
        let now_ns = crate::datapath::monotonic_ns();
        let desired = &self.compiled.desired;
        let report = self
            .reconciler
            .reconcile(desired, &self.sightings, config, now_ns)
            .context("can't read the kernel's state")?;
        if report.writes > 0 {
            tracing::info!(
                event = "reconciled",
                writes = report.writes,
                failures = report.failures.len(),
                pods = desired.pods.len(),
                policies = desired.policies.len()
            );
        }
        Ok(report)
    }

    /// Hands the gateways their policy; whether it was held back. A policy that can't be read would
    /// leave its host open: better no gateway than that.
    fn serve_gateways(&self) -> bool {
        if self.clean {
            self.gateways.publish();
        }
        !self.clean
    }

    fn incomplete(&self) -> bool {
        let unseen = |uid: &String| {
            self.sightings
                .pods
                .get(uid)
                .is_none_or(|sighting| !sighting.running || sighting.arriving)
        };
        self.compiled.desired.pods.keys().any(unseen) || self.status.uncovered().next().is_some()
    }

    /// Names what was brought about: the desired state and the gateways' policy.
    fn revision(&self) -> String {
        let mut hash = Sha256::new();
        let DesiredState { pods, policies, .. } = &self.compiled.desired;
        hash.update(format!("{pods:?}"));
        for digest in policies.keys() {
            hash.update(digest);
        }
        self.gateways.hash(&mut hash);
        let bytes = hash.finalize();
        let (head, _) = bytes.split_first_chunk().expect("SHA-256 is longer");
        format!("{:016x}", u64::from_be_bytes(*head))
    }
}
