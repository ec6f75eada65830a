//! How fast a shard's lanes are drained: as fast as those who wait for an answer do not notice.
//!
//! The batches under way at once grow by a little after each that went well and are halved when writes of requests take
//! twice what they took at best lately (additive increase, multiplicative decrease); where one at a time is still too much, all
//! lanes of the shard pause between batches, longer each time. Where nobody writes, nobody is disturbed. What writes take at best is
//! learnt while nothing is drained, too: learnt beside a drain alone it would already be slow.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Batches under way at once, at most: the lanes of a shard.
const BATCHES_MAX: f64 = super::topology::LANES as f64;
const BATCHES_FIRST: f64 = 2.0;
/// What a batch that went well adds.
const STEP: f64 = 0.25;
/// Writes may take this much longer than at best.
const SLOWER: f64 = 2.0;
/// What takes less is never called slow.
const QUICK_MS: f64 = 4.0;
/// The best time is forgotten by this part with each look, so that a load that changed is learnt.
const FORGET: f64 = 1.0005;
/// The first pause after a batch while writes are slow, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(160));

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
    pause: Duration,
    /// No batch begins before.
    not_before: Option<Instant>,
}

/// A batch under way.
pub(super) struct Batch<'p>(&'p Pace);

impl Default for State {
    fn default() -> Self {
        Self {
            limit: BATCHES_FIRST,
            under_way: 0,
            best_ms: f64::MAX,
            writes: 0,
            pause: Duration::ZERO,
            not_before: None,
        }
    }
}

impl Pace {
    /// Waits until a batch may begin.
    pub(super) async fn begin(&self) -> Batch<'_> {
        loop {
            let freed = self.freed.notified();
            let pausing = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let pausing = state.not_before.filter(|until| *until > Instant::now());
                if pausing.is_none() && f64::from(state.under_way) + 1.0 <= state.limit.max(1.0) {
                    state.under_way += 1;
                    return Batch(self);
                }
                pausing
            };
            match pausing {
                Some(until) => tokio::time::sleep_until(until).await,
                None => freed.await,
            }
        }
    }

    /// Takes note of how requests fare while nothing is drained: their writes so far, and what these take lately.
    pub(super) fn look(&self, load: (u64, f64)) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).look(load);
    }

    /// The same after a batch, which the next ones are paced by.
    pub(super) fn learn(&self, load: (u64, f64)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = state.look(load);
        let (_, recent_ms) = load;
        if busy && recent_ms > QUICK_MS && recent_ms > state.best_ms * SLOWER {
            if state.limit <= 1.0 {
                state.pause = (state.pause * 2).clamp(PAUSE.0, PAUSE.1);
            }
            state.limit = (state.limit / 2.0).max(1.0);
        } else if state.pause > PAUSE.0 {
            state.pause /= 2;
        } else {
            state.pause = Duration::ZERO;
            state.limit = (state.limit + STEP).min(BATCHES_MAX);
        }
        state.not_before = Some(Instant::now() + state.pause);
    }
}

impl State {
    /// Learns what writes take at best; whether anybody wrote since.
    fn look(&mut self, (writes, recent_ms): (u64, f64)) -> bool {
        let busy = writes > self.writes;
        self.writes = writes;
        if busy && recent_ms > 0.0 {
            self.best_ms = (self.best_ms * FORGET).min(recent_ms);
        }
        busy
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

    /// Whether a batch more than those that are held may begin now.
    async fn begins(pace: &Pace) -> bool {
        tokio::time::timeout(Duration::from_millis(10), pace.begin()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn slow_writes_halve_it_and_quiet_lets_it_grow() {
        let pace = Pace::default();
        for _ in 0..100 {
            pace.learn((0, 0.0));
        }
        let mut batches = Vec::new();
        for _ in 0..8 {
            batches.push(pace.begin().await);
        }
        assert!(!begins(&pace).await, "eight");
        drop(batches);
        pace.learn((10, 5.0));
        pace.learn((20, 11.0));
        let mut batches = Vec::new();
        for _ in 0..4 {
            batches.push(pace.begin().await);
        }
        assert!(
            !begins(&pace).await,
            "the first time was the best so far, and this one more than twice that"
        );
        drop(batches);
        // One at a time, and then a pause that all wait for, longer each time.
        for writes in 21..24 {
            pace.learn((writes, 11.0));
        }
        assert!(!begins(&pace).await, "pausing");
        let begun = Instant::now();
        let one = pace.begin().await;
        assert!(begun.elapsed() <= PAUSE.0, "{:?}", begun.elapsed());
        assert!(!begins(&pace).await, "one is left");
        drop(one);
        for writes in 30..40 {
            pace.learn((writes, 11.0));
        }
        let begun = Instant::now();
        drop(pace.begin().await);
        assert_eq!(begun.elapsed(), PAUSE.1, "the longest");
        // Nobody wrote since: as fast as it goes again.
        for _ in 0..50 {
            pace.learn((39, 11.0));
        }
        assert!(begins(&pace).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_writes_took_before_the_drain_is_the_measure() {
        let pace = Pace::default();
        (1..10).for_each(|writes| pace.look((writes, 5.0)));
        // All that is seen beside the drain is slow.
        (10..20).for_each(|writes| pace.learn((writes, 30.0)));
        assert!(!begins(&pace).await, "pausing");
    }
}
