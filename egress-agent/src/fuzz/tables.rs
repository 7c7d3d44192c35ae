//! Clusters at random, compiled, and held against the naive reading of the same objects: what the
//! property test of `compile` does, as often as there is time. The bytes are only where the chance
//! comes from; handed to proptest as they are they would run out, and it would look for distinct
//! numbers among zeros for ever.

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sha2::{Digest as _, Sha256};

use crate::compile::tests::{property, random};

pub fn run(data: &[u8]) {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &Sha256::digest(data));
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let tree = random::scenario().new_tree(&mut runner);
    let (scenario, probes) = tree.expect("no part of it is ever refused").current();
    if let Err(error) = property::agree(&scenario, &probes) {
        panic!("{error}\n{scenario:#?}");
    }
}
