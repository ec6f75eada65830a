//! A server's clock, as far as it is known here.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Samples that are older are replaced by any newer one.
const SAMPLE_MAX_AGE: Duration = Duration::from_secs(60);
/// A clock that is further from where it should be was set. What two clocks drift apart between samples is less, or is as good a
/// reason for a new sample.
const SLACK_MS: i64 = 2;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::backend) struct ServerClock(Mutex<Option<Sample>>);

/// What the server's clock said, and when that was known here.
#[derive(Debug, Clone, Copy)]
struct Sample {
    server_ms: i64,
    at: Instant,
    round_trip: Duration,
}

impl ServerClock {
    /// Takes note of what the server answered just now to who asked then.
    pub(in crate::backend) fn sample(&self, asked: Instant, server_ms: i64) {
        let at = Instant::now();
        let sample = Sample { server_ms, at, round_trip: at - asked };
        let mut clock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if clock.is_none_or(|known| known.gives_way_to(&sample)) {
            *clock = Some(sample);
        }
    }

    /// What answers next may be another machine, with another clock.
    pub(in crate::backend) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A deadline by the server's clock, never later than it is: the answer that told the time was under way.
    pub(in crate::backend) fn deadline_ms(&self, deadline: Instant) -> Option<i64> {
        let Sample { server_ms, at, .. } = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let ahead = ms(deadline.saturating_duration_since(at)) - ms(at.saturating_duration_since(deadline));
        Some(server_ms.saturating_add(ahead))
    }
}

impl Sample {
    /// Whether a newer sample tells more: it took no longer, this one is old, or the server's clock was set in between.
    fn gives_way_to(&self, newer: &Self) -> bool {
        let begun = newer.at.checked_sub(newer.round_trip).unwrap_or(newer.at);
        let since = |at: Instant| at.saturating_duration_since(self.at);
        if newer.round_trip <= self.round_trip || since(begun) > SAMPLE_MAX_AGE {
            return true;
        }
        // This one was read at most a round trip before it was known here; the newer one at any time of its own.
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let least = self.server_ms.saturating_add(ms(since(begun)));
        let most = self.server_ms.saturating_add(ms(self.round_trip + since(newer.at)));
        !(least - SLACK_MS..=most + SLACK_MS).contains(&newer.server_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_taken_at_once_and_a_slow_answer_is_not() {
        let begun = Instant::now();
        let after = |ms| begun + Duration::from_millis(ms);
        let sample = |server_ms, ms, took| Sample {
            server_ms,
            at: after(ms),
            round_trip: Duration::from_millis(took),
        };
        let known = sample(10_000, 0, 3);
        for (newer, gives_way) in [
            (sample(11_000, 1003, 2), true),
            // It took longer, and says what was known.
            (sample(11_000, 1010, 10), false),
            (sample(11_012, 1010, 10), false),
            // Set forward and back, by more than the answer was on its way.
            (sample(11_020, 1010, 10), true),
            (sample(10_990, 1010, 10), true),
            (sample(71_000, 61_010, 10), true),
        ] {
            assert_eq!(known.gives_way_to(&newer), gives_way, "{newer:?}");
        }
    }
}
