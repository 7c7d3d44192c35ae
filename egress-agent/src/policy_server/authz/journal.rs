//! Decisions in the log: refusals and would-be refusals up to a rate, what is admitted at level
//! DEBUG.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::Level;

use super::attributes::Asked;
use super::decide::Verdict;
use crate::gateway::Decision;
use crate::policy_server::Caller;

/// Lines of one cause in each [`PERIOD`]; the rest is counted.
const LINES: u32 = 50;
const PERIOD: Duration = Duration::from_secs(1);

/// A decision in full. What it names is only looked up where the level is written.
macro_rules! line {
    ($level:expr, $verdict:ident, $asked:ident, $left_out:expr) => {{
        let word = |allowed| if allowed { "allowed" } else { "denied" };
        let decision = $verdict.decision.as_ref();
        let http = $asked.http.as_ref();
        tracing::event!(
            $level,
            event = "access",
            verdict = word($verdict.allowed()),
            reason = $verdict.cause.as_str(),
            dry_run = decision.and_then(|it| it.dry_run).map(word),
            dry_run_object = decision.and_then(Decision::would_be_by),
            gateway = $verdict.gateway.as_ref().map(ToString::to_string),
            service = $verdict.service(),
            object = $verdict.object(),
            principal = short($asked.principal),
            client = %$asked.client,
            owner = $verdict.owner,
            host = short(http.map_or($asked.sni, |http| http.authority)),
            method = http.map(|http| short(http.method)),
            path = http.map(|http| short(http.path)),
            left_out = $left_out,
        );
    }};
}

/// Writes decisions to the log.
#[derive(Debug, Default)]
pub(super) struct Journal {
    causes: Mutex<BTreeMap<&'static str, Budget>>,
}

#[derive(Debug)]
struct Budget {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl Journal {
    pub(super) fn write(&self, verdict: &Verdict, asked: &Asked<'_>) {
        let would_refuse = verdict
            .decision
            .as_ref()
            .and_then(|decision| decision.dry_run)
            .is_some_and(|allowed| allowed != verdict.allowed());
        if verdict.allowed() && !would_refuse {
            line!(Level::DEBUG, verdict, asked, 0);
            return;
        }
        let cause = if would_refuse && verdict.allowed() {
            "dry-run"
        } else {
            verdict.cause.as_str()
        };
        if let Some(left_out) = self.may_write(cause) {
            line!(Level::INFO, verdict, asked, left_out);
        }
    }

    /// A caller that is no gateway.
    pub(super) fn stranger(&self, caller: &Caller) {
        if let Some(left_out) = self.may_write("stranger") {
            tracing::warn!(
                event = "caller_refused",
                identity = %caller.identity,
                address = %caller.address,
                left_out,
                "it is not the service account of a pod that a VirtualGateway selects"
            );
        }
    }

    /// How many lines of this cause were left out before; none if this one is too.
    fn may_write(&self, cause: &'static str) -> Option<u64> {
        let now = Instant::now();
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        let budget = causes.entry(cause).or_insert(Budget {
            since: now,
            written: 0,
            left_out: 0,
        });
        if now.duration_since(budget.since) >= PERIOD {
            budget.since = now;
            budget.written = 0;
        }
        if budget.written >= LINES {
            budget.left_out += 1;
            return None;
        }
        budget.written += 1;
        Some(std::mem::take(&mut budget.left_out))
    }
}

/// What a client writes is cut: it may be as long as it likes.
fn short(text: &str) -> &str {
    let mut end = text.len().min(256);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
