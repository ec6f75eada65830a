//! Counts: calls, items, failures, and how long calls took, by powers of two.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Calls up to 2^n microseconds, n from 0 on; the last holds all that took longer.
const BUCKETS: usize = 26;
/// A recent time is a moving average: each call has this part of it.
const RECENT_PART: f64 = 1.0 / 64.0;

/// See the module.
#[derive(Default)]
pub(super) struct Observed {
    calls: AtomicU64,
    items: AtomicU64,
    failures: AtomicU64,
    micros: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
    /// Bits of a float: milliseconds; 0 = none yet.
    recent: AtomicU64,
}

/// What was counted since the start.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Calls.
    pub calls: u64,
    /// Keys and rows they were about.
    pub items: u64,
    /// Calls of which something failed.
    pub failures: u64,
    /// What they took together, microseconds.
    pub micros: u64,
    /// Calls that took up to 2^n microseconds, by n; the last also those that took longer.
    pub buckets: Vec<u64>,
}

impl Observed {
    /// Counts a call.
    pub(super) fn count(&self, items: usize, failed: bool, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.items.fetch_add(items as u64, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.buckets[bucket(micros)].fetch_add(1, Ordering::Relaxed);
        if failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        // One of two at once may be lost: it is an estimate.
        let recent = f64::from_bits(self.recent.load(Ordering::Relaxed));
        let now = took.as_secs_f64() * 1000.0;
        // What is refused at once says nothing of what a call takes; what ran out of time does.
        if failed && now < recent {
            return;
        }
        let next = if recent == 0.0 { now } else { recent + (now - recent) * RECENT_PART };
        self.recent.store(next.to_bits(), Ordering::Relaxed);
    }

    /// What calls take lately, milliseconds; 0 = there were none.
    pub(super) fn recent_ms(&self) -> f64 {
        f64::from_bits(self.recent.load(Ordering::Relaxed))
    }

    /// Calls so far.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// All of it.
    pub(super) fn seen(&self) -> Seen {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Seen {
            calls: load(&self.calls),
            items: load(&self.items),
            failures: load(&self.failures),
            micros: load(&self.micros),
            buckets: self.buckets.iter().map(load).collect(),
        }
    }
}

fn bucket(micros: u64) -> usize {
    let bits = u64::BITS - micros.saturating_sub(1).leading_zeros();
    (bits as usize).min(BUCKETS - 1)
}
