//! When policies' entries are compared with what they should be, and what that is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use egress_common::maps::PolicyInfo;

use super::{Damage, DatapathError, Maps, Observed};
use crate::compile::{DesiredState, Digest, Policy};

/// Between two comparisons is so much longer than the processor worked at the last one, unless something
/// has come or gone. Two hundredths of its time at most, however many entries there are; that it
/// had other work meanwhile is no reason to look away for longer.
const SPARING: u32 = 50;

/// The last comparison.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// When it began, and how long the processor worked at it; none if entries were written since.
    last: Option<(Instant, Duration)>,
    damage: Damage,
    /// The maps' memory then: it changes with each entry that comes or goes.
    memory: Option<[u64; 5]>,
    /// Policies that stand and that nobody declares any more, as they were first seen: the pods that
    /// they hold have no object, and still run.
    undeclared: BTreeMap<u32, (Digest, Policy)>,
}

impl Comparison {
    /// Entries have been written.
    pub fn expire(&mut self) {
        self.last = None;
    }

    /// What is not as it should be now, as far as it is time to look.
    pub fn damage(
        &mut self,
        maps: &Maps,
        observed: &Observed,
        desired: &DesiredState,
    ) -> Result<Damage, DatapathError> {
        let memory = maps.memory();
        let same = memory.is_some() && memory == self.memory && self.damage.is_empty();
        let soon = |(begun, took): (Instant, Duration)| begun.elapsed() < took * SPARING;
        if same && self.last.is_some_and(soon) {
            return Ok(Damage::new());
        }
        let (begun, work) = (Instant::now(), worked());
        let content = |number, info: &PolicyInfo| self.content(desired, number, &info.digest);
        let damage = maps.compare(&observed.policies, content)?;
        self.memory = memory;
        self.last = Some((begun, worked().saturating_sub(work)));
        self.damage.clone_from(&damage);
        Ok(damage)
    }

    /// What is in the policy with this number and digest; none if that is not known.
    pub fn content<'p>(
        &'p self,
        desired: &'p DesiredState,
        number: u32,
        digest: &Digest,
    ) -> Option<&'p Policy> {
        desired.policies.get(digest).or_else(|| {
            let kept = self.undeclared.get(&number);
            kept.filter(|kept| kept.0 == *digest).map(|kept| &kept.1)
        })
    }

    pub fn keep_undeclared(
        &mut self,
        maps: &Maps,
        observed: &Observed,
        desired: &DesiredState,
    ) -> Result<(), DatapathError> {
        let mut kept = std::mem::take(&mut self.undeclared);
        for number in observed.used_policies() {
            let Some(info) = observed.policies.get(&number) else {
                continue;
            };
            if info.complete == 0 || desired.policies.contains_key(&info.digest) {
                continue;
            }
            let policy = match kept.remove(&number) {
                Some((digest, policy)) if digest == info.digest => policy,
                _ => maps.read_policy(number)?,
            };
            self.undeclared.insert(number, (info.digest, policy));
        }
        Ok(())
    }
}

/// The processor's time that the calling thread has had.
fn worked() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    Duration::from(time.expect("every Linux has this clock"))
}
