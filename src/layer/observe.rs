//! Counts: calls, items, failures, and how long calls took, by powers of two.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Calls up to 2^n microseconds, n from 0 on; the last holds all that took longer.
const BUCKETS: usize = 26;
/// Finer: so many buckets for each power of two, which are a fortieth wide.
const PER_OCTAVE: f64 = 32.0;
const TIMES: usize = BUCKETS * PER_OCTAVE as usize;

/// See the module.
#[derive(Default)]
pub(super) struct Observed {
    calls: AtomicU64,
    items: AtomicU64,
    failures: AtomicU64,
    micros: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
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

/// How long requests took, counted since the start.
pub(super) struct Answered([AtomicU64; TIMES]);

/// So many requests took so long.
#[derive(Debug, Clone)]
pub struct Times([f64; TIMES]);

impl Default for Answered {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; TIMES])
    }
}

impl Answered {
    pub(super) fn count(&self, took: Duration) {
        self.0[place_of(took)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn so_far(&self) -> Times {
        Times(std::array::from_fn(|place| self.0[place].load(Ordering::Relaxed) as f64))
    }
}

impl Default for Times {
    fn default() -> Self {
        Self([0.0; TIMES])
    }
}

impl Times {
    /// How many there are.
    pub fn total(&self) -> f64 {
        self.0.iter().sum()
    }

    /// What was counted since an earlier look.
    pub fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|place| (self.0[place] - earlier.0[place]).max(0.0)))
    }

    /// Adds others, after forgetting so much of what there is that this part of it stays.
    pub fn add(&mut self, others: &Self, stays: f64) {
        self.0.iter_mut().zip(&others.0).for_each(|(count, more)| *count = *count * stays + more);
    }

    /// The time that this part of them took at most, to a fortieth.
    pub fn within(&self, part: f64) -> Duration {
        let (mut left, mut last) = (self.total() * part, 0);
        for (place, count) in self.0.iter().enumerate() {
            last = place;
            left -= count;
            if left <= 0.0 {
                break;
            }
        }
        Duration::from_micros(((last + 1) as f64 / PER_OCTAVE).exp2() as u64)
    }

    /// The part of them that took longer.
    pub fn longer_than(&self, time: Duration) -> f64 {
        let longer: f64 = self.0[place_of(time) + 1..].iter().sum();
        longer / self.total().max(1.0)
    }

    #[cfg(test)]
    pub(crate) fn of(times: &[(u64, Duration)]) -> Self {
        let mut counted = Self::default();
        times.iter().for_each(|(count, time)| counted.0[place_of(*time)] += *count as f64);
        counted
    }
}

fn place_of(time: Duration) -> usize {
    let micros = time.as_micros().max(1) as f64;
    ((micros.log2() * PER_OCTAVE) as usize).min(TIMES - 1)
}

fn bucket(micros: u64) -> usize {
    let bits = u64::BITS - micros.saturating_sub(1).leading_zeros();
    (bits as usize).min(BUCKETS - 1)
}
