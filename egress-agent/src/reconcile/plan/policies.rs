//! Numbers of policies: found again, given, collected.

use std::collections::BTreeSet;

use egress_common::maps::PolicyInfo;

use super::super::near::Near;
use super::super::op::{Op, Subject};
use super::Planner;
use crate::compile::{DesiredState, Digest, Policy};

impl Planner<'_> {
    /// What somebody else has made of the shortcut through the cgroup hook and of policies. Of these first what is nobody's: it may take the room, and its
    /// number will be given to a policy.
    pub(super) fn mend(&mut self) {
        let observed = self.observed;
        for (cgroup, endpoint) in &observed.cgroups {
            if observed.mismarked.contains(cgroup) {
                let (cgroup, endpoint) = (*cgroup, *endpoint);
                // Written again, it takes the mark away.
                self.step(Subject::Cgroup(cgroup), Op::SetCgroup { cgroup, endpoint });
            }
        }
        for number in observed.damaged.keys().copied() {
            if !observed.policies.contains_key(&number) {
                self.step(Subject::Policy(number), Op::ClearPolicy { number });
            }
        }
        for number in observed.damaged.keys() {
            if let Some(info) = observed.policies.get(number) {
                let (number, digest) = (*number, info.digest);
                self.step(Subject::Policy(number), Op::MendPolicy { number, digest });
            }
        }
    }

    pub(super) fn policies(&mut self, desired: &DesiredState) {
        let used = self.observed.used_policies();
        let mut next = self.observed.policies.keys().max().copied().unwrap_or(0);
        // The one that is in use goes before an equal one that is not.
        for (number, info) in &self.observed.policies {
            if info.complete == 1 && desired.policies.contains_key(&info.digest) {
                let best = self.numbers.entry(info.digest).or_insert(*number);
                if used.contains(number) && !used.contains(best) {
                    *best = *number;
                }
            }
        }
        for (digest, policy) in &desired.policies {
            self.near.insert(*digest, Near::of(policy));
            if self.numbers.contains_key(digest) {
                continue;
            }
            // One that was cut short is written again: the same content, so nothing is left over.
            let cut_short = self
                .observed
                .policies
                .iter()
                .find(|(number, info)| info.digest == *digest && !used.contains(number))
                .map(|(number, _)| *number);
            let number = cut_short.unwrap_or_else(|| {
                next = self.free_number(next);
                next
            });
            self.numbers.insert(*digest, number);
            let info = policy_info(digest, policy, 1);
            let begin = PolicyInfo {
                complete: 0,
                ..info
            };
            let ops = [
                Op::SetPolicyInfo {
                    number,
                    info: begin,
                },
                Op::WritePolicy {
                    number,
                    digest: *digest,
                },
                Op::SetPolicyInfo { number, info },
            ];
            for op in ops {
                self.step(Subject::Policy(number), op);
            }
        }
    }

    /// The number after `last` that no policy has; 0 is "none".
    fn free_number(&self, last: u32) -> u32 {
        let taken = |number: u32| {
            number == 0
                || self.observed.policies.contains_key(&number)
                || self.numbers.values().any(|taken| *taken == number)
        };
        let mut number = last.wrapping_add(1);
        while taken(number) {
            number = number.wrapping_add(1);
        }
        number
    }

    /// Policies that nobody named when we looked, and nobody is about to name.
    pub(super) fn collect(&mut self) {
        let used = self.observed.used_policies();
        let wanted: BTreeSet<u32> = self.numbers.values().copied().collect();
        for (number, info) in &self.observed.policies {
            if used.contains(number) || wanted.contains(number) {
                continue;
            }
            let number = *number;
            let subject = Subject::Policy(number);
            if info.complete != 0 {
                let info = PolicyInfo {
                    complete: 0,
                    ..*info
                };
                self.step(subject.clone(), Op::SetPolicyInfo { number, info });
            }
            self.step(subject.clone(), Op::ClearPolicy { number });
            self.step(subject, Op::RemovePolicyInfo { number });
        }
    }
}

fn policy_info(digest: &Digest, policy: &Policy, complete: u32) -> PolicyInfo {
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    PolicyInfo {
        digest: *digest,
        entries: [
            count(policy.exact4.len()),
            count(policy.exact6.len()),
            count(policy.prefix4.len()),
            count(policy.prefix6.len()),
        ],
        rules: count(policy.rules.len()),
        complete,
    }
}
