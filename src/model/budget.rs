//! How often what failed may be repeated: a budget shared by all requests on one way.
//!
//! The budget is a bucket of tokens as in the AWS SDK's adaptive mode (Brooker, "Timeouts, retries, and backoff
//! with jitter"): while most requests succeed, any of them may be repeated; once most fail, repeats fade to a
//! tenth of the successes, so that those who ask do not hold down what is trying to get up.

use std::sync::atomic::{AtomicU32, Ordering};

/// A repeat takes this many units.
const REPEAT_UNITS: u32 = 10;
/// A success gives back this many: a tenth of a repeat.
const SUCCESS_UNITS: u32 = 1;
/// The bucket holds 100 repeats.
const UNITS_MAX: u32 = 100 * REPEAT_UNITS;

/// Repeats that are left. Starts full.
#[derive(Debug)]
pub struct Budget {
    units: AtomicU32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { units: AtomicU32::new(UNITS_MAX) }
    }
}

impl Budget {
    /// A request was answered for good.
    pub fn succeeded(&self) {
        // Nearly always it is full, and then nobody's cache line is taken away.
        if self.units.load(Ordering::Relaxed) == UNITS_MAX {
            return;
        }
        self.change(|units| Some((units + SUCCESS_UNITS).min(UNITS_MAX)));
    }

    /// Takes one repeat, if there is one.
    pub fn take(&self) -> bool {
        self.change(|units| units.checked_sub(REPEAT_UNITS))
    }

    fn change(&self, change: impl Fn(u32) -> Option<u32>) -> bool {
        self.units.fetch_update(Ordering::AcqRel, Ordering::Acquire, change).is_ok()
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
}
