//! How long to pause before a request is repeated.

use std::time::Duration;

/// The first pause is drawn from zero to this; the next from zero to twice as much, and so on.
const PAUSE_MS_FIRST: u64 = 20;
/// No pause is longer, unless the worker asks for it.
const PAUSE_MS_MAX: u64 = 1000;

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
