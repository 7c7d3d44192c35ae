//! Clusters at random, compiled, and held against the naive reading of the same objects: what the
//! property test of `compile` does, with the fuzzer's bytes as its source of chance.

use egress_common::frames::Random;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::compile::tests::{property, random};

/// Bytes that a scenario is made of, at most; half of them before the strategy's first split.
const CHANCE: usize = 1 << 15;

pub fn run(data: &[u8]) {
    let rng = TestRng::from_seed(RngAlgorithm::PassThrough, &stretched(data));
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

/// The bytes at the beginning of both halves, and behind them others that follow from them: where they
/// end, proptest would go on with zeros, and look for distinct numbers for ever.
fn stretched(data: &[u8]) -> Vec<u8> {
    let data = &data[..data.len().min(CHANCE / 2)];
    let seed = data.iter().fold(1_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut random = Random::new(seed);
    let mut half = data.to_vec();
    half.resize_with(CHANCE / 2, || random.byte());
    half.repeat(2)
}
