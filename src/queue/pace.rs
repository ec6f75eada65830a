//! How fast a shard's lanes are drained: as fast as those who wait for an answer do not notice.
//!
//! The batches under way at once grow by a little after each that went well and are halved when writes of requests take
//! twice what they took at best lately (additive increase, multiplicative decrease). Where nobody writes, nobody is disturbed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Batches under way at once, at most: the lanes of a shard.
const BATCHES_MAX: f64 = super::topology::LANES as f64;
const BATCHES_FIRST: f64 = 2.0;
/// What a batch that went well adds.
const STEP: f64 = 0.25;
/// Writes may take this much longer than at best.
const SLOWER: f64 = 2.0;
/// What takes less is never called slow.
const QUICK_MS: f64 = 4.0;
/// The best time is forgotten by this part with each batch, so that a load that changed is learnt.
const FORGET: f64 = 1.002;
/// A pause after a batch while writes are slow.
const PAUSE: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Default)]
pub(super) struct Pace {
    state: Mutex<State>,
    freed: Notify,
}

struct State {
    limit: f64,
    under_way: u32,
    best_ms: f64,
    writes: u64,
}

/// A batch under way.
pub(super) struct Batch<'p>(&'p Pace);

impl Default for State {
    fn default() -> Self {
        Self { limit: BATCHES_FIRST, under_way: 0, best_ms: f64::MAX, writes: 0 }
    }
}

impl Pace {
    /// Waits until a batch may begin.
    pub(super) async fn begin(&self) -> Batch<'_> {
        loop {
            let freed = self.freed.notified();
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if f64::from(state.under_way) + 1.0 <= state.limit.max(1.0) {
                    state.under_way += 1;
                    return Batch(self);
                }
            }
            freed.await;
        }
    }

    /// Takes note of how requests fare: their writes so far, and what these take lately. Gives the pause before the next batch.
    pub(super) fn learn(&self, (writes, recent_ms): (u64, f64)) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = writes > state.writes;
        state.writes = writes;
        if busy {
            state.best_ms = (state.best_ms * FORGET).min(recent_ms);
        }
        if busy && recent_ms > QUICK_MS && recent_ms > state.best_ms * SLOWER {
            state.limit = (state.limit / 2.0).max(1.0);
            return PAUSE;
        }
        state.limit = (state.limit + STEP).min(BATCHES_MAX);
        Duration::ZERO
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).under_way -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn slow_writes_halve_it_and_quiet_lets_it_grow() {
        let pace = Pace::default();
        for _ in 0..100 {
            pace.learn((0, 0.0));
        }
        let mut batches = Vec::new();
        for _ in 0..8 {
            batches.push(pace.begin().await);
        }
        assert!(tokio::time::timeout(Duration::from_millis(10), pace.begin()).await.is_err(), "eight");
        drop(batches);
        assert_eq!(pace.learn((10, 5.0)), Duration::ZERO, "the first time is the best so far");
        assert_eq!(pace.learn((20, 11.0)), PAUSE);
        assert_eq!(pace.learn((20, 11.0)), Duration::ZERO, "nobody wrote since");
        for writes in 21..30 {
            pace.learn((writes, 11.0));
        }
        let _one = pace.begin().await;
        assert!(tokio::time::timeout(Duration::from_millis(10), pace.begin()).await.is_err(), "one is left");
    }
}
