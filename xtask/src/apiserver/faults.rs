//! What goes wrong, by a seed. Whether the n-th thing of one kind goes wrong depends on nothing but
//! the seed: not on what other connections do.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

/// A thing that can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// A request is answered 410, by status or by an event of the stream.
    Gone,
    /// The version that a list should go on at is forgotten.
    ContinueExpired,
    /// 429 with `Retry-After`.
    TooManyRequests,
    /// 500.
    Internal,
    /// 503.
    Unavailable,
    /// A list ends in the middle.
    TruncatedList,
    /// A watch ends in the middle of a line.
    TornLine,
    /// The connection of a watch is reset.
    Reset,
    /// A watch ends early, but well.
    EarlyEnd,
    /// An event comes twice.
    Duplicate,
    /// The server that is asked to go on is behind what was seen already.
    Behind,
    /// A list for which any version will do (`resourceVersion=0`) is an old one.
    Stale,
    /// Something takes longer.
    Delay,
    /// An event is followed by one of type ERROR with status 500.
    ErrorEvent,
}

impl Fault {
    pub const ALL: [Self; 14] = [
        Self::Gone,
        Self::ContinueExpired,
        Self::TooManyRequests,
        Self::Internal,
        Self::Unavailable,
        Self::TruncatedList,
        Self::TornLine,
        Self::Reset,
        Self::EarlyEnd,
        Self::Duplicate,
        Self::Behind,
        Self::Stale,
        Self::Delay,
        Self::ErrorEvent,
    ];
}

/// How much goes wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub seed: u64,
    /// Of a thousand times that a fault could happen, so many times it does.
    pub per_mille: u32,
    /// No more than so many in all.
    pub budget: u32,
    /// Which faults there are; empty for all.
    pub kinds: Vec<Fault>,
    /// What `Delay` adds, at most.
    pub delay: Duration,
}

/// Faults, as they happen.
#[derive(Debug, Default)]
pub struct Dice {
    faults: Faults,
    rolls: HashMap<(Fault, String), u64>,
    happened: Vec<(Fault, String)>,
}

impl Dice {
    pub fn new(faults: Faults) -> Self {
        Self {
            faults,
            ..Self::default()
        }
    }

    /// Whether it happens now, to what `place` names.
    pub fn roll(&mut self, fault: Fault, place: &str) -> bool {
        let Faults { kinds, budget, .. } = &self.faults;
        if *budget == 0 || !(kinds.is_empty() || kinds.contains(&fault)) {
            return false;
        }
        let happens = self.number(fault, place) % 1000 < u64::from(self.faults.per_mille);
        if happens {
            self.faults.budget -= 1;
            self.happened.push((fault, place.to_owned()));
        }
        happens
    }

    /// How long to wait now; mostly not at all.
    pub fn delay(&mut self, place: &str) -> Duration {
        if !self.roll(Fault::Delay, place) {
            return Duration::ZERO;
        }
        let part = u32::try_from(self.number(Fault::Delay, place) % 16).unwrap_or(0) + 1;
        self.faults.delay * part / 16
    }

    /// A number for what happens, the next of its place.
    pub fn number(&mut self, fault: Fault, place: &str) -> u64 {
        let roll = self.rolls.entry((fault, place.to_owned())).or_default();
        *roll += 1;
        let mut hash = DefaultHasher::new();
        (self.faults.seed, fault, place, *roll).hash(&mut hash);
        hash.finish()
    }

    /// What has gone wrong so far, and where.
    pub fn happened(&self) -> &[(Fault, String)] {
        &self.happened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dice() -> Dice {
        Dice::new(Faults {
            seed: 7,
            per_mille: 300,
            budget: 20,
            ..Faults::default()
        })
    }

    #[test]
    fn the_same_seed_gives_the_same_faults_whatever_else_is_asked() {
        let (mut one, mut other) = (dice(), dice());
        let alone: Vec<bool> = (0..30).map(|_| one.roll(Fault::Reset, "pods")).collect();
        let beside = (0..30).map(|_| {
            other.number(Fault::Reset, "nodes");
            other.roll(Fault::Reset, "pods")
        });
        assert_eq!(alone, beside.collect::<Vec<_>>());
        assert!(alone.contains(&true) && alone.contains(&false));
    }

    #[test]
    fn there_are_no_more_than_the_budget_has() {
        let mut dice = dice();
        let happened = (0..1000).filter(|_| dice.roll(Fault::Gone, "pods")).count();
        assert_eq!(happened, 20);
        assert_eq!(dice.happened().len(), 20);
    }
}
