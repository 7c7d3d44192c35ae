//! The time of day, for what begins at one.
#![forbid(unsafe_code)]

use k8s_openapi::jiff::Timestamp;

/// A clock that never goes back: what has begun stays so when the node's clock is set back, since to
/// enforce less must be somebody's decision. What it was set to in the meantime, an agent that starts
/// anew doesn't know.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Calendar {
    latest: Timestamp,
}

impl Calendar {
    /// The time now, where the node's clock says `wall`.
    pub fn now(&mut self, wall: Timestamp) -> Timestamp {
        self.latest = self.latest.max(wall);
        self.latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_takes_nothing_back() {
        let mut calendar = Calendar::default();
        let at = |second| Timestamp::from_second(second).expect("a time");
        assert_eq!(calendar.now(at(1000)), at(1000));
        // An hour, and many days.
        assert_eq!(calendar.now(at(1000 - 3600)), at(1000));
        assert_eq!(calendar.now(at(0)), at(1000));
        assert_eq!(calendar.now(Timestamp::MIN), at(1000));
        assert_eq!(calendar.now(at(1001)), at(1001));
        assert_eq!(calendar.now(Timestamp::MAX), Timestamp::MAX);
    }
}
