//! From the kernel's monotonic clock to the time of day.

use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// Both clocks, read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Nanoseconds of `CLOCK_MONOTONIC`, which `bpf_ktime_get_*` reads too.
    pub monotonic_ns: u64,
    /// Nanoseconds since 1970, UTC.
    pub wall_ns: i128,
}

impl Clock {
    /// Reads the clocks. They drift and jump against each other, so read them anew for each
    /// batch of events.
    pub fn now() -> Self {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            monotonic_ns: monotonic_ns(),
            // A clock before 1970 is not set; its events carry the time since boot.
            wall_ns: wall.map_or(0, |wall| wall.as_nanos().cast_signed()),
        }
    }

    /// Time of day of an event, nanoseconds since 1970. An event from the future of this reading
    /// (it was read a moment ago) is in its future too.
    pub fn wall_ns_of(&self, monotonic_ns: u64) -> i128 {
        self.wall_ns + i128::from(monotonic_ns) - i128::from(self.monotonic_ns)
    }

    /// The same as RFC 3339 in UTC, with microseconds.
    pub fn text_of(&self, monotonic_ns: u64) -> String {
        text(self.wall_ns_of(monotonic_ns))
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the clock exists");
    let part = |number: i64| u64::try_from(number).expect("time since boot is positive");
    part(time.tv_sec()) * 1_000_000_000 + part(time.tv_nsec())
}

/// RFC 3339 in UTC, with microseconds; empty for a time that has no date.
pub fn text(wall_ns: i128) -> String {
    Timestamp::from_nanosecond(wall_ns).map_or_else(|_| String::new(), |time| format!("{time:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Clock = Clock {
        monotonic_ns: 5_000_000_000,
        wall_ns: 1_700_000_000_000_000_000,
    };

    #[test]
    fn events_keep_their_distance_from_now() {
        assert_eq!(CLOCK.text_of(5_000_000_000), "2023-11-14T22:13:20.000000Z");
        assert_eq!(CLOCK.text_of(3_999_999_000), "2023-11-14T22:13:18.999999Z");
        assert_eq!(CLOCK.text_of(5_000_001_000), "2023-11-14T22:13:20.000001Z");
    }

    #[test]
    fn the_clock_goes_on() {
        let first = Clock::now();
        let second = Clock::now();
        assert!(second.monotonic_ns >= first.monotonic_ns);
        assert!(first.wall_ns > 1_700_000_000_000_000_000);
    }
}
