//! Time: the machine's clock, and the hybrid logical clock that stamps versions.
//!
//! This file is the one place that reads the machine's clock. A clock that is set while a worker runs must not get into versions: the
//! writes of an hour ahead would outrank all that are made in that hour.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::limits::CLOCK_AHEAD_MS_MAX;

/// Bits of a reading that count events inside one millisecond.
pub const COUNTER_BITS: u32 = 16;

/// A hybrid logical clock: 48 bits of Unix milliseconds, 16 of counter. Each reading is larger than every
/// reading before it and every reading merged into it (Kulkarni et al., "Logical Physical Clocks", 2014).
#[derive(Debug, Default)]
pub struct HybridClock {
    last: AtomicU64,
}

/// Time on which a step of the machine's clock has no effect: what that clock showed when it was last found to be right, and what
/// has passed since. Until then it is the machine's clock.
struct Steady {
    /// Unix milliseconds when nothing had passed by [`passed_ms`]; [`NEVER`]: it was not found to be right yet.
    began_ms: AtomicI64,
}

/// See [`Steady::began_ms`].
const NEVER: i64 = i64::MIN;

static STEADY: Steady = Steady { began_ms: AtomicI64::new(NEVER) };

/// Unix milliseconds: the machine's wall clock, or where somebody compares it with that of others, what it showed when it was
/// last found to go with them ([`is_right`]) and what has passed since.
pub fn wall_ms() -> i64 {
    STEADY.wall_ms(passed_ms()).unwrap_or_else(machine_ms)
}

/// The machine's clock, Unix milliseconds, be it set right or wrong.
#[expect(clippy::disallowed_methods, reason = "the one reader of the machine's clock")]
pub fn machine_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX).saturating_add(offset_ms())
}

/// The machine's clock is right now: time goes by it.
pub fn is_right() {
    STEADY.follow(machine_ms(), passed_ms());
}

/// Nobody can tell whether the machine's clock is right: time goes by it all the same, from now on.
pub fn is_unknown() {
    STEADY.began_ms.store(NEVER, Ordering::Relaxed);
}

/// By how much the machine's clock was set since it was last right, milliseconds; also what the machine slept.
pub fn stepped_ms() -> i64 {
    machine_ms().saturating_sub(wall_ms())
}

/// Milliseconds since the first question.
fn passed_ms() -> i64 {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    i64::try_from(BEGUN.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(i64::MAX)
}

/// How far this process's clock is moved.
#[cfg(not(feature = "test-clock"))]
const fn offset_ms() -> i64 {
    0
}

/// How far this process's clock is moved: `DATASTORE_TEST_CLOCK_OFFSET_MS`, read once, or the number in the file that
/// `DATASTORE_TEST_CLOCK_OFFSET_FILE` names, read each time.
#[cfg(feature = "test-clock")]
fn offset_ms() -> i64 {
    static OFFSET_MS: OnceLock<i64> = OnceLock::new();
    static FILE: OnceLock<Option<std::path::PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os("DATASTORE_TEST_CLOCK_OFFSET_FILE").map(Into::into));
    if let Some(file) = file {
        let set = std::fs::read_to_string(file).unwrap_or_default();
        return set.trim().parse().expect("the file holds a number of ms");
    }
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

// === impl Steady ===

impl Steady {
    fn wall_ms(&self, passed_ms: i64) -> Option<i64> {
        let began_ms = self.began_ms.load(Ordering::Relaxed);
        (began_ms != NEVER).then(|| began_ms.saturating_add(passed_ms))
    }

    fn follow(&self, machine_ms: i64, passed_ms: i64) {
        self.began_ms.store(machine_ms.saturating_sub(passed_ms), Ordering::Relaxed);
    }
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
    fn a_step_of_the_clock_gets_in_only_where_it_is_found_to_be_right() {
        let steady = Steady { began_ms: AtomicI64::new(NEVER) };
        assert_eq!(steady.wall_ms(10), None);
        steady.follow(1_000_010, 10);
        assert_eq!(steady.wall_ms(15), Some(1_000_015));
        steady.follow(3_000_020, 20);
        assert_eq!(steady.wall_ms(21), Some(3_000_021));
    }

    #[test]
    fn a_reading_far_ahead_is_not_merged() {
        let clock = HybridClock::default();
        assert!(clock.merge(hlc_at(1000 + CLOCK_AHEAD_MS_MAX), 1000));
        assert!(!clock.merge(hlc_at(1001 + CLOCK_AHEAD_MS_MAX), 1000));
        assert_eq!(clock.now(1000), hlc_at(1000 + CLOCK_AHEAD_MS_MAX));
    }
}
