//! A server's clock, as far as it is known here.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Samples that are older are replaced by any newer one.
const SAMPLE_MAX_AGE: Duration = Duration::from_secs(60);

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
        let better = clock.is_none_or(|known| {
            sample.round_trip <= known.round_trip || asked.duration_since(known.at) > SAMPLE_MAX_AGE
        });
        if better {
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
