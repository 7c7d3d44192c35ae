//! Clusters at random, compiled, and held against the naive reading of the same objects: what the
//! property test of `compile` does, as often as there is time.
//!
//! Each object is drawn from four bytes of its own, so that an input that reached something new can
//! be changed in one object and keep the others. They seed the object's chance instead of being it:
//! handed to proptest as they are, bytes would run out in the midst of an object.

use proptest::strategy::{Strategy, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::compile::tests::{property, random, scenario::Scenario};

/// As many as make it worth while to have compiled the cluster.
const PROBES: usize = 60;

pub fn run(data: &[u8]) {
    let mut draws = Draws(data);
    let pods = 2 + draws.below(4);
    let (services, lockdowns, gateways) = (draws.below(4), 1 + draws.below(3), draws.below(3));
    let scenario = Scenario {
        node_local_dns: draws.below(2) == 1,
        pods: draws.many(pods, random::pod),
        services: draws.many(services, || random::service(pods)),
        lockdowns: draws.many(lockdowns, random::lockdown),
        gateways: draws.many(gateways, random::gateway),
    };
    let probes = draws.many(PROBES, || random::probe(pods));
    if let Err(error) = property::agree(&scenario, &probes) {
        panic!("{error}\n{scenario:#?}");
    }
}

/// What is left of the input. Where it has ended come zeros.
struct Draws<'a>(&'a [u8]);

impl Draws<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let (now, rest) = self.0.split_at(N.min(self.0.len()));
        taken[..now.len()].copy_from_slice(now);
        self.0 = rest;
        taken
    }

    fn below(&mut self, limit: usize) -> usize {
        let [byte] = self.take();
        usize::from(byte) % limit
    }

    fn many<S: Strategy>(&mut self, count: usize, of: impl Fn() -> S) -> Vec<S::Value> {
        (0..count)
            .map(|place| {
                let mut seed = [0; 32];
                seed[..4].copy_from_slice(&self.take::<4>());
                // What an ended input leaves to zeros is not the same object again and again.
                seed[4] = place.to_le_bytes()[0];
                let config = Config {
                    failure_persistence: None,
                    ..Config::default()
                };
                let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
                let mut runner = TestRunner::new_with_rng(config, rng);
                let tree = of().new_tree(&mut runner);
                tree.expect("no part of it is ever refused").current()
            })
            .collect()
    }
}
