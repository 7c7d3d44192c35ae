//! When to look for connections that the node's NAT leads elsewhere than its objects say now.

use std::time::{Duration, Instant};

/// So long after a change of objects the node's NAT may not have followed it yet.
const TURNING: Duration = Duration::from_mins(1);
/// Connections are looked through so often at most.
const BETWEEN: Duration = Duration::from_secs(5);

/// kube-proxy makes of objects what it does in its own time, and what a pod begins until then goes to
/// where a Service has led before.
#[derive(Debug, Default)]
pub struct Turning {
    /// None before the first change.
    until: Option<Instant>,
    next: Option<Instant>,
}

impl Turning {
    /// Objects have changed.
    pub fn begin(&mut self, now: Instant) {
        self.until = Some(now + TURNING);
    }

    /// Whether to look now; then not again for a while.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due =
            self.until.is_some_and(|until| now < until) && self.next.is_none_or(|next| next <= now);
        if due {
            self.next = Some(now + BETWEEN);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_looked_for_a_while_after_each_change_and_not_all_the_time() {
        let begin = Instant::now();
        let mut turning = Turning::default();
        assert!(!turning.is_due(begin), "nothing has changed");
        turning.begin(begin);
        assert!(turning.is_due(begin));
        assert!(!turning.is_due(begin + BETWEEN / 2));
        assert!(turning.is_due(begin + BETWEEN));
        let last = begin + TURNING;
        assert!(!turning.is_due(last), "the NAT has followed");
        turning.begin(last);
        assert!(turning.is_due(last));
    }
}
