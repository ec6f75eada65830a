//! When to repeat a request: a budget shared by all requests of a connection, and how long to pause.
//!
//! The budget is a bucket of tokens as in the AWS SDK's adaptive mode (Brooker, "Timeouts, retries, and backoff
//! with jitter"): while most requests succeed, any of them may be repeated; once most fail, repeats fade to a
//! tenth of the successes, so that clients do not hold down what is trying to get up.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A repeat takes this many units.
const REPEAT_UNITS: u32 = 10;
/// A success gives back this many: a tenth of a repeat.
const SUCCESS_UNITS: u32 = 1;
/// The bucket holds 100 repeats.
const UNITS_MAX: u32 = 100 * REPEAT_UNITS;
/// The first pause is drawn from zero to this; the next from zero to twice as much, and so on.
const PAUSE_MS_FIRST: u64 = 20;
/// No pause is longer, unless the worker asks for it.
const PAUSE_MS_MAX: u64 = 1000;

/// Repeats that are left. Starts full.
#[derive(Debug)]
pub(super) struct Budget {
    units: AtomicU32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { units: AtomicU32::new(UNITS_MAX) }
    }
}

impl Budget {
    /// A request was answered for good.
    pub(super) fn succeeded(&self) {
        self.change(|units| Some((units + SUCCESS_UNITS).min(UNITS_MAX)));
    }

    /// Takes one repeat, if there is one.
    pub(super) fn take(&self) -> bool {
        self.change(|units| units.checked_sub(REPEAT_UNITS))
    }

    fn change(&self, change: impl Fn(u32) -> Option<u32>) -> bool {
        self.units.fetch_update(Ordering::AcqRel, Ordering::Acquire, change).is_ok()
    }
}

/// How long to pause before attempt `next` (2, 3, ...): exponential with full jitter, and longer than the worker
/// asked for.
pub(super) fn pause(next: u32, retry_after_ms: i64) -> Duration {
    let doublings = next.saturating_sub(2).min(16);
    let ceiling = (PAUSE_MS_FIRST << doublings).min(PAUSE_MS_MAX);
    let jitter = Duration::from_millis(fastrand::u64(0..=ceiling));
    match u64::try_from(retry_after_ms) {
        // Those who were told the same time must not all come back at it.
        Ok(asked @ 1..) => {
            jitter.max(Duration::from_millis(asked) + jitter.min(Duration::from_millis(asked / 2)))
        }
        _ => jitter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_repeats_then_one_for_ten_successes() {
        let budget = Budget::default();
        assert_eq!((0..1000).filter(|_| budget.take()).count(), 100);
        for _ in 0..9 {
            budget.succeeded();
        }
        assert!(!budget.take());
        budget.succeeded();
        assert!(budget.take());
        assert!(!budget.take());
    }

    #[test]
    fn the_bucket_does_not_overflow() {
        let budget = Budget::default();
        (0..5000).for_each(|_| budget.succeeded());
        assert_eq!((0..1000).filter(|_| budget.take()).count(), 100);
    }

    #[test]
    fn pauses_grow_to_a_ceiling_and_honour_advice() {
        for _ in 0..200 {
            assert!(pause(2, 0) <= Duration::from_millis(20));
            assert!(pause(3, 0) <= Duration::from_millis(40));
            assert!(pause(u32::MAX, 0) <= Duration::from_millis(PAUSE_MS_MAX));
            assert!(pause(2, 500) >= Duration::from_millis(500));
            assert!(pause(2, 500) <= Duration::from_millis(750));
            assert!(pause(2, -1) <= Duration::from_millis(20));
        }
    }
}
