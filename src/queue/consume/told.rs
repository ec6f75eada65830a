//! What a consumer tells of its lane: how fast it goes, and what it was handed lately.

use std::time::Duration;

use lapin::message::Delivery;
use tokio::time::Instant;

use crate::queue::group;
use crate::queue::sizes::Lately;

/// The part of the last second in the rate that is told.
const RATE_PART: f64 = 0.3;

/// What was told last, and what is to be told next.
pub(super) struct Told {
    pub(super) at: Instant,
    /// Something is to be told at once.
    pub(super) due: bool,
    pub(super) settled: u64,
    pub(super) rate: f64,
    /// How large the messages were that were handed lately.
    pub(super) handed: Lately,
    /// When the newest write that was handed had been taken, Unix milliseconds.
    pub(super) handed_ms: i64,
}

impl Told {
    /// Nothing was told yet.
    pub(super) fn nothing() -> Self {
        let at = Instant::now();
        Self { at, due: true, settled: 0, rate: 0.0, handed: Lately::default(), handed_ms: 0 }
    }

    /// Takes note of how large a message is.
    pub(super) fn saw(&mut self, delivery: &Delivery) {
        self.handed.saw(writes_of(delivery), delivery.data.len());
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

/// The second in which a message's first write was taken, Unix milliseconds; 0 = it does not say.
pub(super) fn taken_second_ms(delivery: &Delivery) -> i64 {
    let seconds = delivery.properties.timestamp().unwrap_or(0);
    i64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
}
