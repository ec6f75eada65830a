//! What a consumer tells of its lane: how fast it goes, and how large its messages are.

use std::time::Duration;

use lapin::message::Delivery;
use tokio::time::Instant;

use crate::queue::group;

/// The part of the last second in the rate that is told.
const RATE_PART: f64 = 0.3;

/// Messages that an average is of, about.
const SEEN_MAX: u32 = 20;

/// What was told last, and what is to be told next.
pub(super) struct Told {
    pub(super) at: Instant,
    /// Something is to be told at once.
    pub(super) due: bool,
    pub(super) settled: u64,
    pub(super) rate: f64,
    pub(super) bytes_each: f64,
    pub(super) writes_each: f64,
    /// Messages seen, as far as that matters.
    pub(super) seen: u32,
}

impl Told {
    /// Nothing was told yet.
    pub(super) fn nothing() -> Self {
        Self {
            at: Instant::now(),
            due: true,
            settled: 0,
            rate: 0.0,
            bytes_each: 0.0,
            writes_each: 1.0,
            seen: 0,
        }
    }

    /// Takes note of how large a message is.
    pub(super) fn saw(&mut self, delivery: &Delivery) {
        let writes = writes_of(delivery) as f64;
        self.seen = (self.seen + 1).min(SEEN_MAX);
        let part = 1.0 / f64::from(self.seen);
        self.bytes_each += (delivery.data.len() as f64 / writes - self.bytes_each) * part;
        self.writes_each += (writes - self.writes_each) * part;
    }

    /// The rate to tell, so long after the last.
    pub(super) fn rate_now(&self, elapsed: Duration) -> f64 {
        let lately = self.settled as f64 / elapsed.max(Duration::from_millis(1)).as_secs_f64();
        self.rate + (lately - self.rate) * RATE_PART
    }
}

/// How many writes a message holds, as its head says.
pub(super) fn writes_of(delivery: &Delivery) -> usize {
    group::writes_in(&delivery.data)
}
