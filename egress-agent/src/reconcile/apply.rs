//! The one writer: observes, plans, executes, until there is nothing left to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use egress_common::maps::{Config, Endpoint};

use super::op::{Op, Plan, Step, Subject};
use super::plan::{Settings, plan};
use crate::compile::DesiredState;
use crate::datapath::Observed;
use crate::node::Sightings;

/// Rounds of one reconciliation: changes, then what they left unused, then the proof that
/// nothing is left. More would mean that somebody else writes.
const ROUNDS: usize = 4;

/// Where operations are executed: the kernel, or a model of it.
pub trait Executor {
    type Error: Display;

    /// Reads the present state, and what of the policies is not as it should be; writes nothing.
    fn observe(&mut self, desired: &DesiredState) -> Result<Observed, Self::Error>;

    /// Executes one operation; returns how many writes that took.
    fn execute(&mut self, op: &Op, desired: &DesiredState) -> Result<u64, Self::Error>;
}

/// A step that failed. It is tried again with the next reconciliation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub subject: Subject,
    /// The operation in words.
    pub op: String,
    pub error: String,
}

/// What a reconciliation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Changes of the kernel's state, each element of a map and each link.
    pub writes: u64,
    pub failures: Vec<Failure>,
    /// By UID: pods that no plan could be made for, and why.
    pub refused: BTreeMap<String, String>,
    /// The state that it found.
    pub found: Observed,
    /// The state afterwards.
    pub observed: Observed,
}

impl Report {
    pub fn in_sync(&self) -> bool {
        self.failures.is_empty() && self.refused.is_empty()
    }

    /// By UID: why a pod is not as desired.
    pub fn errors(&self) -> BTreeMap<String, String> {
        let mut errors = self.refused.clone();
        for failure in &self.failures {
            if let Subject::Pod(uid) = &failure.subject {
                errors
                    .entry(uid.clone())
                    .or_insert_with(|| format!("can't {}: {}", failure.op, failure.error));
            }
        }
        errors
    }
}

/// Holds the executor; there must be one only.
#[derive(Debug)]
pub struct Reconciler<E> {
    pub executor: E,
}

/// What has gone wrong so far in one reconciliation.
#[derive(Default)]
struct Pass {
    writes: u64,
    failures: Vec<Failure>,
    failed: BTreeSet<Subject>,
    /// An entry of `sp_cgroups` is missing: the gate would close on a pod that is known. Or the
    /// settings are: it would take no pod for one, and stand open.
    gate_unsafe: bool,
    /// Hooks of another layout are being swapped, and ours look into other maps.
    takes_over: bool,
}

impl<E: Executor> Reconciler<E> {
    pub fn new(executor: E) -> Self {
        Self { executor }
    }

    /// Brings the kernel to the desired state.
    ///
    /// # Errors
    /// If the present state can't be read. Steps that fail are in the report, and the rest goes on.
    pub fn reconcile(
        &mut self,
        desired: &DesiredState,
        sightings: &Sightings,
        config: Config,
        now_ns: u64,
    ) -> Result<Report, E::Error> {
        let settings = Settings { config, now_ns };
        let mut pass = Pass::default();
        let found = self.executor.observe(desired)?;
        let mut observed = found.clone();
        let mut refused = BTreeMap::new();
        for _ in 0..ROUNDS {
            let plan = plan(desired, sightings, &observed, &settings);
            pass.takes_over = !observed.layouts.is_empty();
            refused.clone_from(&plan.refused);
            let done = self.apply(&plan, desired, &mut pass);
            if done == 0 {
                break;
            }
            observed = self.executor.observe(desired)?;
        }
        Ok(Report {
            writes: pass.writes,
            failures: pass.failures,
            refused,
            found,
            observed,
        })
    }

    /// Executes what can be executed; returns the number of steps that were.
    fn apply(&mut self, plan: &Plan, desired: &DesiredState, pass: &mut Pass) -> usize {
        let mut done = 0;
        for step in &plan.steps {
            if pass.skips(step) {
                continue;
            }
            match self.executor.execute(&step.op, desired) {
                Ok(writes) => {
                    pass.writes += writes;
                    done += 1;
                }
                Err(error) => {
                    pass.fail(step, &error);
                    if is_of_hooks(&step.op)
                        && let Subject::Pod(uid) = &step.subject
                        && let Some((cgroup, endpoint)) = plan.uncovered.get(uid)
                    {
                        self.uncover(uid, *cgroup, *endpoint, desired, pass);
                    }
                }
            }
        }
        done
    }

    /// The pod's hooks could not be attached: the cgroup hook decides about it meanwhile.
    fn uncover(
        &mut self,
        uid: &str,
        cgroup: u64,
        endpoint: Endpoint,
        desired: &DesiredState,
        pass: &mut Pass,
    ) {
        if pass.failed.contains(&Subject::Policy(endpoint.policy)) {
            return;
        }
        let step = Step {
            subject: Subject::Pod(uid.to_owned()),
            policy: Some(endpoint.policy),
            op: Op::SetCgroup { cgroup, endpoint },
        };
        match self.executor.execute(&step.op, desired) {
            Ok(writes) => pass.writes += writes,
            Err(error) => pass.fail(&step, &error),
        }
    }
}

/// Steps towards a device's hooks; the pod has its slot by then.
fn is_of_hooks(op: &Op) -> bool {
    matches!(
        op,
        Op::SetDevice { .. } | Op::Attach { .. } | Op::AdoptFlows { .. } | Op::SetWays { .. }
    )
}

impl Pass {
    fn skips(&mut self, step: &Step) -> bool {
        let policy = step.policy.map(Subject::Policy);
        let failed = self.failed.contains(&step.subject)
            || policy.is_some_and(|policy| self.failed.contains(&policy));
        if failed && matches!(step.op, Op::SetCgroup { .. }) {
            self.gate_unsafe = true;
        }
        let opens = match step.op {
            Op::AttachCgroup(_) | Op::AttachBySender { .. } => true,
            Op::SwapCgroup(_) => self.takes_over,
            _ => false,
        };
        let skipped = failed || (self.gate_unsafe && opens);
        // What follows of the same subject counts on it: an entry must not go before the hook that does
        // without one is there.
        if skipped && step.subject != Subject::Node {
            self.failed.insert(step.subject.clone());
        }
        skipped
    }

    fn fail(&mut self, step: &Step, error: &impl Display) {
        if matches!(step.op, Op::SetCgroup { .. } | Op::SetConfig(_)) {
            self.gate_unsafe = true;
        }
        // A hook on kubepods that can't be attached is no reason to leave out the others.
        if step.subject != Subject::Node {
            self.failed.insert(step.subject.clone());
        }
        let failure = Failure {
            subject: step.subject.clone(),
            op: step.op.to_string(),
            error: error.to_string(),
        };
        if !self.failures.contains(&failure) {
            self.failures.push(failure);
        }
    }
}
