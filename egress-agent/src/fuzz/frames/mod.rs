//! Frames of a pod through parser and decision, held against a naive reading of the same bytes.
//!
//! The first byte chooses the pod and the hook. Then come steps: a byte that says what happens, and
//! what that needs. Frames have their length in a byte before them.

mod model;
mod reading;

#[path = "../../../tests/support/policy.rs"]
#[allow(dead_code, reason = "shared with the tests of the kernel programs")]
mod policy;

use egress_common::maps::{DENY_DROP, Endpoint, MODE_AUDIT, MODE_ENFORCE};
use egress_common::memory::Bytes;
use egress_common::packet::Headers;
use egress_common::{Side, Verdict, decide};

use model::Model;

const SECOND: u64 = 1_000_000_000;
/// Long after boot, so that nothing is older than the clock.
const START: u64 = 1_000 * SECOND;
/// Around each time after which something is over. Seconds.
const WAITS: [u64; 8] = [0, 1, 9, 29, 31, 119, 181, 301];

enum Step<'a> {
    FromPod(&'a [u8]),
    ToPod(&'a [u8]),
    Wait(u64),
    Audit(bool),
    /// The slot has a new owner.
    Since,
}

fn step<'a>(data: &mut &'a [u8]) -> Option<Step<'a>> {
    let (op, rest) = data.split_first()?;
    *data = rest;
    Some(match op % 4 {
        0 | 1 => Step::FromPod(frame(data)?),
        2 => Step::ToPod(frame(data)?),
        _ => match op / 4 % 16 {
            0 => Step::Audit(true),
            1 => Step::Audit(false),
            2 => Step::Since,
            other => Step::Wait(WAITS[usize::from(other) % WAITS.len()]),
        },
    })
}

/// As many bytes as the first says, or what is left.
fn frame<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = data.split_first()?;
    let (frame, rest) = rest.split_at(rest.len().min(usize::from(*length)));
    *data = rest;
    Some(frame)
}

pub fn run(mut data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else {
        return;
    };
    data = rest;
    let endpoints = policy::endpoints();
    let mut endpoint = endpoints[usize::from(choice / 2) % endpoints.len()];
    let side = if choice % 2 == 0 {
        Side::Device
    } else {
        Side::Cgroup
    };
    let tables = policy::tables();
    let mut model = Model::new(side, &endpoint);
    let mut now = START;
    while let Some(step) = step(&mut data) {
        tables.now_ns.set(now);
        model.now = now;
        match step {
            Step::Wait(seconds) => now += seconds * SECOND,
            Step::Audit(audit) => endpoint.mode = if audit { MODE_AUDIT } else { MODE_ENFORCE },
            Step::Since => {
                now += 1;
                endpoint.since_ns = now;
                model.forget();
            }
            Step::ToPod(frame) => {
                decide::to_pod(side, &Bytes(frame), &endpoint, &tables);
                model.received(frame);
            }
            Step::FromPod(frame) => {
                let mut headers = Headers::default();
                let outcome =
                    decide::from_pod(side, &Bytes(frame), &endpoint, &tables, &mut headers);
                let expected = model.expects(frame);
                let passes = outcome.reason.passes().then_some(outcome.reason);
                assert_eq!(
                    passes,
                    expected,
                    "{side:?}, {outcome:?}, read as {:02x?}: {frame:02x?}",
                    reading::read(side, frame)
                );
                assert_eq!(outcome.verdict, verdict(expected.is_some(), &endpoint));
                model.sent(frame, outcome);
            }
        }
    }
}

/// What becomes of a packet, by the mode alone.
fn verdict(passes: bool, endpoint: &Endpoint) -> Verdict {
    match (passes, endpoint.mode, endpoint.on_deny) {
        (true, ..) => Verdict::Pass,
        (false, MODE_AUDIT, _) => Verdict::Audit,
        (false, _, DENY_DROP) => Verdict::Drop,
        (false, ..) => Verdict::Reject,
    }
}
