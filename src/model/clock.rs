//! Time: the machine's clock, and the hybrid logical clock that stamps versions.
//!
//! This file is the one place that reads the machine's clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::limits::CLOCK_AHEAD_MS_MAX;

/// Bits of a reading that count events inside one millisecond.
pub const COUNTER_BITS: u32 = 16;

/// A hybrid logical clock: 48 bits of Unix milliseconds, 16 of counter. Each reading is larger than every
/// reading before it and every reading merged into it (Kulkarni et al., "Logical Physical Clocks", 2014).
#[derive(Debug, Default)]
pub struct HybridClock {
    last: AtomicU64,
}

/// The machine's wall clock, Unix milliseconds.
#[expect(clippy::disallowed_methods, reason = "the one reader of the machine's clock")]
pub fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX).saturating_add(offset_ms())
}

/// How far this process's clock is moved.
#[cfg(not(feature = "test-clock"))]
const fn offset_ms() -> i64 {
    0
}

/// How far this process's clock is moved: `DATASTORE_TEST_CLOCK_OFFSET_MS`, read once.
#[cfg(feature = "test-clock")]
fn offset_ms() -> i64 {
    static OFFSET_MS: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
    *OFFSET_MS.get_or_init(|| {
        let set = std::env::var("DATASTORE_TEST_CLOCK_OFFSET_MS").unwrap_or_default();
        if set.is_empty() {
            0
        } else {
            set.parse().expect("DATASTORE_TEST_CLOCK_OFFSET_MS is a number of ms")
        }
    })
}

/// The smallest reading of a wall-clock millisecond.
pub fn hlc_at(wall_ms: i64) -> u64 {
    u64::try_from(wall_ms).unwrap_or(0) << COUNTER_BITS
}

/// The wall-clock millisecond of a reading.
pub fn wall_of(hlc: u64) -> i64 {
    (hlc >> COUNTER_BITS).cast_signed()
}

// === impl HybridClock ===

impl HybridClock {
    /// A new reading, greater than all before it.
    pub fn tick(&self, wall_ms: i64) -> u64 {
        let floor = hlc_at(wall_ms);
        let next = |last: u64| Some(floor.max(last + 1));
        match self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) {
            Ok(last) | Err(last) => floor.max(last + 1),
        }
    }

    /// The largest reading given or seen, at least the wall clock's.
    pub fn now(&self, wall_ms: i64) -> u64 {
        hlc_at(wall_ms).max(self.last.load(Ordering::Acquire))
    }

    /// Takes note of a reading seen elsewhere, so that what follows here is greater. One further ahead
    /// than [`CLOCK_AHEAD_MS_MAX`] is not taken: a single bad clock must not poison the others.
    pub fn merge(&self, seen: u64, wall_ms: i64) -> bool {
        let sane = wall_of(seen) <= wall_ms.saturating_add(CLOCK_AHEAD_MS_MAX);
        if sane {
            self.last.fetch_max(seen, Ordering::AcqRel);
        }
        sane
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_grow_even_when_the_wall_clock_steps_back() {
        let clock = HybridClock::default();
        let mut last = 0;
        for wall in [1000, 1000, 900, 1001, 5] {
            let reading = clock.tick(wall);
            assert!(reading > last);
            last = reading;
        }
        assert_eq!(wall_of(last), 1001);
    }

    #[test]
    fn a_reading_far_ahead_is_not_merged() {
        let clock = HybridClock::default();
        assert!(clock.merge(hlc_at(1000 + CLOCK_AHEAD_MS_MAX), 1000));
        assert!(!clock.merge(hlc_at(1001 + CLOCK_AHEAD_MS_MAX), 1000));
        assert_eq!(clock.now(1000), hlc_at(1000 + CLOCK_AHEAD_MS_MAX));
    }
}
